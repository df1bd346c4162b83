"""A process that stands for election until SIGTERM: `candidate.py <kubeconfig> <namespace> <identity> <log>`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.election import Election
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder


async def stand(kubeconfig: str, namespace: str, identity: str, log: Path) -> None:
    def write(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{time.time()} {identity} {what}\n")

    async def started() -> None:
        write("started")

    async def stopped() -> None:
        write("stopped")

    kube = Kube(Connection.open(kubeconfig), PodDecoder("", ""))
    election = Election(kube, namespace, "leader", identity, on_started=started, on_stopped=stopped)
    task = asyncio.create_task(election.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    write("stands")
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await kube.close()


if __name__ == "__main__":
    asyncio.run(stand(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
