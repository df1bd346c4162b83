"""Admission of pods that wait behind our gate while no permit is free."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest

from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.admission.handler import Decision
from tests.unit.fakes import PREFIX, notes, pod
from tests.unit.webhook import KEY, Webhook, permit_of, sidecars

ANNOTATION = "/metadata/annotations/" + PREFIX.replace("/", "~1")
GATE = {"name": PREFIX + "permit"}
ARRIVED = PREFIX + "arrived"
TOKEN = PREFIX + "fencing-token"


@pytest.fixture
def gate() -> Webhook:
    return Webhook(native=True, when_full=WhenFull.GATE)


def gates(object_: dict[str, Any]) -> list[dict[str, str]]:
    return list(object_["spec"].get("schedulingGates") or [])


async def test_a_gated_pod_gets_gate_stamp_label_and_sidecar_and_the_store_hears_nothing(gate: Webhook) -> None:
    response = await gate.ask(pod())
    *others, sidecar = json.loads(b64decode(response["patch"]))
    assert others == [
        {"op": "add", "path": "/spec/schedulingGates", "value": [GATE]},
        {"op": "add", "path": ANNOTATION + "arrived", "value": "1800000000000000"},
        {"op": "add", "path": "/metadata/labels", "value": {PREFIX + "key": "resource-name"}},
    ]
    assert sidecar["value"][0]["args"][-2:] == ["default/resource-name", "$(POD_UID)"]
    assert response["decision"] is Decision.PATCHED
    assert gate.store.calls == []
    assert gate.granted == gate.denied == []


async def test_the_annotation_overrides_the_flag_both_ways(gate: Webhook) -> None:
    plain = Webhook(native=True)
    waiting = await plain.create(pod(metadata={"annotations": notes(**{"when-full": "gate"})}))
    assert gates(waiting) == [GATE]
    denied = await gate.create(pod(metadata={"annotations": notes(**{"when-full": "deny"})}))
    assert gates(denied) == []
    assert await gate.held() == [permit_of(denied)]


async def test_asked_again_nothing_changes(gate: Webhook) -> None:
    once = await gate.create(pod())
    gate.now += 3
    again = await gate.ask(once)
    assert "patch" not in again


async def test_a_stamp_that_is_not_this_requests_own_is_replaced(gate: Webhook) -> None:
    once = await gate.create(pod())
    for stamp in ("1", "x", "", "9" * 16, str(1_800_000_000_000_000 - 31_000_000)):
        once["metadata"]["annotations"][ARRIVED] = stamp
        assert (await gate.create(once))["metadata"]["annotations"][ARRIVED] == "1800000000000000"
    gate.now += 1
    without_gate = pod(metadata={"annotations": notes(arrived="1800000000000000")})
    assert (await gate.create(without_gate))["metadata"]["annotations"][ARRIVED] == "1800000001000000"
    copy = once | {"metadata": once["metadata"] | {"uid": "u"}}
    assert (await gate.create(copy))["metadata"]["annotations"][ARRIVED] == "1800000001000000"


async def test_a_copy_of_a_pod_that_was_served_waits_anew(gate: Webhook) -> None:
    served = await gate.create(pod())
    del served["spec"]["schedulingGates"]
    served["metadata"]["annotations"] |= {TOKEN: "7", ARRIVED: "1"}
    copy = await gate.create(served)
    assert gates(copy) == [GATE]
    assert TOKEN not in copy["metadata"]["annotations"]
    assert copy["metadata"]["annotations"][ARRIVED] == "1800000000000000"
    assert len(sidecars(copy)) == 1


async def test_other_gates_stay(gate: Webhook) -> None:
    held = await gate.create(pod(spec={"schedulingGates": [{"name": "example.com/hold"}]}))
    assert gates(held) == [{"name": "example.com/hold"}, GATE]


async def test_a_pod_that_is_denied_when_full_does_not_wait_behind_a_gate_that_it_copied(gate: Webhook) -> None:
    waiting = await gate.create(pod(spec={"schedulingGates": [{"name": "example.com/hold"}]}))
    waiting["metadata"]["annotations"][PREFIX + "when-full"] = "deny"
    taken = await gate.create(waiting)
    assert gates(taken) == [{"name": "example.com/hold"}]
    assert ARRIVED not in taken["metadata"]["annotations"]
    (holder,) = (await gate.store.state(KEY)).holders
    assert taken["metadata"]["annotations"][TOKEN] == str(holder.token)
    assert permit_of(taken) == holder.permit


async def test_a_pod_that_names_its_node_cannot_wait(gate: Webhook) -> None:
    response = await gate.ask(pod(spec={"nodeName": "node-1"}))
    assert response["allowed"]
    (warning,) = response["warnings"]
    assert "spec.nodeName" in warning
    assert len(await gate.held()) == 1


async def test_a_dry_run_is_the_same(gate: Webhook) -> None:
    assert (await gate.create(pod(), dryRun=True)) == await gate.create(pod())


@pytest.mark.parametrize("name", ["when-full", "release-on"])
async def test_what_is_no_choice_is_refused_by_name_and_value(gate: Webhook, name: str) -> None:
    response = await gate.ask(pod(metadata={"annotations": notes(**{name: "later"})}))
    assert (response["allowed"], response["status"]["code"]) == (False, 400)
    assert f"{PREFIX}{name}: 'later'" in response["status"]["message"]


@pytest.mark.parametrize(
    ("native", "policy", "release_on", "expected"),
    [
        (True, "Never", "exit", []),
        (True, "Always", "sigterm", []),
        (False, "Always", None, []),
        (False, "Always", "exit", ["--release-on=exit"]),
        (False, "Never", None, ["--end-with-pod=true"]),
        (False, "OnFailure", "exit", ["--release-on=exit", "--end-with-pod=true"]),
    ],
)
async def test_what_the_sidecar_is_told_of_the_pods_end(
    native: bool, policy: str, release_on: str | None, expected: list[str]
) -> None:
    annotations = notes(**{"release-on": release_on})
    created = await Webhook(native=native).create(
        pod(metadata={"annotations": annotations}, spec={"restartPolicy": policy})
    )
    ((_, sidecar),) = sidecars(created)
    assert sidecar["args"][2:-2] == expected


async def test_grants_and_denials_are_counted_once_and_dry_runs_never(gate: Webhook) -> None:
    webhook = Webhook()
    single = pod(metadata={"annotations": notes(length="1")})
    created = await webhook.create(single)
    await webhook.create(created)
    await webhook.ask(pod("web-1", metadata={"annotations": notes(length="1")}))
    await webhook.ask(pod("web-2", metadata={"annotations": notes(length="1")}), dryRun=True)
    assert (webhook.granted, webhook.denied) == ([KEY], [KEY])
