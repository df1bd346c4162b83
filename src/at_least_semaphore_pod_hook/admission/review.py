"""AdmissionReview (admission.k8s.io/v1) in and out: only the fields that are used."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, TypeVar

import msgspec

from at_least_semaphore_pod_hook.errors import InvalidInputError

T = TypeVar("T")

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"


class Container(msgspec.Struct, rename="camel"):
    """A container of a pod, as far as it matters whether it is our sidecar, and whether our fence stops it."""

    name: str = ""
    args: list[str] | None = None
    liveness_probe: Any = None


class SchedulingGate(msgspec.Struct):
    """What keeps a pod from being scheduled as long as it is there."""

    name: str = ""


class PodSpec(msgspec.Struct, rename="camel"):
    """A pod's spec. Containers stay undecoded until one of them is looked at."""

    containers: list[msgspec.Raw] | None = None
    init_containers: list[msgspec.Raw] | None = None
    volumes: list[msgspec.Raw] | None = None
    scheduling_gates: list[SchedulingGate] | None = None
    node_name: str | None = None
    restart_policy: str | None = None
    termination_grace_period_seconds: int | None = None
    host_network: bool | None = None


class OwnerReference(msgspec.Struct, rename="camel"):
    """What a pod belongs to."""

    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Metadata(msgspec.Struct, rename="camel"):
    """A pod's metadata. What was stored has a UID and a creation timestamp; what is being created has neither yet."""

    name: str | None = None
    generate_name: str | None = None
    uid: str | None = None
    creation_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None


class PodStatus(msgspec.Struct):
    """A pod's status, which the API server gives it when it is stored."""

    phase: str | None = None


class Pod(msgspec.Struct):
    """A pod."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    @property
    def is_copy(self) -> bool:
        """Whether it says of itself that it was stored before: as one that was made from another's YAML does."""
        return bool(self.metadata.uid or self.metadata.creation_timestamp or self.status.phase)


class GroupVersionKind(msgspec.Struct):
    """What kind of object a request is about."""

    kind: str
    group: str = ""
    version: str = ""


class UserInfo(msgspec.Struct):
    """Who makes the request."""

    username: str = ""
    uid: str = ""


class Request(msgspec.Struct, rename="camel"):
    """An AdmissionRequest."""

    uid: str
    kind: GroupVersionKind
    operation: str
    namespace: str = ""
    name: str = ""
    sub_resource: str = ""
    dry_run: bool | None = None
    user_info: UserInfo = msgspec.field(default_factory=UserInfo)
    object: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def creates_pod(self) -> bool:
        """Whether this is what the webhook is for."""
        return self.operation == "CREATE" and self.kind.kind == "Pod" and not self.kind.group and not self.sub_resource


class Review(msgspec.Struct, rename="camel"):
    """An AdmissionReview that carries a request."""

    api_version: str
    kind: str
    request: Request


_review = msgspec.json.Decoder(Review)
_pod = msgspec.json.Decoder(Pod)
_container = msgspec.json.Decoder(Container)
_encode = msgspec.json.Encoder().encode


def decode_review(body: bytes) -> Request:
    """Read the request of an AdmissionReview.

    Raises:
        InvalidInputError: It is none.
    """
    review = _decoded(_review, body, "the request body")
    if (review.api_version, review.kind) != (API_VERSION, KIND):
        raise InvalidInputError(f"the request body is a {review.api_version} {review.kind}, not a {API_VERSION} {KIND}")
    if not review.request.uid:
        raise InvalidInputError("the request body has no request.uid")
    return review.request


def decode_pod(raw: bytes | msgspec.Raw) -> Pod:
    """Read a pod. Raises InvalidInputError where it is none."""
    return _decoded(_pod, raw, "request.object")


def decode_container(raw: msgspec.Raw) -> Container:
    """Read a container. Raises InvalidInputError where it is none."""
    return _decoded(_container, raw, "a container of request.object")


def _decoded(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{what} is not what {API_VERSION} takes: {error}") from error


def _review_of(response: dict[str, Any]) -> bytes:
    return _encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def allowed(uid: str) -> bytes:
    """Let the object through as it is."""
    return _review_of({"uid": uid, "allowed": True})


def patched(uid: str, operations: list[dict[str, Any]], warnings: list[str]) -> bytes:
    """Let the object through with a JSON patch (RFC 6902), which may be empty."""
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    if operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = b64encode(_encode(operations)).decode()
    if warnings:
        response["warnings"] = warnings
    return _review_of(response)


def refused(uid: str, code: int, reason: str, message: str, warnings: list[str] | None = None) -> bytes:
    """Do not let the object through; code and reason as in a Kubernetes Status."""
    status = {"code": code, "reason": reason, "message": message}
    response: dict[str, Any] = {"uid": uid, "allowed": False, "status": status}
    if warnings:
        response["warnings"] = warnings
    return _review_of(response)
