"""What is read of a pod."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from at_least_semaphore_pod_hook.controller.pods import ContainerView, Owner
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from tests.unit.fakes import PREFIX, notes
from tests.unit.views import DECODER, SIDECAR, document, pod_view

ARGS = ["sidecar", "--flag", "default/key", "permit-1"]
NATIVE = {"name": SIDECAR, "args": ARGS, "restartPolicy": "Always"}
RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}


def ended(code: int = 0) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Completed"}}


def statuses(**states: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", "-"), "state": state, "started": "running" in state}
        for name, state in states.items()
    ]


def test_metadata() -> None:
    owners = [
        {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "0"},
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "1", "controller": True},
    ]
    metadata = {
        "annotations": {PREFIX + "key": "k", "kubectl.kubernetes.io/last-applied-configuration": "x" * 1000},
        "labels": {"app": "web", PREFIX + "managed": "true"},
        "ownerReferences": owners,
        "deletionTimestamp": "2026-01-02T03:05:05Z",
        "deletionGracePeriodSeconds": 30,
        "managedFields": [{"anything": "at all"}],
    }
    spec = {"nodeName": "node-1", "schedulingGates": [{"name": "a"}, {"name": "b"}]}
    pod = pod_view(metadata=metadata, spec=spec, status={"phase": "Failed", "reason": "Evicted"})
    assert (pod.namespace, pod.name, pod.uid, pod.resource_version) == ("default", "web-0", "u", "1")
    assert pod.created == 1767323045.0
    assert (pod.deleting, pod.grace_seconds) == (True, 30)
    assert (pod.phase, pod.reason, pod.node, pod.finished) == ("Failed", "Evicted", "node-1", True)
    assert pod.annotations == {PREFIX + "key": "k"}
    assert pod.labels == {PREFIX + "managed": "true"}
    assert pod.owner == Owner("apps/v1", "ReplicaSet", "web-5d", "1")
    assert pod.gates == ("a", "b")


def test_the_least_that_a_pod_has() -> None:
    pod = pod_view()
    assert (pod.deleting, pod.grace_seconds, pod.owner, pod.sidecar, pod.gates) == (False, None, None, None, ())
    assert pod.containers == (ContainerView("main", init=False, native=False, state="", exit_code=None, started=False),)
    assert not any((pod.others_ended, pod.sidecar_started, pod.finished))


def test_a_waiter() -> None:
    annotations = notes(arrived="1767323045250000")
    spec = {
        "schedulingGates": [{"name": PREFIX + "permit"}],
        "initContainers": [NATIVE | {"args": ["sidecar", "default/key", "$(POD_UID)"]}],
    }
    pod = pod_view(uid="u-1", metadata={"annotations": annotations}, spec=spec)
    assert (pod.gated, pod.permit, pod.length, pod.expiration) == (True, "u-1", 3, 60)
    assert (pod.arrived, pod.came, pod.created) == (1767323045250000, 1767323045.25, 1767323045.0)
    assert (pod.let_in().gated, pod.let_in().gates, pod.let_in().uid) == (False, (), "u-1")


@pytest.mark.parametrize("stamp", ["", "x", "-1", "1", "9" * 17, "9" * 400])
def test_a_stamp_that_cannot_be_true_moves_nobody_forward_by_more_than_a_second(stamp: str) -> None:
    pod = pod_view(metadata={"annotations": notes(arrived=stamp)})
    assert pod.came == pod.created == pod.place[0]


def test_annotations_that_somebody_has_spoilt() -> None:
    pod = pod_view(metadata={"annotations": notes(length="many")}, spec={"initContainers": [NATIVE]})
    assert (pod.length, pod.expiration, pod.permit) == (0, 0, "permit-1")


@pytest.mark.parametrize(
    ("section", "release_on", "on_exit"),
    [
        ("initContainers", None, True),
        ("initContainers", "sigterm", False),
        ("containers", None, False),
        ("containers", "exit", True),
    ],
)
def test_when_the_permit_goes_back(section: str, release_on: str | None, on_exit: bool) -> None:
    pod = pod_view(metadata={"annotations": notes(**{"release-on": release_on})}, spec={section: [NATIVE]})
    assert pod.releases_on_exit is on_exit


@pytest.mark.parametrize("section", ["initContainers", "containers"])
def test_the_sidecar_is_found_by_its_name(section: str) -> None:
    spec: dict[str, Any] = {"containers": [{"name": "main", "args": ["x", "y"]}], "initContainers": [{"name": "setup"}]}
    spec[section].append(NATIVE)
    found = pod_view(spec=spec).sidecar
    assert found is not None
    assert (found.semaphore, found.permit) == ("default/key", "permit-1")
    assert found.container.native == (section == "initContainers")


@pytest.mark.parametrize("args", [None, [], ["sidecar"]])
def test_a_sidecar_without_arguments(args: list[str] | None) -> None:
    found = pod_view(spec={"initContainers": [{"name": SIDECAR, "args": args}]}).sidecar
    assert found is not None
    assert (found.semaphore, found.permit) == ("", "")


def test_a_started_sidecar() -> None:
    spec = {"initContainers": [NATIVE]}
    reported = statuses(**{SIDECAR: RUNNING})
    assert pod_view(spec=spec, status={"initContainerStatuses": reported}).sidecar_started
    reported[0]["started"] = False
    assert not pod_view(spec=spec, status={"initContainerStatuses": reported}).sidecar_started
    crashed = [{"name": SIDECAR, "started": True, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    assert not pod_view(spec=spec, status={"initContainerStatuses": crashed}).sidecar_started


@pytest.mark.parametrize(
    ("policy", "states", "deleting", "for_good"),
    [
        ("Never", [ended(), ended(1)], False, True),
        ("Never", [ended(), RUNNING], False, False),
        ("OnFailure", [ended(), ended()], False, True),
        ("OnFailure", [ended(), ended(1)], False, False),
        ("OnFailure", [ended(), ended(1)], True, True),
        ("Always", [ended(), ended()], False, False),
        ("Always", [ended(), ended()], True, True),
        ("Always", [ended(), {"waiting": {"reason": "CrashLoopBackOff"}}], False, False),
    ],
)
def test_whether_the_others_have_ended(
    policy: str, states: list[dict[str, Any]], deleting: bool, for_good: bool
) -> None:
    """Neither our sidecar, nor other native ones, nor init containers count."""
    spec = {
        "restartPolicy": policy,
        "initContainers": [NATIVE, {"name": "mesh", "restartPolicy": "Always"}, {"name": "setup"}],
        "containers": [{"name": "one"}, {"name": "two"}],
    }
    status = {
        "initContainerStatuses": statuses(**{SIDECAR: RUNNING}, mesh=RUNNING),
        "containerStatuses": statuses(one=states[0], two=states[1]),
    }
    metadata = {"deletionTimestamp": "2026-01-02T03:05:05Z"} if deleting else {}
    pod = pod_view(spec=spec, status=status, metadata=metadata)
    assert pod.others_ended == for_good


def test_an_ordinary_sidecar_is_not_waited_for() -> None:
    spec = {"restartPolicy": "Never", "containers": [{"name": "main"}, {"name": SIDECAR, "args": ARGS}]}
    status = {"containerStatuses": statuses(**{"main": ended(), SIDECAR: RUNNING})}
    assert pod_view(spec=spec, status=status).others_ended


@pytest.mark.parametrize("body", [b"", b"[]", b'{"metadata": 1}', b'{"metadata": {"creationTimestamp": "soon"}}'])
def test_what_is_no_pod(body: bytes) -> None:
    with pytest.raises(ApiUnavailableError, match="no pod"):
        DECODER.pod(body)


def test_a_page() -> None:
    body = {"metadata": {"resourceVersion": "9", "continue": "next"}, "items": [document("a"), document("b")]}
    page = DECODER.page(msgspec.json.encode(body))
    assert [pod.name for pod in page.pods] == ["a", "b"]
    assert (page.resource_version, page.more) == ("9", "next")
    assert DECODER.page(b'{"metadata": {"resourceVersion": "9"}, "items": null}').pods == []
    with pytest.raises(ApiUnavailableError, match="no list"):
        DECODER.page(b"{}")
