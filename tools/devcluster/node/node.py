"""One node: containerd and kubelet, with directories, cgroup and addresses of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from devcluster.errors import DevClusterError
from devcluster.node import network
from devcluster.node.images import PAUSE
from devcluster.polling import until
from devcluster.process import Process

_READY_SECONDS = 60.0
_KUBELET_PORT = 10250
_MEMORY = Path("/sys/fs/cgroup/memory")


class Node:
    """A node that can crash and come back. `kubeconfig` is the kubelet's, `cgroup` what its pods are below."""

    def __init__(self, number: int, directory: Path, kubelet: Path, kubeconfig: Path, cgroup: str) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.directory = directory
        self.address = network.node_address(number)
        self.cgroup = f"/{cgroup}/{self.name}"
        self._socket = directory / "containerd.sock"
        directory.mkdir(parents=True)
        _make_cgroup(self.cgroup)
        network.write_cni(directory / "cni", number, directory / "addresses")
        (directory / "containerd.toml").write_text(_containerd_config(directory, self._socket))
        self.containerd = Process(
            "containerd", ["containerd", f"--config={directory / 'containerd.toml'}"], directory / "containerd.log"
        )
        (directory / "resolv.conf").touch()
        config = directory / "kubelet.yaml"
        config.write_text(yaml.safe_dump(_kubelet_config(directory, self._socket, self.address, self.cgroup)))
        argv = [str(kubelet), f"--config={config}", f"--kubeconfig={kubeconfig}", f"--root-dir={directory / 'kubelet'}"]
        argv += [f"--hostname-override={self.name}", f"--node-ip={self.address}", "--v=2"]
        argv += [f"--cert-dir={directory / 'pki'}"]
        self.kubelet = Process("kubelet", argv, directory / "kubelet.log")

    def start(self) -> None:
        """Start containerd, and the kubelet once it answers."""
        self.start_runtime()
        self.kubelet.start()

    def start_runtime(self) -> None:
        """Start containerd alone, and return once it answers."""
        self.containerd.start()
        self.containerd.wait_until(self._answers, _READY_SECONDS)

    def load(self, archives: Sequence[Path]) -> None:
        """Give the node its images."""
        with ThreadPoolExecutor(len(archives)) as pool:
            list(pool.map(lambda archive: self._ctr("images", "import", "--digests", str(archive)), archives))

    def name_also(self, image: str, names: Sequence[str]) -> None:
        """Give an image further names."""
        self._ctr("images", "tag", image, *names)

    def crash(self) -> None:
        """End everything on the node at once, as a power cut would: kubelet, containerd, and all containers."""
        self.kubelet.kill()
        self.containerd.kill()
        for pid in self._shims():
            _kill(pid)
        until(self._all_killed, f"all containers of {self.name} have ended")

    def log(self, namespace: str, pod: str, container: str) -> str:
        """Return what a container has logged, over all of its starts."""
        places = self.directory.glob(f"pods/{namespace}_{pod}_*/{container}/*.log")
        return "".join(place.read_text() for place in sorted(places))

    def container_cgroup(self, container_id: str) -> Path:
        """Return a container's directory in the memory hierarchy; `container_id` is as in the pod's status."""
        (place,) = (_MEMORY / self.cgroup.strip("/")).rglob(container_id.removeprefix("containerd://"))
        return place

    def _answers(self) -> bool:
        try:
            return bool(self._ctr("version"))
        except DevClusterError:
            return False

    def _ctr(self, *arguments: str) -> str:
        return network.run("ctr", f"--address={self._socket}", "--namespace=k8s.io", *arguments)

    def _shims(self) -> list[int]:
        """Return the processes that hold the node's containers."""
        wanted = os.fsencode(self._socket)
        lines = {int(entry.name): _command_line(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        return [pid for pid, line in lines.items() if wanted in line and b"containerd-shim" in line]

    def _all_killed(self) -> bool:
        pids = [
            int(pid)
            for procs in (_MEMORY / self.cgroup.strip("/")).rglob("cgroup.procs")
            for pid in procs.read_text().split()
        ]
        for pid in pids:
            _kill(pid)
        return not pids


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _make_cgroup(name: str) -> None:
    """Make a node's cgroup in each hierarchy where its parent is; the kubelet wants it to be there."""
    parent = name.rpartition("/")[0].strip("/")
    for place in Path("/sys/fs/cgroup").glob(f"*/{parent}"):
        made = place / name.rpartition("/")[2]
        made.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (made / setting).exists():
                (made / setting).write_text((place / setting).read_text())


def _containerd_config(directory: Path, socket: Path) -> str:
    """Return containerd's configuration; what is a string in JSON is one in TOML."""
    root, state, cni, opt = (json.dumps(str(directory / name)) for name in ("containerd", "state", "cni", "opt"))
    disabled = ["aufs", "btrfs", "devmapper", "zfs"]
    return f"""version = 2
root = {root}
state = {state}
disabled_plugins = {json.dumps([f"io.containerd.snapshotter.v1.{name}" for name in disabled])}
[grpc]
address = {json.dumps(str(socket))}
[plugins."io.containerd.internal.v1.opt"]
path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {json.dumps(PAUSE)}
# Where the machine may not lower it below its own, containers would not start.
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {json.dumps(str(network.PLUGINS))}
conf_dir = {cni}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def _kubelet_config(directory: Path, socket: Path, address: str, cgroup: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": _KUBELET_PORT,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "clusterDNS": [network.HOST],
        "clusterDomain": network.DNS_DOMAIN,
        "resolvConf": str(directory / "resolv.conf"),
        "podLogsDir": str(directory / "pods"),
        "volumePluginDir": str(directory / "volume-plugins"),
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi"},
        # A node that is gone is noticed within seconds, so that tests need not wait for minutes.
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1s",
        "nodeLeaseDurationSeconds": 8,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "logging": {"verbosity": 2},
    }
