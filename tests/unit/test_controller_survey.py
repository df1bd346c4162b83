"""Who is put back when the store may have lost data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.controller.survey import MAX_TOKEN, Survey, adoptees
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, SemaphoreKey
from tests.unit.fakes import PREFIX, notes
from tests.unit.views import SIDECAR, pod_view

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.controller.kube import Kube

KEY = SemaphoreKey("default", "resource-name")


def pod(name: str, state: str = "running", *, fencing: str = "7", semaphore: str = str(KEY), **parts: Any) -> PodView:
    sidecar = {"name": SIDECAR, "restartPolicy": "Always", "args": ["sidecar", semaphore, f"permit-{name}"]}
    spec = {"containers": [{"name": "main"}], "initContainers": [sidecar]} | parts.pop("spec", {})
    status = {"phase": "Running", "initContainerStatuses": [{"name": SIDECAR, "state": {state: {}}}]}
    metadata = {"annotations": notes(**{"fencing-token": fencing})} | parts.pop("metadata", {})
    return pod_view(name, uid=f"uid-{name}", spec=spec, metadata=metadata, status=status | parts.pop("status", {}))


def named(*pods: PodView) -> list[str]:
    return [adoptee.pod for adoptee in adoptees(pods, PREFIX)]


def test_a_running_pod_is_put_back_under_its_own_token() -> None:
    assert adoptees([pod("a")], PREFIX) == [Adoptee("permit-a", "a", "uid-a", 7, 60)]


def test_a_pod_whose_sidecar_does_not_run_yet_holds_its_permit_all_the_same() -> None:
    assert named(pod("a", "waiting")) == ["a"]


@pytest.mark.parametrize("token", ["", "-1", "x", "٣", str(MAX_TOKEN + 1), "9" * 400])
def test_a_token_that_cannot_be_ours_is_not_taken_up(token: str) -> None:
    (adoptee,) = adoptees([pod("a", fencing=token)], PREFIX)
    assert adoptee.token == 0


def test_who_holds_nothing_is_not_put_back() -> None:
    gate = {"schedulingGates": [{"name": PREFIX + "permit"}]}
    deleting = {"deletionTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 30}
    assert (
        named(
            pod("waits", spec=gate),
            pod("finished", status={"phase": "Failed"}),
            pod("ends", "terminated", metadata=deleting),
            pod_view("without"),
        )
        == []
    )


class Pods:
    """An API server that has these pods."""

    def __init__(self, *pods: PodView) -> None:
        self._pods = list(pods)
        self.selectors: list[str] = []

    async def list_pods(self, selector: str) -> tuple[list[PodView], str]:
        self.selectors.append(selector)
        return self._pods, "1"


async def test_only_the_pods_of_the_semaphore_count() -> None:
    other = pod("other", metadata={"namespace": "other"}, semaphore="other/resource-name")
    # Its arguments are its own to write: they reach no other namespace's semaphore.
    forged = pod("forged", metadata={"namespace": "other"})
    api = Pods(pod("a"), other, forged, pod("renamed", semaphore="default/another"))
    survey = Survey(PREFIX)
    assert list(await survey(KEY)) == []
    survey.connect(cast("Kube", api))
    assert [adoptee.pod for adoptee in await survey(KEY)] == ["a"]
    assert api.selectors == [f"{PREFIX}key=resource-name"]
