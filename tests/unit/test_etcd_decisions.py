"""What an acquire and a guarded step come to in etcd, without etcd."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.errors import StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Adoptee, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.etcd import decisions
from at_least_semaphore_pod_hook.stores.etcd.counts import COUNT_SECONDS, MAX_COUNTS, Counts
from at_least_semaphore_pod_hook.stores.etcd.decisions import Grant, Head, Own, Record, Recount, Seen

KEY = SemaphoreKey("namespace", "key")
NOW = 1_800_000_000_000_000
HEAD = Head(length=2, token=5, epoch="c/1", held=0)
SEEN = Seen(HEAD, 7, "c/1", 3, 0, held=0, counted=True)
WISH = AcquireRequest(KEY, 2, 60, "p", "id-p", pod="pod")
MINE = Own(Record("id-p", "pod", 9, 60_000), 77)


def outcome(seen: Seen, request: AcquireRequest = WISH, **options: Any) -> Outcome | type:
    decided = decisions.decide(seen, request, NOW, **{"fresh": False, **options})
    return decided.outcome if isinstance(decided, Acquired) else type(decided)


def test_a_grant_writes_head_and_holder() -> None:
    decided = decisions.decide(SEEN._replace(held=1), WISH._replace(uid="u"), NOW, fresh=False)
    assert isinstance(decided, Grant)
    assert decided.head == Head(length=2, token=NOW, epoch="c/1", held=2)
    assert decided.record == Record("id-p", "pod", NOW, 60_000, "u", granted_us=NOW)
    assert decided.answer == Acquired(Outcome.GRANTED, 2, 2, "p", NOW)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"held": 2}, Outcome.FULL),
        ({"held": 3}, Outcome.FULL),
        ({"held": 2, "counted": False}, Recount),
        ({"held": 1, "counted": False}, Grant),
        ({"head": Head(), "head_revision": 0}, Outcome.OTHER_LENGTH),
        ({"head": Head(length=3, epoch="c/1")}, Outcome.OTHER_LENGTH),
        ({"epoch": "c/2"}, Outcome.INCOMPLETE),
        ({"epoch": "", "head": Head(length=2)}, Outcome.INCOMPLETE),
        ({"epoch": "c/2", "held": 2}, Outcome.INCOMPLETE),
        ({"own": MINE}, Outcome.RESUMED),
        ({"own": MINE, "held": 2, "epoch": "c/2"}, Outcome.RESUMED),
        ({"own": Own(Record("other", "pod", 9, 60_000), 77)}, Outcome.FULL),
    ],
)
def test_each_outcome(seen: dict[str, Any], expected: Outcome | type) -> None:
    assert outcome(SEEN._replace(**seen)) is expected


def test_a_dry_run_minds_no_epoch_and_assumes_a_length() -> None:
    dry = WISH._replace(dry_run=True, length=9, assumed_length=9)
    decided = decisions.decide(SEEN._replace(epoch=""), dry, NOW, fresh=False)
    assert isinstance(decided, Grant)
    assert decided.answer.length == 9


def test_a_carried_reservation_counts_while_it_is_fresh() -> None:
    request = WISH._replace(carried="c")
    seen = SEEN._replace(carried=MINE, held=2)
    assert decisions.may_resume(MINE, request)
    assert outcome(seen, request, fresh=True) is Outcome.RESUMED
    assert outcome(seen, request) is Outcome.FULL
    for other in (
        None,
        Own(Record("another", "pod", 9, 60_000), 77),
        Own(Record("id-p", "pod", 9, 60_000, uid="u"), 77),
        Own(Record("id-p", "pod", 9, 60_000, confirmed=True), 77),
    ):
        assert not decisions.may_resume(other, request)


def test_a_grant_whose_answer_was_lost_is_known_by_its_lease() -> None:
    seen = SEEN._replace(own=MINE, held=1)
    decided = decisions.decide(seen, WISH, NOW, fresh=False, lease=77)
    assert decided == Acquired(Outcome.GRANTED, 2, 1, "p", 9)
    assert outcome(seen, lease=78) is Outcome.RESUMED


@given(last=st.integers(0, 2**60), now_us=st.integers(0, 2**60))
def test_tokens_rise_whatever_the_clock_does(last: int, now_us: int) -> None:
    assert decisions.next_token(last, now_us) >= max(last + 1, now_us)


def test_a_step_shuts_out_older_ones_of_its_domain() -> None:
    head, fence = decisions.begun(HEAD, KEY, Fence("redlock", 0), NOW)
    assert fence == Fence("redlock", NOW)
    decisions.check_fence(head, KEY, fence)
    newer, fence_2 = decisions.begun(head, KEY, Fence("redlock", 0), NOW)
    assert fence_2.token == NOW + 1
    with pytest.raises(StaleFenceError):
        decisions.check_fence(newer, KEY, fence)
    head, _ = decisions.begun(newer, KEY, Fence("etcd/1", 20), NOW)
    with pytest.raises(StaleFenceError, match="19 of etcd/1"):
        decisions.begun(head, KEY, Fence("etcd/1", 19), NOW)
    decisions.check_fence(head, KEY, fence_2)
    decisions.check_fence(Head(), KEY, Fence("redlock", 0))


def test_who_is_put_back_keeps_the_token() -> None:
    lost = [Adoptee("a", "pod-a", "u-a", 40, 30), Adoptee("b", "pod-b", "u-b", 0, 5), Adoptee("c", "", "u-c", 3, 5)]
    head, records = decisions.adopted(HEAD, 4, lost, 10)
    assert (head.token, head.held, head.length) == (41, 7, 2)
    assert records["a"] == Record("u-a", "pod-a", 40, 30_000, "u-a", granted_us=10)
    assert [records[permit].token for permit in "abc"] == [40, 41, 3]
    assert decisions.adopted(HEAD, 4, [], 10) == (Head(length=2, token=5, epoch="c/1", held=4), {})


def test_silence_adds_up_until_the_sidecar_is_back() -> None:
    record = decisions.kept(MINE.record, "pod-0", "u", 20)
    assert (record.silent, record.uid, record.pod) == (20, "u", "pod-0")
    assert decisions.kept(record, "", "u", 11).silent == 31
    assert decisions.kept(record, "", "u", 11).pod == "pod-0"


LARGE = SEEN._replace(head=Head(length=2000, epoch="c/1", held=2000), held=2000, counted=False)
COUNTED = LARGE._replace(counted=True, pods=("a", "b", "c"))


def counts_after(seen: Seen, key: SemaphoreKey = KEY) -> tuple[Counts, list[float]]:
    """Return what a process remembers that has looked at 100 s, and its clock."""
    clock = [100.0]
    counts = Counts(lambda: clock[0])
    counts.complete(key, seen, clock[0])
    return counts, clock


def test_a_large_semaphore_that_was_found_full_is_not_counted_again_for_half_a_second() -> None:
    counts, clock = counts_after(COUNTED)
    assert not counts.is_counted(KEY)
    clock[0] += COUNT_SECONDS - 0.001
    again = counts.complete(KEY, LARGE._replace(own=MINE), clock[0])
    assert again == COUNTED._replace(own=MINE)
    decided = decisions.decide(again._replace(own=None), WISH._replace(length=0), NOW, fresh=False)
    assert decided == Acquired(Outcome.FULL, 2000, 2000, holders=("a", "b", "c"))
    clock[0] += 0.002
    assert counts.complete(KEY, LARGE, clock[0]) == LARGE


@pytest.mark.parametrize(
    "changed", [{"head_revision": 8}, {"freed_revision": 9}, {"head_revision": 0, "freed_revision": 0}]
)
def test_a_count_is_out_of_date_once_head_or_mark_was_written(changed: dict[str, Any]) -> None:
    counts, clock = counts_after(COUNTED)
    seen = LARGE._replace(**changed)
    assert counts.complete(KEY, seen, clock[0]) == seen


def test_an_exact_count_below_the_bound_is_what_a_grant_goes_on_from() -> None:
    counts, clock = counts_after(COUNTED._replace(held=1200))
    decided = decisions.decide(counts.complete(KEY, LARGE, clock[0]), WISH._replace(length=0), NOW, fresh=False)
    assert isinstance(decided, Grant)
    assert decided.head.held == 1201


def test_small_semaphores_are_counted_each_time() -> None:
    counts, clock = counts_after(COUNTED)
    small = SEEN._replace(head=Head(length=2000, epoch="c/1", held=1000), held=7)
    assert counts.complete(KEY, small, clock[0]) == small
    assert counts.is_counted(KEY)
    assert counts.complete(KEY, LARGE, clock[0]) == LARGE


def test_counts_are_remembered_of_so_many_semaphores_and_no_more() -> None:
    counts, clock = counts_after(COUNTED)
    for number in range(MAX_COUNTS):
        counts.complete(SemaphoreKey("n", str(number)), COUNTED, clock[0])
    assert len(counts._counts) == MAX_COUNTS
    assert counts.complete(KEY, LARGE, clock[0]) == LARGE
    assert counts.complete(SemaphoreKey("n", "0"), LARGE, clock[0]).counted
