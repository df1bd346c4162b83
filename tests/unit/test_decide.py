from __future__ import annotations

from typing import Any

import pytest

from at_least_semaphore_pod_hook.controller.decide import (
    Action,
    Grant,
    Keep,
    Observed,
    Reason,
    Release,
    Wake,
    decide,
)
from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreState
from tests.unit.views import SIDECAR, pod_view

READY = {"phase": "Running", "containerStatuses": [{"name": "main", "started": True, "state": {"running": {}}}]}


def pod(permit: str = "p", *, uid: str = "u", started: bool = False, **parts: Any) -> PodView:
    """A pod with a native sidecar that carries a permit."""
    sidecar = {"name": SIDECAR, "restartPolicy": "Always", "args": ["sidecar", "default/key", permit]}
    spec = {"containers": [{"name": "main"}], "initContainers": [sidecar]} | parts.pop("spec", {})
    status = parts.pop("status", {"phase": "Pending"})
    if started:
        running = {"name": SIDECAR, "started": True, "state": {"running": {}}}
        status = {**READY, "initContainerStatuses": [running], **status}
    return pod_view(uid=uid, spec=spec, status=status, **parts)


def holder(permit: str = "p", **changes: Any) -> Holder:
    usual = Holder(permit, "web-0", 1, True, 50_000, "u", 60_000, 100_000, 10_000)
    return usual._replace(**changes)


RESERVED: dict[str, Any] = {"confirmed": False, "uid": "", "age_ms": 1_000, "silent_ms": 1_000}


def decided(
    *holders: Holder, pods: list[PodView] | None = None, length: int = 3, denied: tuple[str, ...] = (), **changes: Any
) -> list[Action]:
    state = SemaphoreState(length, holders, denied)
    return decide(Observed(state, pods or [], set(), 15_000, set())._replace(**changes))


def test_a_running_pod_that_renews_is_left_alone() -> None:
    assert decided(holder(), pods=[pod(started=True)]) == []


def test_a_reservation_is_bound_to_the_pod_that_was_stored_for_it() -> None:
    stored, reserved = pod(), holder(**RESERVED)
    assert decided(reserved, pods=[stored]) == [Keep(reserved, stored, lapsing=False, suspect=False)]


def test_a_pod_that_pulls_its_image_for_long_is_renewed_for() -> None:
    pulling, lapsing = pod(), holder(confirmed=False, lease_ms=29_999, silent_ms=30_001)
    assert decided(lapsing, pods=[pulling]) == [Keep(lapsing, pulling, lapsing=True, suspect=False)]
    assert decided(holder(confirmed=False, lease_ms=30_000), pods=[pulling]) == []


def test_a_running_pods_permit_is_kept_and_suspect_when_its_sidecar_is_silent() -> None:
    running, silent = pod(started=True), holder(lease_ms=1, silent_ms=60_000)
    assert decided(silent, pods=[running]) == [Keep(silent, running, lapsing=True, suspect=True)]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pods_permit_is_taken_back(phase: str) -> None:
    assert decided(holder(), pods=[pod(status={"phase": phase})]) == [Release(holder(), Reason.FINISHED)]


def test_a_pod_whose_containers_have_ended_for_good_needs_no_permit() -> None:
    ended = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 0}}}]}
    native = {"name": SIDECAR, "restartPolicy": "Always", "args": ["sidecar", "default/key", "p"]}
    spec = {"containers": [{"name": "main"}], "initContainers": [native], "restartPolicy": "Never"}
    assert decided(holder(), pods=[pod(started=True, spec=spec, status=ended)]) == [Release(holder(), Reason.ENDED)]


def test_a_pod_that_was_seen_to_go_gives_its_permit_back() -> None:
    assert decided(holder(), gone={"p"}) == [Release(holder(), Reason.GONE)]


def test_a_pod_that_the_watch_does_not_show_is_asked_about_first() -> None:
    assert decided(holder()) == [Release(holder(), Reason.GONE, unproven=True)]
    unseen = holder(uid="", confirmed=True)
    assert decided(unseen) == [Release(unseen, Reason.GONE, unproven=True)]


def test_a_reservation_whose_pod_never_came_is_asked_about_after_its_time() -> None:
    fresh, old = holder(**RESERVED), holder(**{**RESERVED, "age_ms": 15_000})
    assert decided(fresh) == []
    assert decided(old) == [Release(old, Reason.NEVER_STORED, unproven=True)]


def test_a_pod_that_came_late_gets_a_permit_before_anybody_is_woken() -> None:
    late = pod("lost")
    assert decided(pods=[late], length=1, denied=("Job/a",)) == [Grant(late)]
    assert decided(holder("x"), pods=[late, pod("x")], length=1, denied=("Job/a",)) == []
    assert decided(pods=[late], length=2, denied=("Job/a", "Job/b")) == [Grant(late), Wake("Job/a")]


def test_a_sidecar_that_gave_its_permit_back_is_given_a_moment_to_show_why() -> None:
    ending = pod("lost", started=True)
    assert decided(pods=[ending]) == []
    assert decided(pods=[ending], lost={"lost"}) == [Grant(ending)]


def test_pods_that_are_over_get_no_permit() -> None:
    going = {"deletionTimestamp": "2026-01-02T03:04:05Z"}
    assert decided(pods=[pod("a", metadata=going), pod("b", status={"phase": "Failed"})], lost={"a", "b"}) == []


def test_the_oldest_of_the_late_comes_first() -> None:
    old = pod("old", uid="b", metadata={"creationTimestamp": "2026-01-02T03:04:04Z"})
    young = pod("young", uid="a")
    assert decided(pods=[young, old], length=1) == [Grant(old)]


def test_as_many_owners_are_woken_as_permits_are_free() -> None:
    denied = ("ReplicaSet/a", "Job/b", "Job/c")
    assert decided(holder(), pods=[pod(started=True)], length=3, denied=denied) == [Wake("ReplicaSet/a"), Wake("Job/b")]
    assert decided(holder(), pods=[pod(started=True)], length=1, denied=denied) == []
    # What is taken back counts as free at once; what is not proven does not.
    assert decided(holder(), gone={"p"}, length=1, denied=denied)[1:] == [Wake("ReplicaSet/a")]
    assert decided(holder(), length=1, denied=denied)[1:] == []


def test_a_shrunk_semaphore_that_drains_serves_nobody() -> None:
    pods = [pod(name, started=True) for name in "ab"]
    assert decided(holder("a"), holder("b"), pods=[*pods, pod("late")], length=1, denied=("Job/a",)) == []


def test_a_permit_is_not_bound_to_a_pod_of_the_same_name() -> None:
    successor = pod(uid="new")
    old = holder(uid="old")
    assert decided(old, pods=[successor]) == [Keep(old, successor, lapsing=False, suspect=False)]
