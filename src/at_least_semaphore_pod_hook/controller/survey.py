"""Who lives: what a semaphore is rebuilt from when the store may have lost data."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.controller.decide import surviving
from at_least_semaphore_pod_hook.semaphore.model import Adoptee

if TYPE_CHECKING:
    from collections.abc import Sequence

    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

logger = logging.getLogger(__name__)

FALLBACK_EXPIRATION_SECONDS = 60
"""For a pod whose annotations have been made unreadable since its admission."""
MAX_TOKEN = 2**52
"""What a script can still count on from: higher ones, which only a forged annotation has, are not taken up."""


class Survey:
    """Names the pods that live and were let in under a key, as the API server has them at that moment.

    Args:
        prefix: What our annotations and labels begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._kube: Kube | None = None

    @property
    def kube(self) -> Kube | None:
        """The API server that is asked; None as long as there is none."""
        return self._kube

    def connect(self, kube: Kube) -> None:
        """Ask this API server from now on."""
        self._kube = kube

    async def __call__(self, key: SemaphoreKey) -> Sequence[Adoptee]:
        """List them; nobody where there is no API server to ask.

        Raises:
            ApiUnavailableError: It does not answer.
        """
        if self._kube is None:
            logger.warning("no API server to ask for the holders of a semaphore", extra={"semaphore": str(key)})
            return ()
        pods, _ = await self._kube.list_pods(f"{self._prefix}{pod_annotations.KEY}={key.key}")
        mine = [pod for pod in pods if pod.sidecar and pod.namespace == key.namespace]
        return adoptees([pod for pod in mine if pod.sidecar and pod.sidecar.semaphore == str(key)], self._prefix)


def adoptees(pods: Sequence[PodView], prefix: str) -> list[Adoptee]:
    """Return the holders among a semaphore's pods, each with the fencing token that its workload has."""
    found = []
    for pod in surviving(pods):
        written = pod.annotations.get(prefix + pod_annotations.FENCING_TOKEN, "")
        known = written.isascii() and written.isdecimal() and int(written[:20]) <= MAX_TOKEN
        expiration = pod.expiration or FALLBACK_EXPIRATION_SECONDS
        found.append(Adoptee(pod.permit, pod.name, pod.uid, int(written) if known else 0, expiration))
    return found
