"""What the tests let run in real containers, and the journal that it leaves of when it ran."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devcluster.node.images import PRODUCT
from tests.cluster.e2e import PREFIX, opted_in

if TYPE_CHECKING:
    from pathlib import Path

Object = dict[str, Any]

BEAT_SECONDS = 0.02
# Writes a line at every beat, from its start until it ends: LINGER seconds after SIGTERM, RUN seconds after its start.
# All containers of one machine see the same monotonic clock.
_PROGRAM = f"""
import os, signal, time
until = [time.monotonic() + float(os.environ["RUN"])]
signal.signal(signal.SIGTERM, lambda *_: until.append(time.monotonic() + float(os.environ["LINGER"])))
started = time.monotonic()
with open("/journal/" + os.environ["JOURNAL"], "a", buffering=1) as journal:
    while time.monotonic() < min(until):
        journal.write(f"{{os.environ['POD']}} {{started}} {{time.monotonic()}}\\n")
        time.sleep({BEAT_SECONDS})
"""


@dataclass(frozen=True)
class Stretch:
    """One run of a main container: from its first to its last beat, in seconds of the monotonic clock."""

    pod: str
    start: float
    end: float


class Journal:
    """What the main containers of the pods of one semaphore have written."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._file = directory / name

    def stretches(self) -> list[Stretch]:
        """Return all runs so far, by their start."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        found: dict[tuple[str, float], float] = {}
        for line in lines:
            pod, started, at = line.split()
            found[pod, float(started)] = float(at)
        return sorted((Stretch(pod, start, end) for (pod, start), end in found.items()), key=lambda one: one.start)

    def of(self, pod: str) -> list[Stretch]:
        """Return the runs of one pod."""
        return [one for one in self.stretches() if one.pod == pod]

    def overlap(self, length: int) -> float:
        """Return for how many seconds more than `length` ran at once."""
        events = sorted(itertools.chain.from_iterable([(s.start, 1), (s.end, -1)] for s in self.stretches()))
        running, since, total = 0, 0.0, 0.0
        for at, change in events:
            if running > length:
                total += at - since
            running, since = running + change, at
        return total


def opting_in(key: str, length: int, when_full: str = "gate", expiration: int = 30, **more: str) -> dict[str, str]:
    """Return what opts a pod in; `more` are further annotations of ours."""
    chosen = {"when-full": when_full} | {name.replace("_", "-"): value for name, value in more.items()}
    return opted_in(key, length, expiration) | {PREFIX + name: value for name, value in chosen.items()}


def template(
    journal: Journal,
    directory: Path,
    annotated: dict[str, str],
    *,
    run: float = 100_000,
    linger: float = 1.0,
    **spec: object,
) -> Object:
    """Return a pod's template whose main container keeps the journal."""
    environment: list[Object] = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        *({"name": name, "value": str(value)} for name, value in (("RUN", run), ("LINGER", linger))),
        {"name": "JOURNAL", "value": journal.name},
    ]
    main = {
        "name": "main",
        "image": PRODUCT,
        "command": ["/usr/bin/python3", "-c", _PROGRAM],
        "env": environment,
        "volumeMounts": [{"name": "journal", "mountPath": "/journal"}],
    }
    volume = {"name": "journal", "hostPath": {"path": str(directory)}}
    tolerances = [{"key": f"node.kubernetes.io/{key}", "operator": "Exists"} for key in ("not-ready", "unreachable")]
    return {
        "metadata": {"labels": {"app": journal.name}, "annotations": annotated},
        "spec": {"containers": [main], "volumes": [volume], "tolerations": tolerances} | spec,
    }


def workload(kind: str, name: str, made: Object, **spec: object) -> Object:
    """Return a Deployment, StatefulSet, DaemonSet or Job of a template."""
    version = "batch/v1" if kind == "Job" else "apps/v1"
    full = {"template": made} | spec
    if kind != "Job":
        full["selector"] = {"matchLabels": made["metadata"]["labels"]}
    if kind == "StatefulSet":
        full["serviceName"] = name
    document: Object = json.loads(
        json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": full})
    )
    return document
