"""One admission, from the request's body to the answer's."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.admission import inject, review
from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.lines import decided
from at_least_semaphore_pod_hook.semaphore.model import (
    FRESH_SECONDS,
    Acquired,
    AcquireRequest,
    Outcome,
    SemaphoreKey,
)
from at_least_semaphore_pod_hook.semaphore.service import Admitted, SemaphoreService, new_permit
from at_least_semaphore_pod_hook.settings import PROBE_PERIOD_SECONDS, PROBE_TIMEOUT_SECONDS, fence_margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.admission.annotations import Demand
    from at_least_semaphore_pod_hook.admission.inject import Carried, Operations, SidecarTemplate
    from at_least_semaphore_pod_hook.admission.review import Metadata, Pod, Request

logger = logging.getLogger(__name__)

_DEFAULT_GRACE_SECONDS = 30
_stamp_pattern = re.compile(r"[1-9][0-9]{0,17}")
_namespace_pattern = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Decision(StrEnum):
    """How an admission ended."""

    ALLOWED = "allowed"
    PATCHED = "patched"
    DENIED = "denied"
    ERRORED = "errored"


class Answer(NamedTuple):
    """An AdmissionReview with a response, and what was decided, with its status code."""

    decision: Decision
    code: int
    body: bytes


class _Line:
    """What is logged of one admission: whose it is, as far as that is known, and since when it is under way."""

    __slots__ = ("_began", "_key", "_namespace", "_pod")

    def __init__(self, namespace: str) -> None:
        self._began = time.perf_counter()
        self._namespace = namespace
        self._key: SemaphoreKey | None = None
        self._pod = ""

    def names(self, key: SemaphoreKey, pod: str) -> None:
        self._key, self._pod = key, pod

    def fields(self, outcome: str, permit: str = "", **more: object) -> dict[str, object]:
        took = time.perf_counter() - self._began
        # Where the semaphore is not known, its namespace is all the same.
        return decided(self._key, permit, self._pod, outcome, took) | {"namespace": self._namespace, **more}


def _uncounted(_key: SemaphoreKey) -> None:
    """Count nothing."""


class AdmissionHandler:
    """Answers AdmissionReviews.

    Args:
        service: Where permits come from.
        template: The sidecar to inject.
        prefix: What our annotations begin with.
        when_full: What becomes of pods that do not say it themselves while no permit is free.
        on_granted: Told of the semaphore of each permit that was granted.
        on_denied: Told of the semaphore of each pod that was denied.
        authorities: Returns whom sidecars are to trust at the moment (PEM), where they show a token.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        service: SemaphoreService,
        template: SidecarTemplate,
        prefix: str,
        *,
        when_full: WhenFull = WhenFull.DENY,
        on_granted: Callable[[SemaphoreKey], None] = _uncounted,
        on_denied: Callable[[SemaphoreKey], None] = _uncounted,
        authorities: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._template = template
        self._sidecar = inject.SidecarJson(template)
        self._prefix = prefix
        self._when_full = when_full
        self._on_granted = on_granted
        self._on_denied = on_denied
        self._authorities = authorities
        self._clock = clock

    async def handle(self, body: bytes, timeout: float) -> Answer:
        """Answer a review within `timeout` seconds.

        Raises:
            InvalidInputError: The body is no AdmissionReview of admission.k8s.io/v1, so there is nobody to answer.
        """
        request = review.decode_review(body)
        line = _Line(request.namespace)
        try:
            return await self._admit(request, timeout, line)
        except InvalidInputError as error:
            logger.info("pod refused", extra=line.fields("refused", reason=str(error)))
            return _refused(Decision.DENIED, request, 400, "BadRequest", str(error))
        except UnavailableError as error:
            logger.error("admission failed", extra=line.fields("failed", reason=str(error)))  # noqa: TRY400
            return _refused(Decision.ERRORED, request, 503, "ServiceUnavailable", str(error))
        except Exception:
            logger.exception("admission failed unexpectedly", extra=line.fields("failed"))
            message = "at-least-semaphore-pod-hook failed unexpectedly; its log says why"
            return _refused(Decision.ERRORED, request, 500, "InternalError", message)

    async def _admit(self, request: Request, timeout: float, line: _Line) -> Answer:
        if not request.creates_pod:
            return Answer(Decision.ALLOWED, 200, review.allowed(request.uid))
        pod = review.decode_pod(request.object)
        demand = pod_annotations.parse(pod.metadata.annotations or {}, self._prefix, fence=self._template.fence)
        if demand is None:
            return Answer(Decision.ALLOWED, 200, review.allowed(request.uid))
        if not _namespace_pattern.fullmatch(request.namespace):
            raise InvalidInputError(f"request.namespace: {request.namespace[:80]!a} is no namespace")
        if self._template.audience:
            authorities = self._authorities()
            if not authorities:
                raise UnavailableError("the authority of the webhook's certificate is not known yet")
            self._sidecar.trust(authorities)
        key = SemaphoreKey(request.namespace, demand.key)
        line.names(key, _name(pod.metadata))
        if (demand.when_full or self._when_full) is WhenFull.DENY:
            return await self._take(request, pod, demand, key, timeout, [], line)
        if pod.spec.node_name:
            # The scheduler never sees it, so that no gate could hold it back, and the API server refuses it with one.
            warning = f"spec.nodeName is set, so this pod cannot wait: it is denied while {key} has no permit free"
            return await self._take(request, pod, demand, key, timeout, [warning], line)
        return self._line_up(request, pod, demand, key, line)

    async def _take(
        self,
        request: Request,
        pod: Pod,
        demand: Demand,
        key: SemaphoreKey,
        timeout: float,
        warnings: list[str],
        line: _Line,
    ) -> Answer:
        """Take a permit for a pod, or deny it."""
        carried = inject.find_carried(pod.spec, self._template.name)
        wish = AcquireRequest(
            key,
            demand.length,
            demand.expiration,
            permit=new_permit(),
            identity=_identity(request, pod.metadata),
            carried=_fresh_permit(carried, key, pod),
            pod=_name(pod.metadata),
            dry_run=bool(request.dry_run),
            owner=_owner(pod.metadata),
        )
        admitted = await self._service.acquire(wish, timeout)
        acquired = admitted.acquired
        warnings += _disagreement(wish, admitted)
        if acquired.outcome is Outcome.FULL:
            if not wish.dry_run:
                self._on_denied(key)
            logger.info("pod denied", extra=line.fields("denied", held=acquired.held))
            return _refused(Decision.DENIED, request, 403, "Forbidden", _full(key, acquired), warnings)
        try:
            operations = inject.ungate(pod.spec.scheduling_gates, self._prefix + pod_annotations.GATE)
            operations += self._annotate(pod.metadata, fencing_token=str(acquired.token))
            port = self._port(pod, wish.identity, acquired.permit)
            operations += self._put_sidecar(pod, demand, key, carried, acquired.permit, port)
            warnings += self._fence(pod, demand, carried, port, operations)
            answer = review.patched(request.uid, operations, warnings)
        except BaseException:
            if not wish.dry_run:
                self._service.give_back(key, wish.permit)
            raise
        if acquired.outcome is Outcome.GRANTED and not wish.dry_run:
            self._on_granted(key)
        logger.info("pod admitted", extra=line.fields(acquired.outcome.value, permit=acquired.permit))
        return Answer(Decision.PATCHED, 200, answer)

    def _line_up(self, request: Request, pod: Pod, demand: Demand, key: SemaphoreKey, line: _Line) -> Answer:
        """Let a pod in behind our gate. Nothing is written: it gets its permit once the API server has stored it."""
        gate = self._prefix + pod_annotations.GATE
        carried = inject.find_carried(pod.spec, self._template.name)
        operations = inject.gate(pod.spec.scheduling_gates, gate)
        arrived = self._arrival(pod, gated=not operations)
        port = self._port(pod, _identity(request, pod.metadata), arrived)
        operations += self._annotate(pod.metadata, arrived=arrived)
        operations += self._put_sidecar(pod, demand, key, carried, inject.UID_PERMIT, port)
        warnings = self._fence(pod, demand, carried, port, operations)
        logger.info("pod gated", extra=line.fields("gated"))
        return Answer(Decision.PATCHED, 200, review.patched(request.uid, operations, warnings))

    def _annotate(self, metadata: Metadata, *, arrived: str = "", fencing_token: str = "") -> Operations:
        """Write what is ours to write; what the pod may have copied from another is gone after it."""
        annotations = metadata.annotations or {}
        operations = inject.annotate(annotations, self._prefix + pod_annotations.ARRIVED, arrived)
        return operations + inject.annotate(annotations, self._prefix + pod_annotations.FENCING_TOKEN, fencing_token)

    def _port(self, pod: Pod, identity: str, own: str) -> int:
        """Return the port that the sidecar confirms by, or 0.

        Pods that share their node's ports need different ones. The request's identity is that of all pods of a
        ReplicaSet; so there is `own` as well, what this pod alone has and keeps when it is asked about again.
        """
        if self._template.confirm_port and pod.spec.host_network:
            return inject.own_port(f"{identity}/{own}")
        return self._template.confirm_port

    def _fence(self, pod: Pod, demand: Demand, carried: list[Carried], port: int, operations: Operations) -> list[str]:
        """Add what fences the pod's containers; returns warnings of those that cannot be, or perhaps not in time."""
        fenced, unfenced = inject.fence(pod.spec, carried, self._template.name, port if self._template.fence else 0)
        # Containers are counted as they come, so before one of them is removed.
        operations[:0] = fenced
        warnings = [
            f"container {name[:80]!a} has a livenessProbe of its own, so --fence does not stop it when the lease ends"
            for name in unfenced
        ]
        return warnings + (_late(pod, demand.expiration * 1_000) if self._template.fence else [])

    def _put_sidecar(
        self, pod: Pod, demand: Demand, key: SemaphoreKey, carried: list[Carried], permit: str, port: int
    ) -> Operations:
        flags = inject.ending_flags(self._template, pod.spec, demand.release_on)
        operations = inject.label(pod.metadata.labels, self._prefix + pod_annotations.KEY, demand.key)
        operations += inject.volume(pod.spec.volumes, self._template)
        sidecar = self._sidecar(str(key), permit, flags, port)
        return operations + inject.patch(pod.spec, carried, sidecar, native=self._template.native)

    def _arrival(self, pod: Pod, *, gated: bool) -> str:
        """Return when a waiter came, in microseconds: now, save where this request has been here a moment ago."""
        now = int(self._clock() * 1_000_000)
        known = (pod.metadata.annotations or {}).get(self._prefix + pod_annotations.ARRIVED, "")
        if gated and not pod.is_copy and _stamp_pattern.fullmatch(known):
            age = now - int(known)
            if 0 <= age < FRESH_SECONDS * 1_000_000:
                return known
        return str(now)


def _late(pod: Pod, lease_ms: int) -> list[str]:
    """Warn where the kubelet, which ends a pod that is not restarted as a whole, may take longer than the fence has."""
    grace = pod.spec.termination_grace_period_seconds
    grace = _DEFAULT_GRACE_SECONDS if grace is None else grace
    left = int(fence_margin(lease_ms)) - PROBE_PERIOD_SECONDS - PROBE_TIMEOUT_SECONDS
    if pod.spec.restart_policy != "Never" or grace <= left:
        return []
    late = (
        f"with restartPolicy Never and terminationGracePeriodSeconds {grace}, --fence may be too late for work that "
        f"goes on after SIGTERM: {left} or less is in time"
    )
    return [late]


def _refused(
    decision: Decision, request: Request, code: int, reason: str, message: str, warnings: list[str] | None = None
) -> Answer:
    return Answer(decision, code, review.refused(request.uid, code, reason, message, warnings))


def _identity(request: Request, metadata: Metadata) -> str:
    """Tell one request's reservation from another's: by namespace, user and the pod's name as it was asked for."""
    parts = (request.namespace, request.user_info.username, metadata.name or "", metadata.generate_name or "")
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _name(metadata: Metadata) -> str:
    """Return the pod's name, or what it will begin with."""
    return metadata.name or f"{metadata.generate_name or ''}*"


def _owner(metadata: Metadata) -> str:
    """Name the controlling owner as `<kind>/<name>`, where it has one."""
    for owner in metadata.owner_references or ():
        if owner.controller:
            return f"{owner.kind}/{owner.name}"
    return ""


def _fresh_permit(carried: list[Carried], key: SemaphoreKey, pod: Pod) -> str:
    """Return the permit that the pod brings along, as far as it can be this request's own.

    A copy of a pod that was stored never shares its original's permit.
    """
    if pod.is_copy or len(carried) != 1 or carried[0].key != str(key):
        return ""
    return carried[0].permit


def _full(key: SemaphoreKey, acquired: Acquired) -> str:
    message = f"no semaphore available: {acquired.held} of {acquired.length} permits of {key} are held"
    named = [pod for pod in acquired.holders if pod]
    if not named:
        return message
    pods = list(dict.fromkeys(named))
    others = acquired.held - len(named)
    return f"{message} by {', '.join(pods)}" + (f" and {others} more" if others > 0 else "")


def _disagreement(wish: AcquireRequest, admitted: Admitted) -> list[str]:
    if not admitted.replaced_length:
        return []
    warning = (
        f"pods of semaphore {wish.key} disagree on its length: {admitted.replaced_length} so far, "
        f"{wish.length} by this pod's annotation, which now applies"
    )
    return [warning]
