"""What is read of a pod."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from at_least_semaphore_pod_hook.controller.pods import ContainerView, Owner
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from tests.unit.fakes import PREFIX
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
    assert not any((pod.others_terminated, pod.others_ended, pod.sidecar_started, pod.finished))


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
    ("policy", "states", "deleting", "terminated", "for_good"),
    [
        ("Never", [ended(), ended(1)], False, True, True),
        ("Never", [ended(), RUNNING], False, False, False),
        ("OnFailure", [ended(), ended()], False, True, True),
        ("OnFailure", [ended(), ended(1)], False, True, False),
        ("OnFailure", [ended(), ended(1)], True, True, True),
        ("Always", [ended(), ended()], False, True, False),
        ("Always", [ended(), ended()], True, True, True),
        ("Always", [ended(), {"waiting": {"reason": "CrashLoopBackOff"}}], False, False, False),
    ],
)
def test_whether_the_others_have_ended(
    policy: str, states: list[dict[str, Any]], deleting: bool, terminated: bool, for_good: bool
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
    assert (pod.others_terminated, pod.others_ended) == (terminated, for_good)


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
