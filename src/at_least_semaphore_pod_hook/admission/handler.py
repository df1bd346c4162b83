"""One admission, from the request's body to the answer's."""

from __future__ import annotations

import hashlib
import logging
import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.admission import inject, review
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import Admitted, SemaphoreService, new_permit

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.admission.inject import Carried, SidecarTemplate
    from at_least_semaphore_pod_hook.admission.review import Metadata, Pod, Request

logger = logging.getLogger(__name__)

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


class AdmissionHandler:
    """Answers AdmissionReviews.

    Args:
        service: Where permits come from.
        template: The sidecar to inject.
        prefix: What our annotations begin with.
    """

    def __init__(self, service: SemaphoreService, template: SidecarTemplate, prefix: str) -> None:
        self._service = service
        self._template = template
        self._sidecar = inject.SidecarJson(template)
        self._prefix = prefix

    async def handle(self, body: bytes, timeout: float) -> Answer:
        """Answer a review within `timeout` seconds.

        Raises:
            InvalidInputError: The body is no AdmissionReview of admission.k8s.io/v1, so there is nobody to answer.
        """
        request = review.decode_review(body)
        try:
            return await self._admit(request, timeout)
        except InvalidInputError as error:
            logger.info("pod refused", extra={"namespace": request.namespace, "reason": str(error)})
            return _refused(Decision.DENIED, request, 400, "BadRequest", str(error))
        except UnavailableError as error:
            logger.error("admission failed", extra={"namespace": request.namespace, "reason": str(error)})  # noqa: TRY400
            return _refused(Decision.ERRORED, request, 503, "ServiceUnavailable", str(error))
        except Exception:
            logger.exception("admission failed unexpectedly", extra={"namespace": request.namespace})
            message = "at-least-semaphore-pod-hook failed unexpectedly; its log says why"
            return _refused(Decision.ERRORED, request, 500, "InternalError", message)

    async def _admit(self, request: Request, timeout: float) -> Answer:
        if not request.creates_pod:
            return Answer(Decision.ALLOWED, 200, review.allowed(request.uid))
        pod = review.decode_pod(request.object)
        demand = pod_annotations.parse(pod.metadata.annotations or {}, self._prefix)
        if demand is None:
            return Answer(Decision.ALLOWED, 200, review.allowed(request.uid))
        if not _namespace_pattern.fullmatch(request.namespace):
            raise InvalidInputError(f"request.namespace: {request.namespace[:80]!a} is no namespace")
        key = SemaphoreKey(request.namespace, demand.key)
        carried = inject.find_carried(pod.spec, self._template.name)
        wish = AcquireRequest(
            key,
            demand.length,
            demand.expiration,
            permit=new_permit(),
            identity=_identity(request, pod.metadata),
            carried=_fresh_permit(carried, key, pod),
            pod=pod.metadata.name or f"{pod.metadata.generate_name or ''}*",
            dry_run=bool(request.dry_run),
            owner=_owner(pod.metadata),
        )
        admitted = await self._service.acquire(wish, timeout)
        acquired = admitted.acquired
        if acquired.outcome is Outcome.FULL:
            logger.info("pod denied", extra={"semaphore": str(key), "pod": wish.pod, "held": acquired.held})
            message = _full(key, acquired)
            return _refused(Decision.DENIED, request, 403, "Forbidden", message, _warnings(wish, admitted))
        try:
            sidecar = self._sidecar(str(key), acquired.permit)
            operations = inject.label(pod.metadata.labels, self._prefix + pod_annotations.KEY, demand.key)
            operations += inject.patch(pod.spec, carried, sidecar, native=self._template.native)
            answer = review.patched(request.uid, operations, _warnings(wish, admitted))
        except BaseException:
            if not wish.dry_run:
                self._service.give_back(key, wish.permit)
            raise
        logger.info(
            "pod admitted",
            extra={
                "semaphore": str(key),
                "pod": wish.pod,
                "permit": acquired.permit,
                "outcome": acquired.outcome.value,
            },
        )
        return Answer(Decision.PATCHED, 200, answer)


def _refused(
    decision: Decision, request: Request, code: int, reason: str, message: str, warnings: list[str] | None = None
) -> Answer:
    return Answer(decision, code, review.refused(request.uid, code, reason, message, warnings))


def _identity(request: Request, metadata: Metadata) -> str:
    """Tell one request's reservation from another's: by namespace, user and the pod's name as it was asked for."""
    parts = (request.namespace, request.user_info.username, metadata.name or "", metadata.generate_name or "")
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).hexdigest()


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


def _warnings(wish: AcquireRequest, admitted: Admitted) -> list[str]:
    if not admitted.replaced_length:
        return []
    warning = (
        f"pods of semaphore {wish.key} disagree on its length: {admitted.replaced_length} so far, "
        f"{wish.length} by this pod's annotation, which now applies"
    )
    return [warning]
