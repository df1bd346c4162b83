"""Let all pods go that wait behind our gate, as nobody else will any more: for the removal of this project.

The store is not asked: no permit is taken. Whatever else a pod waits for, it keeps waiting for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.effects import ungate
from at_least_semaphore_pod_hook.controller.kube import Kube, Written
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.controller.pods import PodView

logger = logging.getLogger(__name__)

UNSCHEDULED = "spec.nodeName="
"""Where a gate is, no node is. No label is asked for, since whoever may edit a waiting pod can take ours away."""
LATECOMERS_SECONDS = 2.0
"""An API server that has not heard yet that the webhook is gone may still store a pod with our gate."""
MAX_LOOKS = 20
"""More looks than this find waiters only where the webhook still serves."""


class _Look(NamedTuple):
    """What one look has brought: how many pods are let go, and whether some still wait."""

    released: int
    waiting: bool


async def release_gates(kubeconfig: str, prefix: str, sidecar_name: str) -> bool:
    """Remove our gate from every pod of the cluster; log how many there were.

    Args:
        kubeconfig: A file's path; empty for the service account of the pod that we run in.
        prefix: What our annotations, labels and our gate begin with.
        sidecar_name: The name of our container in pods.

    Returns:
        Whether no pod waits behind our gate any more.
    """
    released, waiting = 0, True
    try:
        kube = Kube(Connection.open(kubeconfig), PodDecoder(prefix, sidecar_name), instance=socket.gethostname())
        try:
            for number in range(MAX_LOOKS):
                look = await _release(kube, prefix + pod_annotations.GATE)
                released += look.released
                waiting = look.waiting
                # The last look finds nothing to do, and there is one after the pause in any case.
                if number and not look.released and not waiting:
                    break
                await asyncio.sleep(LATECOMERS_SECONDS)
        finally:
            await kube.close()
    except ApiUnavailableError as error:
        logger.error("gates not removed", extra={"count": released, "reason": str(error)})  # noqa: TRY400 - it says all
        return False
    if waiting:
        logger.error("pods still wait behind our gate", extra={"count": released})
    else:
        logger.info("gates removed", extra={"count": released})
    return not waiting


async def _release(kube: Kube, gate: str) -> _Look:
    pods, _ = await kube.list_pods("", UNSCHEDULED)
    waiters = [pod for pod in pods if gate in pod.gates]
    # The connection bounds how many requests are in flight.
    written = await asyncio.gather(*(_let_go(kube, pod, gate) for pod in waiters))
    return _Look(written.count(Written.DONE), any(each in {None, Written.CONFLICT} for each in written))


async def _let_go(kube: Kube, pod: PodView, gate: str) -> Written | None:
    """Remove the gate of one pod; None where that was refused, which must not hold up the others."""
    try:
        return await kube.patch_pod(pod.namespace, pod.name, ungate(pod, gate))
    except ApiUnavailableError as error:
        about = {"namespace": pod.namespace, "pod": pod.name, "reason": str(error)}
        logger.warning("gate not removed", extra=about)
        return None
