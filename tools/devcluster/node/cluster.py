"""A cluster of real nodes: control plane, scheduler, kube-proxy, DNS, and as many nodes as wanted."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import yaml

from devcluster.binaries import find_or_build
from devcluster.controlplane import ControlPlane
from devcluster.node import network
from devcluster.node.images import ALIASES, REDIS, archives
from devcluster.node.isolation import cgroup_name
from devcluster.node.node import Node
from devcluster.process import Process

PROGRAMS = ("kube-scheduler", "kube-proxy", "kubelet", "coredns")
NODE_GRACE_SECONDS = 8

_READY_SECONDS = 90.0


class NodeCluster:
    """A cluster in an isolated room; a context manager. `images` is where the nodes' images are."""

    def __init__(self, room: Path, images: Path, nodes: int = 2) -> None:
        network.set_up()
        directory = self.directory = room / "cluster"
        directory.mkdir()
        self.images = images
        self.plane = ControlPlane(
            directory / "plane",
            simulated_node=False,
            apiserver_flags=(
                "--bind-address=0.0.0.0",
                f"--advertise-address={network.HOST}",
                "--endpoint-reconciler-type=lease",
                f"--service-cluster-ip-range={network.SERVICES}",
                "--kubelet-preferred-address-types=InternalIP",
            ),
            controller_flags=(
                f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
                "--node-monitor-period=1s",
                f"--flex-volume-plugin-dir={directory / 'volume-plugins'}",
            ),
        )
        self._programs = find_or_build(PROGRAMS)
        cgroup = cgroup_name(room)
        self.nodes = [
            Node(n, directory / f"node-{n}", self._programs["kubelet"], self._node_kubeconfig(n), cgroup)
            for n in range(1, nodes + 1)
        ]
        self._helpers = [self._scheduler(), self._proxy(), self._dns()]

    def node_ready(self, name: str) -> bool:
        """Say whether the API shows a node as ready."""
        conditions = self.plane.request("GET", f"/api/v1/nodes/{name}")["status"].get("conditions", ())
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def apply(self, documents: Iterable[object]) -> None:
        """Apply objects of any kind."""
        self.plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(documents))

    def cut(self, node: Node) -> network.Cut:
        """Return a cut between a node and all others."""
        return network.Cut(node.number, self.plane.port)

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                loading = list(pool.map(self._start_runtime, self.nodes))
                self.plane.start()
                for process in self._helpers:
                    process.start()
                for node in loading:
                    node.kubelet.start()
            for node in self.nodes:
                node.kubelet.wait_until(functools.partial(self._is_ready, node.name), _READY_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all servers; containers end with the isolated room."""
        for process in [*(node.kubelet for node in self.nodes), *(node.containerd for node in self.nodes)]:
            process.kill()
        for process in self._helpers:
            process.kill()
        self.plane.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_runtime(self, node: Node) -> Node:
        node.start_runtime()
        node.load(archives(self.images))
        node.name_also(REDIS, ALIASES)
        return node

    def _is_ready(self, name: str) -> bool:
        found = self.plane.request("GET", "/api/v1/nodes")["items"]
        return any(each["metadata"]["name"] == name for each in found) and self.node_ready(name)

    def _node_kubeconfig(self, number: int) -> Path:
        """Write a kubeconfig that reaches the API server at the node's own address, where it can be cut off."""
        config = json.loads(self.plane.kubeconfig.read_text())
        (cluster,) = config["clusters"]
        cluster["cluster"] |= {"server": f"https://10.88.{number}.1:{self.plane.port}", "tls-server-name": "localhost"}
        path = self.directory / f"node-{number}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def _scheduler(self) -> Process:
        argv = [str(self._programs["kube-scheduler"]), f"--kubeconfig={self.plane.kubeconfig}"]
        argv += [f"--authentication-kubeconfig={self.plane.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        return Process("kube-scheduler", argv, self.directory / "kube-scheduler.log")

    def _proxy(self) -> Process:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(self.plane.kubeconfig)},
            "clusterCIDR": network.PODS,
            "hostnameOverride": "node-1",
            "bindAddress": network.HOST,
            "iptables": {"minSyncPeriod": "100ms"},
            # These settings belong to the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        path = self.directory / "kube-proxy.yaml"
        path.write_text(yaml.safe_dump(config))
        argv = [str(self._programs["kube-proxy"]), f"--config={path}"]
        return Process("kube-proxy", argv, self.directory / "kube-proxy.log")

    def _dns(self) -> Process:
        path = self.directory / "Corefile"
        path.write_text(
            f".:53 {{\n  bind {network.HOST}\n  errors\n  kubernetes {network.DNS_DOMAIN} {{\n"
            f"    kubeconfig {self.plane.kubeconfig}\n    ttl 1\n  }}\n}}\n"
        )
        return Process("coredns", [str(self._programs["coredns"]), f"-conf={path}"], self.directory / "coredns.log")
