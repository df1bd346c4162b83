"""The network of the nodes: one bridge, which is the nodes' own address too, and a part of its addresses for each node.

All of it is in a network namespace of its own, see `isolation`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from devcluster.errors import DevClusterError

BRIDGE = "devcluster0"
HOST = "10.88.0.1"
PODS = "10.88.0.0/16"
SERVICES = "10.0.0.0/24"
DNS_DOMAIN = "cluster.local"

PLUGINS = Path("/usr/lib/cni")
_SETTINGS = (
    "/proc/sys/net/ipv4/ip_forward",
    # What goes from pod to pod over the bridge passes the rules of Services, too.
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
)


def set_up() -> None:
    """Make the bridge and what else pods need to reach each other, Services and this machine."""
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HOST}/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # Addresses of Services are rewritten only once a route was found.
    run("ip", "route", "add", "default", "dev", BRIDGE)
    for setting in _SETTINGS:
        Path(setting).write_text("1")


def node_address(number: int) -> str:
    """Give the bridge one more address for a node, and return it."""
    address = f"10.88.{number}.1"
    run("ip", "address", "add", f"{address}/32", "dev", BRIDGE)
    return address


def node_pods(number: int) -> str:
    """Return the addresses of a node's pods."""
    return f"10.88.{number}.0/24"


def write_cni(directory: Path, number: int, state: Path) -> None:
    """Write how containerd is to connect a node's pods."""
    first, last = f"10.88.{number}.10", f"10.88.{number}.250"
    addresses = {
        "type": "host-local",
        "dataDir": str(state),
        "ranges": [[{"subnet": PODS, "rangeStart": first, "rangeEnd": last, "gateway": HOST}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "hairpinMode": True, "ipam": addresses}
    directory.mkdir(parents=True)
    (directory / "10-bridge.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "devcluster", "plugins": [bridge]})
    )


class Cut:
    """A cut between a node and all others, as a context manager: its kubelet and its pods reach nobody, nor are they.

    The kubelet and the pods of the same node still reach each other.
    """

    def __init__(self, number: int, api_port: int) -> None:
        pods = node_pods(number)
        self._rules = [
            ("FORWARD", "-s", pods, "!", "-d", pods),
            ("FORWARD", "-d", pods, "!", "-s", pods),
            # This is the address at which the node's kubelet, and it alone, reaches the API server.
            ("OUTPUT", "-d", f"10.88.{number}.1", "-p", "tcp", "--dport", str(api_port)),
        ]

    def __enter__(self) -> None:
        for chain, *rule in self._rules:
            run("iptables", "-w", "-I", chain, *rule, "-j", "DROP")

    def __exit__(self, *_: object) -> None:
        for chain, *rule in self._rules:
            run("iptables", "-w", "-D", chain, *rule, "-j", "DROP")


def run(*argv: str) -> str:
    """Run a program and return what it printed; DevClusterError where it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevClusterError(f"{' '.join(argv)} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
