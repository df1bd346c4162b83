"""What the API server's answers become."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from at_least_semaphore_pod_hook.controller import connection
from at_least_semaphore_pod_hook.controller.kube import OWNERS, Reference, WatchEvent, Written
from at_least_semaphore_pod_hook.controller.leases import LeaseView
from at_least_semaphore_pod_hook.errors import ApiForbiddenError, ApiGoneError, ApiUnavailableError
from tests.unit.api_server import Server, serving, status, stream, watched
from tests.unit.views import document


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as served:
        yield served


async def test_a_list_is_read_page_by_page(server: Server) -> None:
    async def handler(request: web.Request) -> web.Response:
        more = "" if "continue" in request.query else "next"
        name = "b" if "continue" in request.query else "a"
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": more}, "items": [document(name)]})

    server.handler = handler
    pods, version = await server.kube.list_pods("ours=true")
    assert [pod.name for pod in pods] == ["a", "b"]
    assert version == "7"
    assert [dict(request.query) for request in server.requests] == [
        {"labelSelector": "ours=true", "limit": "500"},
        {"labelSelector": "ours=true", "limit": "500", "continue": "next"},
    ]


async def test_a_list_whose_next_page_has_expired(server: Server) -> None:
    async def handler(request: web.Request) -> web.Response:
        if "continue" in request.query:
            return web.json_response(status(410, "Expired"), status=410)
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [document()]})

    server.handler = handler
    with pytest.raises(ApiGoneError, match="it is Expired"):
        await server.kube.list_pods("ours=true")


async def test_a_watch(server: Server) -> None:
    mark = {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": "9"}, "spec": {}}}
    server.handler = stream({"type": "ADDED", "object": document(version=4)}, mark)
    first, second = await watched(server)
    assert first.pod is not None
    assert (first.kind, first.resource_version, first.pod.name) == ("ADDED", "4", "web-0")
    assert second == WatchEvent("BOOKMARK", "9", None)
    assert dict(server.requests[0].query) == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "labelSelector": "ours=true",
        "resourceVersion": "3",
        "timeoutSeconds": "1",
    }


@pytest.mark.parametrize("code", [410, 500])
async def test_an_error_within_a_watch_needs_a_list(server: Server, code: int) -> None:
    server.handler = stream({"type": "ERROR", "object": status(code, "Expired")})
    with pytest.raises(ApiGoneError, match="Expired"):
        await watched(server)


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (410, {}, ApiGoneError),
        (504, {"causes": [{"reason": "ResourceVersionTooLarge"}]}, ApiGoneError),
        (403, {}, ApiForbiddenError),
        (429, {}, ApiUnavailableError),
    ],
)
async def test_a_watch_that_is_refused(
    server: Server, code: int, details: dict[str, Any], error: type[Exception]
) -> None:
    server.refuse(code, "Because", **details)
    with pytest.raises(error) as raised:
        await watched(server)
    assert raised.type is error


async def test_a_watch_that_goes_silent_or_breaks_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_GRACE_SECONDS", -0.8)
    server.handler = stream({"type": "ADDED", "object": document()}, then=1)
    with pytest.raises(ApiUnavailableError, match="SocketTimeoutError"):
        await watched(server)

    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    server.handler = broken
    with pytest.raises(ApiUnavailableError):
        await watched(server)


async def test_noise_within_a_watch(server: Server) -> None:
    server.handler = stream([])
    with pytest.raises(ApiUnavailableError, match="no event"):
        await watched(server)


async def test_only_the_api_server_itself_can_say_that_a_pod_is_gone(server: Server) -> None:
    server.refuse(404, "NotFound", name="web-0", kind="pods")
    assert await server.kube.get_pod("default", "web-0") is None
    server.refuse(404, "NotFound", name="default", kind="namespaces")
    with pytest.raises(ApiUnavailableError):
        await server.kube.get_pod("default", "web-0")
    server.answer(404, "no such page")
    with pytest.raises(ApiUnavailableError, match="404"):
        await server.kube.get_pod("default", "web-0")
    server.answer(200, document())
    found = await server.kube.get_pod("default", "web-0")
    assert found is not None
    assert found.uid == "u"
    assert "resourceVersion" not in server.requests[-1].query


@pytest.mark.parametrize(
    ("code", "reason", "details", "written"),
    [
        (200, "", {}, Written.DONE),
        (404, "NotFound", {"name": "web-0", "kind": "pods"}, Written.MISSING),
        (409, "Conflict", {"name": "web-0", "kind": "pods"}, Written.CONFLICT),
        (422, "Invalid", {}, Written.CONFLICT),
    ],
)
async def test_how_a_patch_ends(
    server: Server, code: int, reason: str, details: dict[str, Any], written: Written
) -> None:
    server.answer(code, {"metadata": {"uid": "u"}} if code == 200 else status(code, reason, **details))
    patch = [{"op": "remove", "path": "/spec/schedulingGates/0"}]
    assert await server.kube.patch_pod("default", "web-0", patch) is written
    touched = Reference("batch/v1", "Job", "default", "web", "u") if written is Written.DONE else None
    assert await server.kube.touch_owner("Job", "default", "web", "a/b", "1") == touched
    pod, owner = server.requests
    assert (pod.method, pod.path) == ("PATCH", "/api/v1/namespaces/default/pods/web-0")
    assert pod.headers["Content-Type"] == "application/json-patch+json"
    assert owner.path == "/apis/batch/v1/namespaces/default/jobs/web"
    assert owner.headers["Content-Type"] == "application/merge-patch+json"
    assert server.bodies == [patch, {"metadata": {"annotations": {"a/b": "1"}}}]


async def test_owners_of_every_kind(server: Server) -> None:
    server.answer(200, {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"uid": "u"}})
    touched = [await server.kube.touch_owner(kind, "default", "web", "a/b", "1") for kind in OWNERS]
    assert [(owner.api_version, owner.kind) for owner in touched if owner] == [
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("batch/v1", "Job"),
        ("v1", "ReplicationController"),
    ]
    assert server.requests[-1].path == "/api/v1/namespaces/default/replicationcontrollers/web"
    server.answer(200, [])
    with pytest.raises(ApiUnavailableError, match="no object"):
        await server.kube.touch_owner("Job", "default", "web", "a/b", "1")


async def test_a_patch_that_makes_no_valid_pod_is_an_error(server: Server) -> None:
    server.refuse(422, "Invalid", name="web-0", kind="Pod")
    with pytest.raises(ApiUnavailableError, match="Invalid"):
        await server.kube.patch_pod("default", "web-0", [])


async def test_an_event(server: Server) -> None:
    server.answer(201, {})
    regarding = Reference("v1", "Pod", "default", "x" * 199 + "-" + "y" * 53, "u")
    assert await server.kube.create_event(regarding, "Waiting", "ä" * 2000, action="Wait") is Written.DONE
    (event,) = server.bodies
    assert event["metadata"]["name"].startswith("x" * 199 + ".")
    assert len(event["note"].encode()) == 1024
    assert event["reportingInstance"] == "hook-0"
    server.refuse(403, "Forbidden", causes=[{"reason": "NamespaceTerminating"}])
    assert await server.kube.create_event(regarding, "Waiting", "n", action="Wait") is Written.MISSING
    server.refuse(403, "Forbidden")
    with pytest.raises(ApiForbiddenError):
        await server.kube.create_event(regarding, "Waiting", "n", action="Wait", warning=True, at=1.5)
    assert server.bodies[-1]["type"] == "Warning"
    assert server.bodies[-1]["eventTime"] == "1970-01-01T00:00:01.500000Z"


async def test_leases(server: Server) -> None:
    lease = LeaseView("5", "me", 4, 0, "", "")
    server.answer(200, {"metadata": {"resourceVersion": "6"}, "spec": {"holderIdentity": "me"}})
    assert await server.kube.update_lease("hook", "leader", lease) == LeaseView("6", "me", 0, 0, "", "")
    assert server.bodies[0]["metadata"] == {"resourceVersion": "5"}
    server.refuse(409, "Conflict", name="leader", kind="leases")
    assert await server.kube.update_lease("hook", "leader", lease) is None
    assert await server.kube.create_lease("hook", "leader", lease) is None
    server.refuse(404, "NotFound", name="leader", kind="leases")
    assert await server.kube.update_lease("hook", "leader", lease) is None
    assert await server.kube.get_lease("hook", "leader") is None
    # The namespace is missing: there is nothing to wait for, and nothing that could be created.
    server.refuse(404, "NotFound", name="hook", kind="namespaces")
    with pytest.raises(ApiUnavailableError):
        await server.kube.create_lease("hook", "leader", lease)


async def test_nodes(server: Server) -> None:
    server.answer(200, {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert await server.kube.node_ready("n") is False
    server.answer(200, {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert await server.kube.node_ready("n") is True
    server.refuse(404, "NotFound", name="n", kind="nodes")
    assert await server.kube.node_ready("n") is None
    server.answer(200, [])
    with pytest.raises(ApiUnavailableError, match="no node"):
        await server.kube.node_ready("n")
