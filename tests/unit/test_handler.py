from __future__ import annotations

import copy
import json
from base64 import b64decode
from typing import Any

import pytest

from at_least_semaphore_pod_hook.admission.handler import Decision
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from at_least_semaphore_pod_hook.errors import InvalidInputError
from tests.unit.fakes import PREFIX, notes, pod, review
from tests.unit.webhook import KEY, Webhook, apply, permit_of, sidecars

ANNOTATION = "/metadata/annotations/" + PREFIX.replace("/", "~1")


@pytest.fixture
def webhook() -> Webhook:
    return Webhook()


@pytest.fixture
def native() -> Webhook:
    return Webhook(native=True)


async def test_the_golden_patch_of_an_ordinary_sidecar(webhook: Webhook) -> None:
    response = await webhook.ask(pod())
    (permit,) = await webhook.held()
    assert response["patchType"] == "JSONPatch"
    assert json.loads(b64decode(response["patch"])) == [
        {"op": "add", "path": ANNOTATION + "fencing-token", "value": "1800000000000000"},
        {"op": "add", "path": "/metadata/labels", "value": {PREFIX + "key": "resource-name"}},
        {
            "op": "add",
            "path": "/spec/containers/-",
            "value": {
                "name": "at-least-semaphore-pod-sidecar",
                "image": "image:1",
                "imagePullPolicy": "IfNotPresent",
                "args": ["sidecar", "--log-level=info", "default/resource-name", permit],
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                ],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}},
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            },
        },
    ]


async def test_a_native_sidecar_comes_before_the_other_init_containers(native: Webhook) -> None:
    first = await native.create(pod())
    assert [c["name"] for c in first["spec"]["initContainers"]] == [SIDECAR_NAME]
    assert first["spec"]["initContainers"][0]["restartPolicy"] == "Always"
    second = await native.create(pod("web-1", spec={"initContainers": [{"name": "init"}]}))
    assert [c["name"] for c in second["spec"]["initContainers"]] == [SIDECAR_NAME, "init"]


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"kind": {"group": "", "version": "v1", "kind": "Service"}},
        {"kind": {"group": "metrics.k8s.io", "version": "v1", "kind": "Pod"}},
        {"subResource": "eviction"},
    ],
)
async def test_what_creates_no_pod_is_left_alone(webhook: Webhook, request_: dict[str, Any]) -> None:
    response = await webhook.ask(request_.pop("object", pod()), **request_)
    assert (response["allowed"], response.get("patch"), response["decision"]) == (True, None, Decision.ALLOWED)
    assert webhook.store.calls == []


async def test_a_pod_that_has_not_opted_in_is_left_alone(webhook: Webhook) -> None:
    variants: tuple[dict[str, Any], ...] = ({"annotations": None}, {"annotations": {}}, {"annotations": {"a": "b"}})
    for metadata in variants:
        response = await webhook.ask(pod(metadata=metadata))
        assert (response["allowed"], response.get("patch")) == (True, None)
    assert webhook.store.calls == []


async def test_full_is_denied_with_key_count_and_holders(webhook: Webhook) -> None:
    for number in range(3):
        created = await webhook.create(pod(f"web-{number}"))
    await webhook.store.renew(KEY, permit_of(created), "web-2")
    response = await webhook.ask(pod("web-3"))
    assert (response["allowed"], response["decision"]) == (False, Decision.DENIED)
    assert response["status"]["code"] == 403
    message = response["status"]["message"]
    assert message.startswith("no semaphore available: 3 of 3 permits of default/resource-name are held by web-")
    response = await webhook.ask(pod(None, metadata={"annotations": notes(length="2")}))
    assert "3 of 2 permits" in response["status"]["message"]


async def test_a_bad_annotation_is_denied_and_takes_nothing(webhook: Webhook) -> None:
    response = await webhook.ask(pod(metadata={"annotations": notes(length="many")}))
    assert (response["allowed"], response["status"]["code"], response["decision"]) == (False, 400, Decision.DENIED)
    assert f"annotation {PREFIX}length: 'many' is not accepted" in response["status"]["message"]
    assert webhook.store.calls == []


@pytest.mark.parametrize("namespace", ["", "a/b", "a}b", "A", "x" * 64, "-a"])
async def test_a_namespace_that_is_none_is_refused(webhook: Webhook, namespace: str) -> None:
    response = await webhook.ask(pod(), namespace=namespace)
    assert response["status"]["code"] == 400
    assert webhook.store.calls == []


@pytest.mark.parametrize("object_", [None, [], "pod", {"metadata": {"annotations": {"a": 1}}}, {"spec": []}])
async def test_an_object_that_is_no_pod_is_refused(webhook: Webhook, object_: Any) -> None:
    response = await webhook.ask(object_)
    assert (response["allowed"], response["status"]["code"]) == (False, 400)


async def test_a_container_that_is_none_is_refused_before_a_permit_is_taken(webhook: Webhook) -> None:
    response = await webhook.ask(pod(spec={"containers": [{"name": SIDECAR_NAME, "args": 1}]}))
    assert response["status"]["code"] == 400
    assert webhook.store.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {}}',
        json.dumps(review({}) | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps(review({}) | {"kind": "Pod"}).encode(),
        json.dumps(review({}, uid="")).encode(),
        json.dumps(review({}, uid=7)).encode(),
        b"[" * 100_000,
    ],
)
async def test_a_malformed_review_has_nobody_to_answer(webhook: Webhook, body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        await webhook.handler.handle(body, 1)


async def test_an_unreachable_store_is_503(webhook: Webhook) -> None:
    webhook.store.faults = {"acquire": ["fail before"]}
    response = await webhook.ask(pod())
    assert (response["allowed"], response["status"]["code"], response["decision"]) == (False, 503, Decision.ERRORED)


async def test_a_hanging_store_is_503_within_the_deadline(webhook: Webhook) -> None:
    webhook.store.faults = {"acquire": ["hang before"]}
    answer = await webhook.handler.handle(json.dumps(review(pod())).encode(), 0.05)
    assert json.loads(answer.body)["response"]["status"]["code"] == 503


async def test_an_unexpected_exception_answers_and_takes_no_permit(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("at_least_semaphore_pod_hook.admission.inject.patch", broken)
    response = await webhook.ask(pod())
    assert (response["allowed"], response["status"]["code"], response["decision"]) == (False, 500, Decision.ERRORED)
    await webhook.service.close()
    assert await webhook.held() == []


async def test_dry_runs_answer_and_take_nothing(webhook: Webhook) -> None:
    for number in range(5):
        created = await webhook.create(pod(f"web-{number}"), dryRun=True)
        assert permit_of(created)
    assert webhook.store._semaphores == {}
    for number in range(3):
        await webhook.create(pod(f"web-{number}"))
    response = await webhook.ask(pod("web-3"), dryRun=True)
    assert response["status"]["code"] == 403


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("name", ["web-0", None])
async def test_a_reinvocation_changes_nothing(is_native: bool, name: str | None) -> None:
    webhook = Webhook(native=is_native)
    once = await webhook.create(pod(name))
    response = await webhook.ask(once, uid="another-round")
    assert response["allowed"]
    assert "patch" not in response
    # The API server fills in defaults between two rounds.
    defaulted = copy.deepcopy(once)
    ((_, sidecar),) = sidecars(defaulted)
    sidecar["terminationMessagePath"] = "/dev/termination-log"
    sidecar["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    assert "patch" not in await webhook.ask(defaulted)
    assert await webhook.held() == [permit_of(once)]


async def test_a_reinvocation_mends_a_sidecar_that_was_changed(webhook: Webhook) -> None:
    once = await webhook.create(pod())
    changed = copy.deepcopy(once)
    sidecars(changed)[0][1]["securityContext"]["runAsUser"] = 0
    assert await webhook.create(changed) == once
    assert len(await webhook.held()) == 1


async def test_a_copy_of_a_running_pod_gets_a_permit_of_its_own(webhook: Webhook) -> None:
    original = await webhook.create(pod())
    await webhook.store.renew(KEY, permit_of(original), "web-0")
    copied = await webhook.create(copy.deepcopy(original))
    assert permit_of(copied) != permit_of(original)
    assert len(sidecars(copied)) == 1
    assert sorted(await webhook.held()) == sorted([permit_of(original), permit_of(copied)])


async def test_a_copy_of_a_pod_whose_sidecar_does_not_run_yet_gets_a_permit_of_its_own(webhook: Webhook) -> None:
    original = await webhook.create(pod())
    for change in (
        {"name": "web-copy"},
        {"uid": "0c6c2a31-0000-0000-0000-000000000000"},
        {"generateName": "web-"},
        {"creationTimestamp": "2026-01-01T00:00:00Z"},
    ):
        other = copy.deepcopy(original)
        other["metadata"] |= change
        response = await webhook.ask(other)
        if response["allowed"]:
            assert permit_of(apply(other, response)) != permit_of(original)
        else:
            assert response["status"]["code"] == 403
    other_user = await webhook.ask(copy.deepcopy(original), userInfo={"username": "mallory"})
    assert other_user["status"]["code"] == 403
    assert len(await webhook.held()) == 3


async def test_a_copy_that_still_has_its_originals_status_gets_a_permit_of_its_own(webhook: Webhook) -> None:
    original = await webhook.create(pod())
    copied = await webhook.create(copy.deepcopy(original) | {"status": {"phase": "Pending"}})
    assert permit_of(copied) != permit_of(original)
    in_flight = await webhook.create(pod("web-1")) | {"status": {}}
    assert await webhook.create(copy.deepcopy(in_flight)) == in_flight


async def test_a_permit_from_another_semaphore_does_not_count(webhook: Webhook) -> None:
    original = await webhook.create(pod())
    moved = copy.deepcopy(original)
    moved["metadata"]["annotations"][PREFIX + "key"] = "other"
    changed = await webhook.create(moved)
    ((_, sidecar),) = sidecars(changed)
    assert sidecar["args"][-2] == "default/other"
    assert sidecar["args"][-1] != permit_of(original)


async def test_a_sidecar_in_the_wrong_place_is_moved(native: Webhook) -> None:
    ordinary = await Webhook().create(pod())
    moved = await native.create(ordinary)
    assert [section for section, _ in sidecars(moved)] == ["initContainers"]
    back = await Webhook().create(moved)
    assert [section for section, _ in sidecars(back)] == ["containers"]


async def test_several_copied_sidecars_become_one(webhook: Webhook) -> None:
    once = await webhook.create(pod())
    twice = copy.deepcopy(once)
    sidecar = sidecars(once)[0][1]
    twice["spec"]["containers"] = [sidecar, {"name": "main"}, sidecar]
    twice["spec"]["initContainers"] = [{"name": "init"}, sidecar]
    mended = await webhook.create(twice)
    assert len(sidecars(mended)) == 1
    assert [c["name"] for c in mended["spec"]["containers"]] == [SIDECAR_NAME, "main"]
    assert [c["name"] for c in mended["spec"]["initContainers"]] == ["init"]


async def test_an_opted_in_pod_is_labelled_with_its_key(webhook: Webhook) -> None:
    created = await webhook.create(pod(metadata={"labels": {"app": "web"}}))
    assert created["metadata"]["labels"] == {"app": "web", PREFIX + "key": "resource-name"}
    moved = copy.deepcopy(created)
    moved["metadata"]["annotations"][PREFIX + "key"] = "other"
    assert (await webhook.create(moved))["metadata"]["labels"][PREFIX + "key"] == "other"


async def test_the_owner_of_a_denied_pod_is_noted(webhook: Webhook) -> None:
    owners = [{"kind": "X", "name": "x"}, {"kind": "ReplicaSet", "name": "web", "controller": True}]
    owned = pod(None, metadata={"ownerReferences": owners, "annotations": notes(length="1")})
    await webhook.create(owned)
    assert (await webhook.store.state(KEY)).denied == ()
    await webhook.ask(owned, dryRun=True)
    assert (await webhook.store.state(KEY)).denied == ()
    assert (await webhook.ask(owned))["status"]["code"] == 403
    assert (await webhook.store.state(KEY)).denied == ("ReplicaSet/web",)


async def test_a_disagreement_about_the_length_warns(webhook: Webhook) -> None:
    assert "warnings" not in await webhook.ask(pod())
    response = await webhook.ask(pod("web-1", metadata={"name": "web-1", "annotations": notes(length="5")}))
    assert response["warnings"] == [
        "pods of semaphore default/resource-name disagree on its length: 3 so far, "
        "5 by this pod's annotation, which now applies"
    ]


SECRET_VOLUME = {"name": SIDECAR_NAME, "secret": {"secretName": "store"}}
OTHER_VOLUME = {"name": "data", "emptyDir": {"medium": SIDECAR_NAME}}


async def test_the_golden_patch_of_a_sidecar_with_a_secret() -> None:
    webhook = Webhook(native=True, secret="store")
    response = await webhook.ask(pod())
    operations = {operation["path"]: operation for operation in json.loads(b64decode(response["patch"]))}
    assert operations["/spec/volumes"] == {"op": "add", "path": "/spec/volumes", "value": [SECRET_VOLUME]}
    (sidecar,) = operations["/spec/initContainers"]["value"]
    assert sidecar["volumeMounts"] == [
        {"name": SIDECAR_NAME, "mountPath": "/var/run/at-least-semaphore-pod-hook", "readOnly": True}
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, [SECRET_VOLUME]),
        ([], [SECRET_VOLUME]),
        ([OTHER_VOLUME], [OTHER_VOLUME, SECRET_VOLUME]),
        ([SECRET_VOLUME, OTHER_VOLUME], [SECRET_VOLUME, OTHER_VOLUME]),
        ([{"name": SIDECAR_NAME, "emptyDir": {}}, OTHER_VOLUME], [SECRET_VOLUME, OTHER_VOLUME]),
        (
            [SECRET_VOLUME, OTHER_VOLUME, SECRET_VOLUME, {"name": SIDECAR_NAME, "secret": {"secretName": "other"}}],
            [SECRET_VOLUME, OTHER_VOLUME],
        ),
    ],
)
@pytest.mark.parametrize("native", [False, True])
async def test_the_sidecars_volume_is_there_once_whatever_the_pod_has(before: Any, after: Any, native: bool) -> None:
    webhook = Webhook(native=native, secret="store")
    created = await webhook.create(pod(spec={"volumes": before} if before is not None else {}))
    assert created["spec"]["volumes"] == after
    # As the API server hands it in again, with its defaults.
    for volume in created["spec"]["volumes"]:
        if "secret" in volume:
            volume["secret"] = volume["secret"] | {"defaultMode": 420}
    assert await webhook.create(created) == created


async def test_a_copied_pods_volume_goes_where_there_is_no_secret() -> None:
    copied = await Webhook(secret="store").create(pod(spec={"volumes": [OTHER_VOLUME]}))
    created = await Webhook().create(copied)
    assert created["spec"]["volumes"] == [OTHER_VOLUME]
    ((_, sidecar),) = sidecars(created)
    assert "volumeMounts" not in sidecar


async def test_a_volume_that_is_none_is_left_to_the_api_server() -> None:
    created = await Webhook(secret="store").create(pod(spec={"volumes": [SIDECAR_NAME]}))
    assert created["spec"]["volumes"] == [SIDECAR_NAME, SECRET_VOLUME]
