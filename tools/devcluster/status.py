"""A pod's status as a kubelet reports it, from what is known of its containers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass
class ContainerRecord:
    """What is known of one container; times are seconds since the epoch.

    `starting` says that it runs, and its startup probe has not passed.
    """

    pod_uid: str
    name: str
    image: str
    init: bool
    native_sidecar: bool
    restarts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    starting: bool = False

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended since."""
        return self.started_at is not None and self.finished_at is None

    def started(self) -> None:
        """Note a start, the first or a later one."""
        self.started_at, self.finished_at, self.exit_code = time.time(), None, None

    def ended(self, code: int) -> None:
        """Note an end with this exit code (128 + n for signal n)."""
        self.started_at = self.started_at or time.time()
        self.finished_at, self.exit_code = time.time(), code

    def status(self) -> Object:
        """Return the containerStatus."""
        identifier = f"devcluster://{self.pod_uid}/{self.name}/{self.restarts}"
        done_init = self.init and not self.native_sidecar and self.exit_code == 0
        answer: Object = {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "restartCount": self.restarts,
            "started": self.running and not self.starting,
            "ready": self.running and not self.starting if not self.init or self.native_sidecar else done_init,
        }
        if self.started_at is None:
            answer["state"] = {"waiting": {"reason": "PodInitializing"}}
        elif self.finished_at is None:
            answer["state"] = {"running": {"startedAt": timestamp(self.started_at)}}
            answer["containerID"] = identifier
        else:
            answer["containerID"] = identifier
            answer["state"] = {
                "terminated": {
                    "exitCode": self.exit_code,
                    "reason": "Completed" if self.exit_code == 0 else "Error",
                    "startedAt": timestamp(self.started_at),
                    "finishedAt": timestamp(self.finished_at),
                    "containerID": identifier,
                }
            }
        return answer


def pod_status(
    phase: str,
    inits: Sequence[ContainerRecord],
    mains: Sequence[ContainerRecord],
    *,
    pod_ip: str,
    started: float,
    initialized: bool,
) -> Object:
    """Return the status to patch in; `initialized` says that every init container has done its part."""
    sidecars = [record for record in inits if record.native_sidecar]
    ready = phase == "Running" and all(record.running for record in [*mains, *sidecars])
    reason = "PodCompleted" if phase in ("Succeeded", "Failed") else "ContainersNotReady"
    status: Object = {
        "phase": phase,
        "startTime": timestamp(started),
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "conditions": [
            _condition("PodReadyToStartContainers", phase in ("Pending", "Running"), None),
            _condition("Initialized", initialized, "ContainersNotInitialized"),
            _condition("ContainersReady", ready, reason),
            _condition("Ready", ready, reason),
        ],
        "containerStatuses": [record.status() for record in mains],
    }
    if inits:
        status["initContainerStatuses"] = [record.status() for record in inits]
    return status


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as the API writes them (whole seconds, UTC)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _condition(kind: str, holds: bool, reason: str | None) -> Object:
    answer: Object = {"type": kind, "status": "True" if holds else "False", "reason": None if holds else reason}
    return answer
