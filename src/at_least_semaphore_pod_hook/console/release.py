"""The subcommand `release`: a permit is given back by hand."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.console.reaching import reach
from at_least_semaphore_pod_hook.controller.events import RELEASED
from at_least_semaphore_pod_hook.controller.kube import Reference, Written
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from at_least_semaphore_pod_hook.overview.tables import printable
from at_least_semaphore_pod_hook.semaphore.lines import decided
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.console.options import Release
    from at_least_semaphore_pod_hook.controller.kube import Kube
    from at_least_semaphore_pod_hook.controller.pods import PodView
    from at_least_semaphore_pod_hook.semaphore.model import Holder

logger = logging.getLogger(__name__)

DECLINED = 3
"""The exit code where whoever was asked did not say yes."""


class Found(NamedTuple):
    """The pod of a holder: None where there is none, or where nobody could be asked; then `reason` says why."""

    pod: PodView | None
    reason: str = ""


async def run(settings: Release) -> int:
    """Give a permit back, after asking. Returns the exit code.

    Raises:
        StoreUnavailableError: The store does not answer.
    """
    semaphore = SemaphoreKey(settings.namespace, settings.key)
    async with reach(settings.access, "release") as (store, kube, prefix):
        state = await store.state(semaphore)
        holder = next((one for one in state.holders if one.permit == settings.permit), None)
        if holder is None:
            _say(f"permit {settings.permit} of {semaphore} is not held")
            return 1
        found = await _pod_of(kube, semaphore, holder, prefix)
        sys.stderr.write(f"{printable(warning(semaphore, holder, found))}\n")
        if not settings.yes and not await asyncio.to_thread(_agreed):
            _say("nothing was released")
            return DECLINED
        began = time.monotonic()
        # Whoever holds it now may be another than the one that was asked about.
        now = next((one for one in (await store.state(semaphore)).holders if one.permit == settings.permit), None)
        if now is None or now.token != holder.token or not await store.release(semaphore, settings.permit):
            _say(f"permit {settings.permit} of {semaphore} is not held any more")
            return 1
        about = decided(semaphore, holder.permit, holder.pod, "released", time.monotonic() - began)
        logger.info("permit released by hand", extra=about | {"token": holder.token})
        if found.pod is not None and kube is not None:
            await _report(kube, semaphore, found.pod)
        return 0


def warning(semaphore: SemaphoreKey, holder: Holder, found: Found) -> str:
    """Say what it means to release a permit."""
    held = f"permit {holder.permit} of {semaphore} is held by pod {holder.pod}"
    pod = found.pod
    if found.reason:
        return f"{held}; whether that pod still runs is not known: {found.reason}"
    if pod is None or pod.finished:
        return f"{held}, which {'is gone' if pod is None else 'has finished'}"
    if not pod.sidecar_started:
        return f"{held}, whose sidecar does not run: a controller gives the pod the next permit, before all who wait"
    return f"{held}, which runs on node {pod.node}: another pod may be let in and run beside it"


async def _pod_of(kube: Kube | None, semaphore: SemaphoreKey, holder: Holder, prefix: str) -> Found:
    if kube is None:
        return Found(None, "no API server to ask")
    try:
        listed, _ = await kube.list_pods(f"{prefix}key={semaphore.key}", namespace=semaphore.namespace)
    except ApiUnavailableError as error:
        return Found(None, str(error))
    named = [pod for pod in listed if pod.semaphore == semaphore and pod.permit == holder.permit]
    return Found(min(named, key=lambda pod: (pod.uid != holder.uid, pod.finished), default=None))


def _agreed() -> bool:
    sys.stderr.write("release it? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


async def _report(kube: Kube, semaphore: SemaphoreKey, pod: PodView) -> None:
    """Leave an Event on the pod. The permit is released all the same where that cannot be done."""
    regarding = Reference("v1", "Pod", pod.namespace, pod.name, pod.uid)
    note = f"permit of {semaphore} released by hand"
    try:
        written = await kube.create_event(
            regarding, RELEASED.reason, note, action=RELEASED.action, warning=not pod.finished
        )
    except ApiUnavailableError as error:
        logger.warning("Events cannot be written", extra={"reason": str(error)})
        return
    if written is Written.MISSING:
        logger.warning("Events cannot be written", extra={"reason": f"namespace {pod.namespace} is gone"})


def _say(text: str) -> None:
    sys.stderr.write(f"at-least-semaphore-pod-hook release: {text}\n")
