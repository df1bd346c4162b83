"""The product on a cluster of real nodes, installed by the commands that the documents give to users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from devcluster.binaries import find_or_build
from devcluster.errors import DevClusterError
from devcluster.node.cluster import NodeCluster
from devcluster.node.product import DEPLOYMENT, NAMESPACE, WEBHOOK, local_volume, pods_of
from devcluster.polling import until
from devcluster.webhook import ROOT

CHART = ROOT / "deploy/helm/at-least-semaphore-pod-hook"

_COMMAND_SECONDS = 180.0
_ROLLOUT_SECONDS = 120.0


class Release:
    """The chart's release on a cluster that has a volume for the bundled store.

    Commands run in the project's directory, with helm, kubectl and its plugin on PATH, and the cluster's administrator.
    """

    def __init__(self, cluster: NodeCluster) -> None:
        self.cluster = cluster
        found = find_or_build(["helm", "kubectl"])
        places = [Path(sys.executable).parent, *(program.parent for program in found.values())]
        path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
        home = cluster.directory / "home"
        home.mkdir()
        self._environment = os.environ | {
            "PATH": path,
            "HOME": str(home),
            "KUBECONFIG": str(cluster.plane.kubeconfig),
        }
        directory = cluster.directory / "chart-volume"
        directory.mkdir()
        cluster.apply([local_volume("chart-volume", directory, cluster.nodes[0].name)])

    def run(self, *argv: str) -> str:
        """Run a command and return what it printed to standard output.

        DevClusterError where it fails; TimeoutExpired where it takes minutes.
        """
        done = subprocess.run(
            argv,
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        if done.returncode != 0:
            raise DevClusterError(f"{' '.join(argv)} failed with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def upgrade(self, *values: str) -> None:
        """Set values, each `path=value`; return once all former replicas have ended."""
        settings = [part for value in values for part in ("--set", value)]
        where = ("--namespace", NAMESPACE)
        self.run("helm", "upgrade", DEPLOYMENT, str(CHART), *where, "--reuse-values", *settings)
        for workload in (f"statefulset/{DEPLOYMENT}-valkey", f"deployment/{DEPLOYMENT}"):
            self.run("kubectl", *where, "rollout", "status", f"--timeout={_ROLLOUT_SECONDS:.0f}s", workload)
        until(lambda: len(pods_of(self.cluster, WEBHOOK)) == 2, "the former replicas have ended", _ROLLOUT_SECONDS)

    def uninstall(self) -> str:
        """Uninstall, and return what helm said."""
        return self.run("helm", "uninstall", DEPLOYMENT, "--namespace", NAMESPACE)

    def values(self) -> dict[str, object]:
        """Return the values that were set."""
        where = ("--namespace", NAMESPACE)
        found: dict[str, object] | None = json.loads(
            self.run("helm", "get", "values", DEPLOYMENT, *where, "--output=json")
        )
        return found or {}

    def installed(self) -> bool:
        """Say whether it is installed."""
        return DEPLOYMENT in self.run("helm", "list", "--namespace", NAMESPACE, "--short", "--all")
