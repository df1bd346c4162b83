"""Letting all waiting pods go where the API server refuses, or where pods change meanwhile."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from at_least_semaphore_pod_hook.controller import release_gates as module
from at_least_semaphore_pod_hook.controller.effects import ungate
from at_least_semaphore_pod_hook.controller.release_gates import release_gates
from tests.unit.api_server import Server, serving, status
from tests.unit.fakes import PREFIX
from tests.unit.views import SIDECAR, document, pod_view

GATE = PREFIX + "permit"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATECOMERS_SECONDS", 0.0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as served:
        yield served


def waiting(name: str, *gates: str) -> dict[str, Any]:
    return document(name, uid=f"uid-{name}", spec={"schedulingGates": [{"name": gate} for gate in gates]})


class Pods:
    """Pods behind gates; a patch takes the gate away that it names, or ends as `refusals` say, one after the other."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = {pod["metadata"]["name"]: pod for pod in pods}
        self.refusals: dict[str, list[tuple[int, str]]] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": list(self.pods.values())})
        name = request.path.rpartition("/")[2]
        if self.refusals.get(name):
            code, reason = self.refusals[name].pop(0)
            return web.json_response(status(code, reason), status=code)
        for operation in await request.json():
            if operation["op"] == "remove":
                del self.pods[name]["spec"]["schedulingGates"][int(operation["path"].rpartition("/")[2])]
        return web.json_response({"metadata": {}})

    def gates(self, name: str) -> list[str]:
        return [gate["name"] for gate in self.pods[name]["spec"]["schedulingGates"]]


async def released(server: Server) -> bool:
    return await release_gates(str(server.kubeconfig), PREFIX, SIDECAR)


def test_a_patch_removes_our_gate_wherever_it_is_and_tests_what_it_removes() -> None:
    pod = pod_view(uid="u", spec={"schedulingGates": [{"name": "other/gate"}, {"name": GATE}]})
    assert ungate(pod, GATE) == [
        {"op": "test", "path": "/metadata/uid", "value": "u"},
        {"op": "test", "path": "/spec/schedulingGates/1", "value": {"name": GATE}},
        {"op": "remove", "path": "/spec/schedulingGates/1"},
    ]


async def test_only_our_gates_go_and_pods_that_changed_meanwhile_are_tried_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    pods = Pods(waiting("a", GATE), waiting("b", "other/gate", GATE), waiting("c", "other/gate"))
    pods.refusals["a"] = [(409, "Conflict")]
    server.handler = pods.handle
    with caplog.at_level("INFO"):
        assert await released(server)
    assert [pods.gates(name) for name in "abc"] == [[], ["other/gate"], ["other/gate"]]
    assert (caplog.records[-1].getMessage(), vars(caplog.records[-1])["count"]) == ("gates removed", 2)
    assert dict(server.requests[0].query)["fieldSelector"] == "spec.nodeName="


async def test_one_that_is_refused_holds_up_no_other(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_LOOKS", 3)
    pods = Pods(waiting("a", GATE), waiting("b", GATE))
    pods.refusals["a"] = [(403, "Forbidden")] * 3
    server.handler = pods.handle
    assert not await released(server)
    assert (pods.gates("a"), pods.gates("b")) == ([GATE], [])
    assert [record.getMessage() for record in caplog.records] == [
        *["gate not removed"] * 3,
        "pods still wait behind our gate",
    ]


async def test_without_an_api_server_it_says_why(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.refuse(403, "Forbidden")
    assert not await released(server)
    assert caplog.records[-1].getMessage() == "gates not removed"
    assert "403 Forbidden" in vars(caplog.records[-1])["reason"]
    server.kubeconfig.write_text(json.dumps({}))
    assert not await released(server)
