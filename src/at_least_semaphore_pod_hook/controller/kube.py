"""Everything that the controller asks of the API server, and nothing else. What is raised is our own."""

from __future__ import annotations

import re
import secrets
import time
from contextlib import aclosing
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.controller.connection import METADATA_ONLY, Connection, path_of
from at_least_semaphore_pod_hook.controller.leases import LeaseView, decode_lease, encode_spec, micro_time
from at_least_semaphore_pod_hook.controller.status import (
    CONFLICT,
    NOT_FOUND,
    TERMINATING,
    UNPROCESSABLE,
    decode_status,
    refusal,
)
from at_least_semaphore_pod_hook.errors import ApiGoneError, ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
    from at_least_semaphore_pod_hook.controller.pods import PodView

PAGE = 500
"""Pods to a page of a list."""
WATCH_SECONDS = 30.0
"""How long a watch is asked to last.

Before it ends the API server sends a bookmark, so that this is also how old the version that a watch goes on from can
be; and a watch that is silent for longer is no watch any more.
"""
REPORTING_CONTROLLER = "kaidotio.github.io/at-least-semaphore-pod-hook"
MAX_NOTE = 1024

PODS = "/api/v1/pods"
OWNERS = {
    "ReplicaSet": ("apis", "apps", "v1", "replicasets"),
    "StatefulSet": ("apis", "apps", "v1", "statefulsets"),
    "Job": ("apis", "batch", "v1", "jobs"),
    "ReplicationController": ("api", "v1", "replicationcontrollers"),
}
"""The kinds of owner that can be touched, and where each is."""


class Written(Enum):
    """How a write ended, where it did not fail."""

    DONE = "done"
    MISSING = "missing"
    """There is no such object (any more)."""
    CONFLICT = "conflict"
    """It is not as the write takes it to be: look again."""


class WatchEvent(NamedTuple):
    """What a watch tells.

    Attributes:
        kind: ADDED, MODIFIED, DELETED or BOOKMARK.
        resource_version: Where to go on from after it.
        pod: The pod as it is now, or was at its end; None with a bookmark.
    """

    kind: str
    resource_version: str
    pod: PodView | None


class Reference(NamedTuple):
    """An object that an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    uid: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class _NodeStatus(msgspec.Struct):
    conditions: list[_Condition] | None = None


class _Node(msgspec.Struct):
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


_event = msgspec.json.Decoder(_Event)
_object = msgspec.json.Decoder(_Object)
_node = msgspec.json.Decoder(_Node)


class Kube:
    """The API server, as the controller sees it.

    Every method raises ApiForbiddenError where a rule of RBAC is missing, and ApiUnavailableError where there is no
    answer in time; what a method raises besides is said there.

    Args:
        connection: To the cluster; closed with this.
        decoder: Makes views of pods.
        instance: Who we are in Events, e.g. our pod's name.
        watch_seconds: How long a watch lasts, in whole seconds.
    """

    def __init__(
        self, connection: Connection, decoder: PodDecoder, *, instance: str = "", watch_seconds: float = WATCH_SECONDS
    ) -> None:
        self._connection = connection
        self._decoder = decoder
        self._instance = instance or "unknown"
        self._watch_seconds = watch_seconds

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def list_pods(
        self, label_selector: str, field_selector: str = "", namespace: str = ""
    ) -> tuple[list[PodView], str]:
        """List the pods that have these labels and fields, page by page: those of a namespace, or of all.

        Returns:
            The pods, and the version to watch on from.

        Raises:
            ApiGoneError: It took so long that the first page's version is not known any more: begin anew.
        """
        pods: list[PodView] = []
        params = {"labelSelector": label_selector, "limit": str(PAGE)}
        if field_selector:
            params["fieldSelector"] = field_selector
        path = path_of("api", "v1", "namespaces", namespace, "pods") if namespace else PODS
        while True:
            answer = await self._connection.request("GET", path, params=params)
            page = self._decoder.page(answer.done("list of pods"))
            pods += page.pods
            if not page.more:
                return pods, page.resource_version
            params["continue"] = page.more

    async def watch_pods(self, label_selector: str, resource_version: str) -> AsyncGenerator[WatchEvent]:
        """Tell of changes since a version, until the API server ends it after `watch_seconds`.

        A pod that loses the labels is told of as DELETED, though it lives on.

        Raises:
            ApiGoneError: The version is not known any more, or the API server cannot go on from it.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": label_selector,
            "resourceVersion": resource_version,
            "timeoutSeconds": f"{self._watch_seconds:.0f}",
        }
        async with self._connection.stream(PODS, params, self._watch_seconds) as lines, aclosing(lines):
            async for line in lines:
                yield self._watch_event(line)

    async def get_pod(self, namespace: str, name: str) -> PodView | None:
        """Read a pod as it is at this moment (no cache answers); None proves that there is no pod of this name."""
        answer = await self._connection.request("GET", path_of("api", "v1", "namespaces", namespace, "pods", name))
        if answer.is_missing("pods", name):
            return None
        return self._decoder.pod(answer.done(f"pod {namespace}/{name}"))

    async def patch_pod(self, namespace: str, name: str, json_patch: Sequence[dict[str, Any]]) -> Written:
        """Apply a JSON patch (RFC 6902); CONFLICT where one of its tests, or an operation, does not fit the pod."""
        path = path_of("api", "v1", "namespaces", namespace, "pods", name)
        written, _ = await self._patch(path, json_patch, "application/json-patch+json")
        return written

    async def touch_owner(self, kind: str, namespace: str, name: str, annotation: str, value: str) -> Reference | None:
        """Set an annotation of an owner, which makes its controller look at it at once, and return the owner.

        None where there is no such object (any more), or others' writes came in between.

        Raises:
            KeyError: The kind is not one of `OWNERS`.
        """
        root, *version, resource = OWNERS[kind]
        path = path_of(root, *version, "namespaces", namespace, resource, name)
        patch = {"metadata": {"annotations": {annotation: value}}}
        written, body = await self._patch(path, patch, "application/merge-patch+json")
        if written is not Written.DONE:
            return None
        try:
            return Reference("/".join(version), kind, namespace, name, _object.decode(body).metadata.uid)
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no object: {error}") from error

    async def create_event(
        self, regarding: Reference, reason: str, note: str, *, action: str, warning: bool = False, at: float = 0
    ) -> Written:
        """Report on an object, in its namespace (events.k8s.io/v1).

        Args:
            regarding: What it is about.
            reason: A word in UpperCamelCase.
            note: For people; cut at 1,024 bytes.
            action: A word in UpperCamelCase for what we did.
            warning: Whether somebody should do something about it.
            at: When it happened, in seconds since the epoch; 0 for now.

        Returns:
            MISSING where the namespace is gone or going.
        """
        metadata = {"name": _event_name(regarding.name), "namespace": regarding.namespace}
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": metadata,
            "eventTime": micro_time(at or time.time()),
            "reportingController": REPORTING_CONTROLLER,
            "reportingInstance": self._instance[:128],
            "action": action,
            "reason": reason,
            "regarding": {
                "apiVersion": regarding.api_version,
                "kind": regarding.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
            "note": note.encode()[:MAX_NOTE].decode(errors="ignore"),
            "type": "Warning" if warning else "Normal",
        }
        path = path_of("apis", "events.k8s.io", "v1", "namespaces", regarding.namespace, "events")
        answer = await self._connection.request("POST", path, body=event, accept=METADATA_ONLY)
        if answer.status and (answer.status.code == NOT_FOUND or answer.status.has_cause(TERMINATING)):
            return Written.MISSING
        answer.done("event")
        return Written.DONE

    async def node_ready(self, name: str) -> bool | None:
        """Read whether a node is Ready; None where there is no such node.

        Asked for when it matters: a watch would bring every node's every heartbeat.
        """
        answer = await self._connection.request("GET", path_of("api", "v1", "nodes", name))
        if answer.is_missing("nodes", name):
            return None
        try:
            conditions = _node.decode(answer.done(f"node {name}")).status.conditions or ()
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no node: {error}") from error
        return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)

    async def get_lease(self, namespace: str, name: str) -> LeaseView | None:
        """Read a Lease; None where there is none."""
        path = path_of("apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", name)
        answer = await self._connection.request("GET", path)
        if answer.is_missing("leases", name):
            return None
        return decode_lease(answer.done(f"lease {namespace}/{name}"))

    async def create_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        """Create a Lease and return it; None where somebody else was first. Its version is not looked at."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": encode_spec(lease),
        }
        path = path_of("apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases")
        answer = await self._connection.request("POST", path, body=body)
        if answer.status and answer.status.code == CONFLICT:
            return None
        return decode_lease(answer.done(f"lease {namespace}/{name}"))

    async def update_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        """Write a Lease that still has this version and return it; None where it has not, or is gone.

        A merge patch that names the version, so that what others have put on the Lease stays.
        """
        body = {"metadata": {"resourceVersion": lease.resource_version}, "spec": encode_spec(lease)}
        path = path_of("apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", name)
        answer = await self._connection.request("PATCH", path, body=body, content_type="application/merge-patch+json")
        if answer.status and (answer.status.code == CONFLICT or answer.is_missing("leases", name)):
            return None
        return decode_lease(answer.done(f"lease {namespace}/{name}"))

    async def _patch(self, path: str, patch: object, content_type: str) -> tuple[Written, bytes]:
        answer = await self._connection.request(
            "PATCH", path, body=patch, content_type=content_type, accept=METADATA_ONLY
        )
        if answer.status is None:
            return Written.DONE, answer.body
        if answer.status.code == NOT_FOUND and answer.status.reason == "NotFound":
            return Written.MISSING, b""
        # A 422 about no object in particular: the patch does not fit. One about the pod: its result would not be valid.
        unfit = answer.status.code == UNPROCESSABLE and not (answer.status.details and answer.status.details.name)
        if unfit or answer.status.code == CONFLICT:
            return Written.CONFLICT, b""
        raise refusal(f"PATCH {path}", answer.status)

    def _watch_event(self, line: bytes) -> WatchEvent:
        try:
            event = _event.decode(line)
            if event.type == "BOOKMARK":
                return WatchEvent(event.type, _object.decode(event.object).metadata.resource_version, None)
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's watch sent what is no event: {error}") from error
        if event.type == "ERROR":
            # Whatever it says, the API server has lost the thread: only a list tells where we are.
            raise ApiGoneError(str(refusal("watch", decode_status(event.object))))
        pod = self._decoder.pod(event.object)
        return WatchEvent(event.type, pod.resource_version, pod)


def _event_name(name: str) -> str:
    return f"{re.sub(r'[-.]+$', '', name[:200])}.{secrets.token_hex(8)}"
