"""What is injected where sidecars renew at the webhook: a token and whom to trust, and nothing of a store."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from tests.unit.fakes import PREFIX, pod
from tests.unit.webhook import KEY, Webhook, apply, sidecars

AUDIENCE = PREFIX.rstrip("/")
TOKEN = {"audience": AUDIENCE, "expirationSeconds": 600, "path": "token"}
VOLUME = {"name": SIDECAR_NAME, "projected": {"sources": [{"serviceAccountToken": TOKEN}]}}
OTHER_VOLUME = {"name": "data", "emptyDir": {}}


async def test_the_golden_patch_of_a_sidecar_with_a_token() -> None:
    webhook = Webhook(native=True, audience=AUDIENCE)
    created = await webhook.create(pod(spec={"volumes": [OTHER_VOLUME]}))
    ((section, sidecar),) = sidecars(created)
    assert section == "initContainers"
    assert sidecar["env"] == [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "AT_LEAST_SEMAPHORE_PERMIT_AUTHORITIES", "value": webhook.authorities},
    ]
    mount = {"name": SIDECAR_NAME, "mountPath": "/var/run/at-least-semaphore-pod-hook", "readOnly": True}
    assert sidecar["volumeMounts"] == [mount]
    assert created["spec"]["volumes"] == [OTHER_VOLUME, VOLUME]
    assert created["spec"]["containers"] == pod()["spec"]["containers"]


def filled_in(created: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with the defaults that the API server fills in."""
    stored = copy.deepcopy(created)
    for volume in stored["spec"]["volumes"]:
        if "projected" in volume:
            volume["projected"]["defaultMode"] = 420
    return stored


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("when_full", list(WhenFull))
async def test_a_second_time_nothing_is_left_to_do(native: bool, when_full: WhenFull) -> None:
    webhook = Webhook(native=native, audience=AUDIENCE, when_full=when_full)
    created = filled_in(await webhook.create(pod()))
    again = await webhook.ask(created)
    assert apply(created, again) == created


async def test_the_volume_of_the_other_mode_is_replaced() -> None:
    direct = await Webhook(native=True, secret="store").create(pod())
    copied = await Webhook(native=True, audience=AUDIENCE).create(direct)
    assert copied["spec"]["volumes"] == [VOLUME]


async def test_pods_are_told_of_the_authority_that_there_is_when_they_come() -> None:
    webhook = Webhook(native=True, audience=AUDIENCE)
    for authorities in ("first", "first and second", "second"):
        webhook.authorities = authorities
        ((_, sidecar),) = sidecars(await webhook.create(pod(name=None)))
        assert sidecar["env"][-1]["value"] == authorities
        await webhook.store.release(KEY, sidecar["args"][-1])


async def test_without_an_authority_nobody_is_let_in() -> None:
    webhook = Webhook(native=True, audience=AUDIENCE)
    webhook.authorities = ""
    answer = await webhook.ask(pod())
    assert (answer["allowed"], answer["status"]["code"]) == (False, 503)
    assert answer["status"]["message"] == "the authority of the webhook's certificate is not known yet"
    assert await webhook.held() == []
    # Those that have not opted in do not mind.
    assert (await webhook.ask(pod(metadata={"annotations": {}})))["allowed"]
