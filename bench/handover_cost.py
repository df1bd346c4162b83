"""Gate mode: what the webhook with its controller costs, in memory with many pods and in time while they wait."""

from __future__ import annotations

import time

from admissions import resident_mib
from cluster_client import burst, pod, waiting
from cluster_history import Seen, served
from cluster_scene import Stage, cpu_seconds
from handover_gate import LENGTH, WAITERS, Line
from handover_report import Row, at_most

PODS = 1000
KEYS = 10
# Half of the pods are served, half wait.
KEY_LENGTH = PODS // KEYS // 2
CONNECTIONS = 16
MEGABYTES_PER_MIB = 1024 * 1024 / 1e6
MEMORY_FLOOR_MEGABYTES = 80
CPU_FLOOR_PERCENT = 1
SERVED_SECONDS = 60.0
SETTLE_SECONDS = 3.0


def memory(stage: Stage) -> list[Row]:
    """Measure the resident memory with many opted-in pods of several keys."""
    with stage.scene("memory") as scene:
        pid = scene.webhook.process.pid
        empty = resident_mib(pid) * MEGABYTES_PER_MIB
        made = [pod(f"many-{number:04}", waiting(f"many-{number % KEYS}", KEY_LENGTH)) for number in range(PODS)]
        burst(scene.plane, scene.client.pods, made, CONNECTIONS)

        def are_served(events: list[Seen]) -> bool:
            return len(events) > PODS and len(served(events)) >= KEYS * KEY_LENGTH

        scene.watcher.wait(are_served, SERVED_SECONDS, "as many pods as there are permits are free")
        time.sleep(SETTLE_SECONDS)
        full = resident_mib(pid) * MEGABYTES_PER_MIB
    case = f"memory: webhook with controller and {PODS} pods ({empty:.1f} MB without)"
    return [at_most(case, 1, full, MEMORY_FLOOR_MEGABYTES, "MB")]


def idle(stage: Stage, seconds: float) -> list[Row]:
    """Measure the share of a core that is used while nothing happens but that pods wait."""
    with stage.scene("idle", sidecars="real") as scene:
        Line(scene).fill()
        time.sleep(SETTLE_SECONDS)
        pid = scene.webhook.process.pid
        started, before = time.monotonic(), cpu_seconds(pid)
        time.sleep(seconds)
        share = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - started)
    case = f"idle: CPU of the webhook with controller, {LENGTH} pods run and {WAITERS} wait"
    return [at_most(case, 1, share, CPU_FLOOR_PERCENT, "% of a core")]
