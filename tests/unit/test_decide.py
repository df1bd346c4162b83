from __future__ import annotations

from typing import Any

import pytest

from at_least_semaphore_pod_hook.controller.decide import (
    Action,
    Dismiss,
    Grant,
    Keep,
    Observed,
    Reason,
    Release,
    Resize,
    Ungate,
    Wake,
    decide,
)
from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreState
from tests.unit.fakes import PREFIX, notes
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


def ordinary(main: dict[str, Any], **parts: Any) -> PodView:
    """A pod with an ordinary sidecar that runs, and a container in this state."""
    sidecar = {"name": SIDECAR, "args": ["sidecar", "default/key", "p"]}
    spec = {"containers": [{"name": "main"}, sidecar]} | parts.pop("spec", {})
    running = {"name": SIDECAR, "started": True, "state": {"running": {}}}
    return pod_view(spec=spec, status={"containerStatuses": [{"name": "main", "state": main}, running]}, **parts)


def waiter(name: str, stamp: int = 0, *, length: int = 3, second: int = 5, **parts: Any) -> PodView:
    """A pod that waits behind our gate, and came at so many microseconds of a second."""
    annotations = notes(length=str(length), arrived=str(1767323040000000 + second * 1_000_000 + stamp))
    metadata = {"annotations": annotations, "creationTimestamp": f"2026-01-02T03:04:{second:02}Z"}
    spec = {"schedulingGates": [{"name": PREFIX + "permit"}]} | parts.pop("spec", {})
    metadata |= parts.pop("metadata", {})
    return pod("$(POD_UID)", uid=name, name=name, spec=spec, metadata=metadata, **parts)


def holder(permit: str = "p", **changes: Any) -> Holder:
    usual = Holder(permit, "web-0", 1, True, 50_000, "u", 60_000, 100_000, 10_000)
    return usual._replace(**changes)


RESERVED: dict[str, Any] = {"confirmed": False, "uid": "", "age_ms": 1_000, "silent_ms": 1_000}


def decided(
    *holders: Holder, pods: list[PodView] | None = None, length: int = 3, denied: tuple[str, ...] = (), **changes: Any
) -> list[Action]:
    state = SemaphoreState(length, holders, denied)
    return decide(Observed(state, pods or [], {}, 15_000, {})._replace(**changes))


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
    finished = pod(status={"phase": phase})
    assert decided(holder(), pods=[finished]) == [Release(holder(), Reason.FINISHED, finished)]


def test_a_pod_whose_containers_have_ended_for_good_needs_no_permit() -> None:
    over = ordinary({"terminated": {"exitCode": 0}}, spec={"restartPolicy": "Never"})
    assert decided(holder(), pods=[over]) == [Release(holder(), Reason.ENDED, over)]
    assert decided(holder(), pods=[ordinary({"running": {}}, spec={"restartPolicy": "Never"})]) == []


def test_a_sidecar_that_has_lost_its_permit_is_told_of_the_pods_end_too() -> None:
    over = ordinary({"terminated": {"exitCode": 0}}, spec={"restartPolicy": "Never"})
    assert decided(pods=[over]) == [Dismiss(over)]
    assert decided(pods=[ordinary({"running": {}}, spec={"restartPolicy": "Never"})]) == []


def test_a_native_sidecar_ends_by_itself_when_the_others_have() -> None:
    ended = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 0}}}]}
    assert decided(holder(), pods=[pod(started=True, spec={"restartPolicy": "Never"}, status=ended)]) == []


def test_a_pod_that_was_seen_to_go_gives_its_permit_back() -> None:
    gone = pod()
    assert decided(holder(), gone={"p": gone}) == [Release(holder(), Reason.GONE, gone)]


def test_a_pod_that_the_watch_does_not_show_is_asked_about_first() -> None:
    assert decided(holder()) == [Release(holder(), Reason.GONE, unproven=True)]
    unseen = holder(uid="", confirmed=True)
    assert decided(unseen) == [Release(unseen, Reason.GONE, unproven=True)]


def test_a_reservation_whose_pod_never_came_is_asked_about_after_its_time() -> None:
    fresh, old = holder(**RESERVED), holder(**{**RESERVED, "age_ms": 15_000})
    assert decided(fresh) == []
    assert decided(old) == [Release(old, Reason.NEVER_STORED, unproven=True)]


def test_a_reservation_from_before_the_stores_clock_was_set_back_is_asked_about() -> None:
    ahead = holder(**RESERVED | {"age_ms": -300_000})
    assert decided(ahead) == [Release(ahead, Reason.NEVER_STORED, unproven=True)]


def test_a_pod_that_came_late_gets_a_permit_before_anybody_is_woken() -> None:
    late = pod("lost")
    assert decided(pods=[late], length=1, denied=("Job/a",)) == [Grant(late)]
    assert decided(holder("x"), pods=[late, pod("x")], length=1, denied=("Job/a",)) == []
    assert decided(pods=[late], length=2, denied=("Job/a", "Job/b")) == [Grant(late), Wake("Job/a")]


def test_a_sidecar_that_gave_its_permit_back_is_given_a_moment_to_show_why() -> None:
    ending = pod("lost", started=True)
    assert decided(pods=[ending]) == []
    assert decided(pods=[ending], missing_ms={"lost": 2_000}) == [Grant(ending)]


def test_a_sidecar_that_has_ended_has_given_its_permit_back_for_good() -> None:
    status = {**READY, "initContainerStatuses": [{"name": SIDECAR, "state": {"terminated": {"exitCode": 0}}}]}
    ended, waiting = pod("x", uid="e", status=status), waiter("a", length=1)
    assert decided(pods=[ended, waiting], length=1, missing_ms={"x": 60_000}) == [Grant(waiting)]


def test_pods_that_are_over_get_no_permit() -> None:
    going = {"deletionTimestamp": "2026-01-02T03:04:05Z"}
    assert (
        decided(
            pods=[pod("a", metadata=going), pod("b", status={"phase": "Failed"})], missing_ms={"a": 9_999, "b": 9_999}
        )
        == []
    )


def test_the_oldest_of_the_late_comes_first() -> None:
    old = pod("old", uid="b", metadata={"creationTimestamp": "2026-01-02T03:04:04Z"})
    young = pod("young", uid="a")
    assert decided(pods=[young, old], length=1) == [Grant(old)]


def test_as_many_owners_are_woken_as_permits_are_free() -> None:
    denied = ("ReplicaSet/a", "Job/b", "Job/c")
    assert decided(holder(), pods=[pod(started=True)], length=3, denied=denied) == [Wake("ReplicaSet/a"), Wake("Job/b")]
    assert decided(holder(), pods=[pod(started=True)], length=1, denied=denied) == []
    # What is taken back counts as free at once; what is not proven does not.
    assert decided(holder(), gone={"p": pod()}, length=1, denied=denied)[1:] == [Wake("ReplicaSet/a")]
    assert decided(holder(), length=1, denied=denied)[1:] == []


def test_a_shrunk_semaphore_that_drains_serves_nobody() -> None:
    pods = [pod(name, started=True) for name in "ab"]
    assert decided(holder("a"), holder("b"), pods=[*pods, pod("late")], length=1, denied=("Job/a",)) == []


def test_a_permit_is_not_bound_to_a_pod_of_the_same_name() -> None:
    successor = pod(uid="new")
    old = holder(uid="old")
    assert decided(old, pods=[successor]) == [Keep(old, successor, lapsing=False, suspect=False)]


def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    second, first, third = waiter("a", 2), waiter("b", 1), waiter("c", 0, second=6)
    assert decided(pods=[third, second, first]) == [Grant(first), Grant(second), Grant(third)]
    assert decided(holder("x"), holder("y"), pods=[pod("x"), pod("y"), third, second, first]) == [Grant(first)]


def test_a_stamp_that_was_forged_gains_a_second_at_most() -> None:
    honest = waiter("a", 0, second=5)
    forged = waiter("b", 0, second=6, metadata={"annotations": notes(arrived="1")})
    assert decided(pods=[forged, honest], length=3)[0] == Grant(honest)


def test_another_gate_keeps_a_waiter_out_of_the_line() -> None:
    both = [{"name": PREFIX + "permit"}, {"name": "example.com/hold"}]
    held_back, behind = waiter("a", 1, spec={"schedulingGates": both}), waiter("b", 2)
    assert decided(pods=[held_back, behind]) == [Grant(behind)]


@pytest.mark.parametrize("over", [{"deletionTimestamp": "2026-01-02T03:04:05Z"}, None])
def test_a_waiter_that_is_over_gets_nothing(over: dict[str, str] | None) -> None:
    going = waiter("a", metadata=over or {}, status={"phase": "Pending" if over else "Failed"})
    assert decided(pods=[going]) == []


def test_a_waiter_that_holds_its_permit_is_let_in() -> None:
    granted = waiter("a")
    assert decided(holder("a", uid="a", token=7), pods=[granted], length=3) == [Ungate(granted, 7)]


def test_the_late_come_before_waiters_and_waiters_before_owners() -> None:
    late, waiting = pod("lost", uid="z"), waiter("a")
    denied = ("Job/a", "Job/b")
    assert decided(pods=[waiting, late], denied=denied) == [Grant(late), Grant(waiting), Wake("Job/a")]
    assert decided(holder("x"), holder("y"), pods=[pod("x"), pod("y"), waiting, late], denied=denied) == [Grant(late)]


def test_the_waiter_that_came_last_decides_on_the_length() -> None:
    old, new = waiter("a", 1, length=3), waiter("b", 2, length=5)
    assert decided(pods=[old, new], length=3) == [Resize(5)]
    assert decided(pods=[old, new], length=0) == [Resize(5)]
    assert decided(pods=[old, new], length=5) == [Grant(old), Grant(new)]
    # A pod that came after it has had its say already.
    newest = pod("x", uid="u", metadata={"creationTimestamp": "2026-01-02T03:04:09Z"})
    assert decided(holder("x"), pods=[old, new, newest], length=4) == [Grant(old), Grant(new)]
    spoilt = waiter("c", 3, metadata={"annotations": notes(length="many")})
    assert Resize not in map(type, decided(pods=[old, spoilt], length=3))


def test_a_semaphore_that_the_store_does_not_know_is_created_for_a_pod_that_has_no_permit() -> None:
    late = pod("lost", metadata={"annotations": notes(length="4")})
    assert decided(pods=[late], length=0) == [Resize(4)]
    assert decided(pods=[], length=0, denied=("Job/a",)) == []


ENDING = {"deletionTimestamp": "2026-01-02T03:04:05Z"}


def test_on_exit_the_next_one_waits_until_the_api_shows_the_pods_end() -> None:
    ending, waiting = pod("x", uid="e", started=True, metadata=ENDING), waiter("a", length=1)
    assert decided(pods=[ending, waiting], length=1) == []
    assert decided(pods=[ending, waiting], length=1, missing_ms={"x": 9_999}) == []
    # It is not waited for for ever: a node may be lost.
    assert decided(pods=[ending, waiting], length=1, missing_ms={"x": 10_000}) == [Grant(waiting)]
    finished = pod("x", uid="e", metadata=ENDING, status={"phase": "Succeeded"})
    assert decided(pods=[finished, waiting], length=1) == [Grant(waiting)]
    # Another permit is another's.
    assert decided(pods=[ending, waiting], length=2, denied=("Job/a",)) == [Resize(1)]
    assert decided(pods=[ending, waiter("a", length=2)], length=2, denied=("Job/a",)) == [Grant(waiter("a", length=2))]


def test_on_sigterm_the_permit_is_free_with_the_deletion() -> None:
    metadata = ENDING | {"annotations": notes(**{"release-on": "sigterm"})}
    ending, waiting = pod("x", uid="e", started=True, metadata=metadata), waiter("a", length=1)
    held = holder("x", uid="e")
    assert decided(held, pods=[ending, waiting], length=1) == [Release(held, Reason.DELETED, ending), Grant(waiting)]
    assert decided(pods=[ending, waiting], length=1) == [Grant(waiting)]


def test_a_semaphore_that_may_have_lost_holders_is_rebuilt_before_anything_is_granted() -> None:
    state = SemaphoreState(3, (holder(),), ("Job/a",), complete=False)
    seen = Observed(state, [pod(started=True), waiter("w", length=3)], {}, 15_000, {})
    assert decide(seen) == [Resize(3)]


def test_a_semaphore_that_is_lost_altogether_is_rebuilt_for_the_pods_that_run() -> None:
    running = pod(started=True, metadata={"annotations": notes(length="4")})
    assert decided(pods=[running], length=0) == [Resize(4)]
    assert decided(pods=[pod(status={"phase": "Failed"})], length=0) == []


def held_back(permit: str = "lost", *, uid: str = "u", main: dict[str, Any] | None = None, **parts: Any) -> PodView:
    """A pod whose sidecar runs, and has not confirmed a permit yet."""
    probed = {"name": SIDECAR, "restartPolicy": "Always", "args": ["sidecar", "default/key", permit]}
    spec = {"initContainers": [probed | {"startupProbe": {"tcpSocket": {"port": 1}}}, {"name": "init"}]}
    states = [{"name": SIDECAR, "started": False, "state": {"running": {}}}]
    shown = [{"name": "main", "state": main or {"waiting": {"reason": "PodInitializing"}}}]
    status = {"phase": "Pending", "initContainerStatuses": states, "containerStatuses": shown}
    return pod(permit, uid=uid, spec=spec, status=status, **parts)


def test_a_pod_whose_work_waits_for_a_permit_gets_the_next_one() -> None:
    waiting = held_back()
    assert waiting.held_back
    assert decided(pods=[waiting], length=1) == []
    assert decided(pods=[waiting], length=1, missing_ms={"lost": 2_000}) == [Grant(waiting)]
    assert decided(holder("x"), pods=[waiting, pod("x")], length=1, missing_ms={"lost": 2_000}) == []


def test_work_that_has_begun_is_held_back_by_nobody() -> None:
    assert not held_back(main={"running": {}}).held_back
    assert not held_back(main={"terminated": {"exitCode": 1}}).held_back
    assert not pod("lost", status=READY).held_back
    assert not pod("lost").held_back


def test_the_end_of_a_pod_whose_work_has_not_begun_is_waited_for_by_nobody() -> None:
    ending, waiting = held_back(uid="e", metadata=ENDING), waiter("a", length=1)
    assert decided(pods=[ending, waiting], length=1) == [Grant(waiting)]
    begun = held_back(uid="e", main={"running": {}}, metadata=ENDING)
    assert decided(pods=[begun, waiting], length=1) == []


def test_a_permit_that_two_pods_name_is_the_ones_for_whom_it_was_granted() -> None:
    """As a pod does that was created from another's YAML while the webhook was away."""
    finished, copied = pod("x", uid="old", status={"phase": "Succeeded"}), pod("x", uid="new", started=True)
    for pods in ([finished, copied], [copied, finished]):
        assert decided(holder("x", uid="new"), pods=pods) == []
        assert decided(holder("x", uid="old"), pods=pods) == [
            Release(holder("x", uid="old"), Reason.FINISHED, finished)
        ]
