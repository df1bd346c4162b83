"""When the sidecar tries, and what it says about it, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook import settings
from at_least_semaphore_pod_hook.sidecar import policy

LEASES = st.integers(1, policy.MAX_LEASE_MS)


def test_the_first_renewal_is_due_at_once_and_the_next_after_a_third_of_the_lease() -> None:
    schedule = policy.Schedule(100.0)
    assert schedule.due == 100.0
    schedule.renewed(100.5, 60_000)
    assert schedule.due == 120.5


def test_a_lost_permit_is_tried_again_at_the_interval() -> None:
    schedule = policy.Schedule(0.0)
    schedule.lost(1.0)
    assert schedule.due == 1.0 + policy.interval(policy.DEFAULT_LEASE_MS)
    schedule.renewed(10.0, 3_000)
    schedule.lost(11.0)
    assert schedule.due == 12.0


@pytest.mark.parametrize("longest", [policy.END_WITH_POD_SECONDS, policy.WAITING_SECONDS])
def test_whoever_waits_for_the_pods_end_asks_often(longest: float) -> None:
    schedule = policy.Schedule(0.0, longest)
    schedule.renewed(1.0, 60_000)
    assert schedule.due == 1.0 + longest
    schedule.lost(2.0)
    assert schedule.due == 2.0 + longest
    for _ in range(9):
        schedule.failed(20.0, 1.0)
        assert schedule.due <= 20.0 + longest
    # A short lease is renewed as often as ever.
    schedule.renewed(30.0, 600)
    assert schedule.due == pytest.approx(30.2)


def test_a_hurry_begins_at_once() -> None:
    schedule = policy.Schedule(0.0)
    schedule.renewed(0.0, 60_000)
    schedule.hurry(3.0, 0.5)
    assert schedule.due == 3.0
    schedule.renewed(3.1, 60_000)
    assert schedule.due == 3.6


def test_failures_back_off_until_one_succeeds() -> None:
    schedule = policy.Schedule(0.0)
    schedule.renewed(0.0, 60_000)
    waits = []
    for _ in range(9):
        schedule.failed(20.0, 1.0)
        waits.append(schedule.due - 20.0)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
    schedule.renewed(30.0, 60_000)
    schedule.failed(50.0, 1.0)
    assert schedule.due == pytest.approx(50.1)


@given(st.integers(1, 10_000), LEASES, st.floats(0, 1))
def test_backoff_is_bounded(failures: int, lease_ms: int, jitter: float) -> None:
    wait = policy.backoff(failures, lease_ms, jitter)
    assert policy.FIRST_BACKOFF / 2 <= wait <= policy.MAX_BACKOFF
    assert wait <= max(policy.FIRST_BACKOFF, lease_ms / 9_000)
    assert policy.backoff(failures, lease_ms, jitter, 1.0) <= 1.0


@given(st.integers(3_000, policy.MAX_LEASE_MS), st.lists(st.floats(0, 1), min_size=50, max_size=50))
def test_a_store_that_is_away_for_a_third_of_the_lease_costs_no_permit(lease_ms: int, jitters: list[float]) -> None:
    schedule = policy.Schedule(0.0)
    schedule.renewed(0.0, lease_ms)
    end = lease_ms / 1_000
    back = end * 2 / 3
    for jitter in jitters:
        if schedule.due >= back:
            break
        # Refused, or hanging for all of the time that a try may take.
        schedule.failed(schedule.due + jitter * policy.try_timeout(lease_ms), jitter)
    assert schedule.due < end or schedule.due < back


@given(LEASES)
def test_a_try_is_bounded(lease_ms: int) -> None:
    assert policy.MIN_TRY <= policy.try_timeout(lease_ms) <= policy.MAX_TRY


@pytest.mark.parametrize(("grace", "budget"), [(30.0, 29.75), (2.0, 1.9), (0.0, 0.95), (-5.0, 0.95)])
def test_the_release_leaves_a_moment_for_the_last_words(grace: float, budget: float) -> None:
    assert policy.release_budget(grace) == pytest.approx(budget)


def test_a_permit_is_confirmed_once_and_then_renewed_quietly() -> None:
    health = policy.Health()
    assert [level for level, _ in health.renewed(0.1, 0.0, 60_000, 20.0)] == ["info"]
    assert [level for level, _ in health.renewed(20.1, 20.0, 60_000, 20.0)] == ["debug"]


def test_an_outage_is_logged_once_a_cause_with_reminders_and_its_end() -> None:
    health = policy.Health()
    health.renewed(0.0, 0.0, 600_000, 200.0)
    assert health.unavailable(10.0, "refused") == [("warning", "the store is unavailable, trying on: refused")]
    assert health.unavailable(11.0, "refused") == []
    assert health.unavailable(12.0, "loading") == [("warning", "the store is unavailable, trying on: loading")]
    assert health.unavailable(13.0, "refused") == []
    assert health.unavailable(71.9, "refused") == []
    assert health.unavailable(72.0, "refused") == [
        ("warning", "the store is still unavailable: refused, for 62 s"),
    ]
    assert health.unavailable(73.0, "refused") == []
    assert health.renewed(80.0, 79.0, 600_000, 200.0) == [("info", "renewed the permit again, after 70.0 s without")]
    assert len(health.unavailable(90.0, "refused")) == 1


def test_causes_that_never_repeat_do_not_fill_the_log() -> None:
    health = policy.Health()
    lines = [line for number in range(1_000) for line in health.unavailable(number / 100, f"cause {number}")]
    assert len(lines) == policy.MAX_CAUSES


def test_a_lease_that_runs_out_meanwhile_is_an_error_said_once() -> None:
    health = policy.Health()
    health.renewed(0.0, 0.0, 3_000, 1.0)
    assert [level for level, _ in health.unavailable(2.9, "refused")] == ["warning"]
    assert [level for level, _ in health.unavailable(3.0, "refused")] == ["error"]
    assert health.unavailable(3.1, "refused") == []


def test_a_lost_permit_is_an_error_with_reminders() -> None:
    health = policy.Health()
    assert [level for level, _ in health.lost(0.0)] == ["error"]
    assert health.lost(5.0) == []
    assert health.lost(60.0) == [("error", "the permit is still not ours, for 60 s")]
    assert [level for level, _ in health.renewed(61.0, 61.0, 3_000, 1.0)] == ["info"]
    assert [level for level, _ in health.lost(62.0)] == ["error"]


@given(LEASES)
def test_a_fence_leaves_the_kubelet_more_time_than_it_takes(lease_ms: int) -> None:
    taken = settings.PROBE_PERIOD_SECONDS + settings.PROBE_TIMEOUT_SECONDS + settings.STOP_GRACE_SECONDS
    margin = settings.fence_margin(lease_ms)
    assert taken + settings.FENCE_SLACK <= margin <= settings.MAX_FENCE_MARGIN


@given(st.integers(settings.MIN_FENCED_EXPIRATION_SECONDS * 1_000, policy.MAX_LEASE_MS))
def test_the_shortest_fenced_lease_can_be_renewed_before_its_fence_falls(lease_ms: int) -> None:
    """One try that hangs as long as it may, a pause, and a second one that is answered."""
    schedule = policy.Schedule(0.0)
    schedule.renewed(0.0, lease_ms)
    schedule.failed(schedule.due + policy.try_timeout(lease_ms), 1.0)
    assert schedule.due < lease_ms / 1_000 - settings.fence_margin(lease_ms)


def test_who_waits_for_a_first_permit_asks_often_and_is_renewed_as_seldom_as_ever() -> None:
    schedule = policy.Schedule(0.0, longest_lost=policy.UNCONFIRMED_SECONDS)
    schedule.lost(1.0)
    assert schedule.due == 1.0 + policy.UNCONFIRMED_SECONDS
    schedule.renewed(2.0, 60_000)
    assert schedule.due == 22.0


def test_a_pod_that_is_held_back_waits_for_a_permit_and_has_lost_none() -> None:
    health = policy.Health(holds_back=True)
    assert health.lost(0.0) == [
        ("warning", "waiting for a permit: the store knows none of this pod, whose containers wait with us")
    ]
    assert health.lost(59.0) == []
    assert health.lost(60.0) == [("warning", "still waiting for a permit, for 60 s")]
    assert health.renewed(61.0, 61.0, 3_000, 1.0)[0][1].startswith("confirmed the permit")
    assert health.lost(62.0)[0][0] == "error"
