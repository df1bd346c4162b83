"""A process that follows pods and prints what that costs: `watch_memory.py <kubeconfig> <selector> <pods> <changes>`.

Printed as JSON: megabytes of resident memory before, after the list and after so many changes; CPU seconds of each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import lightkube  # noqa: F401 - what it costs is not what is asked for

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.controller.reflector import Change, Reflector


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measure(kubeconfig: str, selector: str, pods: int, changes: int) -> dict[str, float]:
    figures = {"before": resident_mb()}
    seen = 0
    all_seen = asyncio.Event()

    def note(_change: Change) -> None:
        nonlocal seen
        seen += 1
        if seen == pods + changes:
            all_seen.set()

    kube = Kube(Connection.open(kubeconfig), PodDecoder(annotation_prefix(), SIDECAR_NAME))
    reflector = Reflector(kube, selector, note)
    started = time.monotonic()
    task = asyncio.create_task(reflector.run())
    await reflector.synced.wait()
    figures |= {"list_seconds": time.monotonic() - started, "list_cpu": time.process_time()}
    figures["listed"] = resident_mb()
    print("listed", flush=True)
    await all_seen.wait()
    figures |= {"changes_cpu": time.process_time() - figures["list_cpu"], "changed": resident_mb()}
    task.cancel()
    return figures


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
