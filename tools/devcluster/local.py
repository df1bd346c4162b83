"""The whole system on one machine: store, control plane, webhook and stand-in node, with the project's examples."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from devcluster.binaries import Report
from devcluster.controlplane import ControlPlane
from devcluster.podrunner import PodRunner
from devcluster.podspec import RUN_SECONDS
from devcluster.stores import RedisServer
from devcluster.webhook import ROOT, WebhookProcess, register

Object = dict[str, Any]

EXAMPLES = ROOT / "deploy" / "examples"
SOURCE = ROOT / "src"
_SLEEP = re.compile(r"\bsleep (\d+)\b")


class LocalCluster:
    """The parts, made but not started: `store`, `control_plane`, `webhook` and `runner` are context managers each.

    All that they write is below `directory`. Webhook and sidecars run the package in `source`. `flags` are added to
    the webhook's. The programs of the control plane are found, or built, here; `report` gets the progress.
    """

    def __init__(
        self, directory: Path, *, source: Path = SOURCE, flags: Sequence[str] = (), report: Report = print
    ) -> None:
        path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
        # Two saves within a second, of one size, look the same to a cache of bytecode: none is written.
        environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.store = RedisServer(directory / "store", prefer="valkey")
        self.control_plane = ControlPlane(directory / "control-plane", report=report)
        self.webhook = WebhookProcess(
            directory / "webhook",
            flags=[
                f"--kubeconfig={self.control_plane.kubeconfig}",
                f"--redis-addresses={self.store.address}",
                f"--queue-redis-address={self.store.address}",
                "--enable-sidecar-containers",
                "--log-format=text",
                *flags,
            ],
            env=environment,
        )
        self.runner = PodRunner(self.control_plane.kubeconfig, directory / "pods", sidecar_env=environment)

    def register(self) -> None:
        """Register the webhook with the API server."""
        register(self.control_plane, self.webhook)

    def create_examples_namespace(self) -> str:
        """Create the namespace of `deploy/examples` and return its name."""
        (namespace,) = (one["metadata"]["name"] for one in self._examples() if one["kind"] == "Namespace")
        # Pods can be created in a namespace only once its service account is there.
        self.control_plane.create_namespace(namespace)
        return str(namespace)

    def apply_examples(self, kinds: Collection[str] | None = None, run_seconds: float | None = None) -> str:
        """Apply what `deploy/examples` holds, all of it or objects of these kinds; return their namespace.

        The stand-in node passes time where a container would work: a Job's pod ends after `run_seconds`, or after the
        seconds that its command sleeps, and a Deployment's runs on.
        """
        everything = self._examples()
        (namespace,) = (one["metadata"]["name"] for one in everything if one["kind"] == "Namespace")
        objects = [one for one in everything if kinds is None or one["kind"] in kinds]
        for one in objects:
            _end_in_time(one, run_seconds)
        self.control_plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(objects))
        return str(namespace)

    def _examples(self) -> list[Object]:
        return list(yaml.safe_load_all(self.control_plane.kubectl("kustomize", str(EXAMPLES)).stdout))


def _end_in_time(one: Object, run_seconds: float | None) -> None:
    spec = one.get("spec") or {}
    job = spec["jobTemplate"]["spec"] if one["kind"] == "CronJob" else spec
    if one["kind"] not in ("Job", "CronJob"):
        return
    (container,) = job["template"]["spec"]["containers"]
    slept = _SLEEP.search(" ".join(container.get("command") or []))
    if slept:
        seconds = slept[1] if run_seconds is None else str(run_seconds)
        job["template"]["metadata"].setdefault("annotations", {})[RUN_SECONDS] = seconds
