"""What the hand-over bench concludes from a watch."""

from __future__ import annotations

import pytest

from cluster_history import (
    PREFIX,
    Created,
    Seen,
    active_seconds,
    inversions,
    most_active,
    now_active,
    regated,
    seen,
    served,
)
from handover_report import latencies, none_of, percentile, table


def event(at: float, name: str, *, kind: str = "MODIFIED", gated: bool = False, phase: str = "", uid: str = "") -> Seen:
    return Seen(at, kind, name, uid or name, gated, phase, deleting=False, token=0)


LIFE = [
    event(1, "a", kind="ADDED", gated=True),
    event(2, "b", kind="ADDED", gated=True),
    event(3, "a"),
    event(4, "b"),
    event(6, "a", phase="Succeeded"),
    event(7, "a", kind="DELETED"),
]


def test_a_pod_is_cut_down_to_what_is_measured() -> None:
    metadata = {"name": "a", "uid": "u", "annotations": {f"{PREFIX}fencing-token": "7"}, "deletionTimestamp": "now"}
    pod = {"metadata": metadata, "spec": {"schedulingGates": [{"name": "gate"}]}, "status": {"phase": "Pending"}}
    assert seen(1.5, "ADDED", pod) == Seen(1.5, "ADDED", "a", "u", True, "Pending", True, 7)
    assert not seen(1.5, "ADDED", pod).active


def test_pods_are_served_when_their_gate_is_gone() -> None:
    assert [(name, free.at) for name, free in served(LIFE).items()] == [("a", 3), ("b", 4)]


def test_finished_and_removed_pods_are_not_active() -> None:
    assert most_active(LIFE) == 2
    assert most_active(LIFE, "b") == 1
    assert now_active(LIFE) == {"b"}
    assert active_seconds(LIFE, 0, 10) == 3 + 6
    assert active_seconds(LIFE, 3.5, 5) == 1.5 + 1


def test_a_gate_that_comes_back_and_a_second_life_are_noticed() -> None:
    assert regated(LIFE) == []
    assert regated([*LIFE, event(8, "b", gated=True)]) == ["b"]
    assert regated([*LIFE, event(8, "b", uid="other")]) == ["b"]


def test_only_creations_one_after_the_other_have_an_order() -> None:
    created = [Created("a", 1, 2), Created("b", 3, 5), Created("c", 4, 6)]
    assert inversions(created, {"a": 10, "b": 12, "c": 11}) == []
    assert inversions(created, {"b": 10, "a": 11, "c": 12}) == [("a", "b")]
    assert inversions(created, {"b": 10}) == [("a", "b")]


def test_a_row_says_whether_its_floor_was_met() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3
    assert latencies("fast", [0.01, 0.02, 0.03], p50=0.02, p99=0.03).met
    assert not latencies("slow", [0.01, 0.02, 0.04], p50=0.02, p99=0.03).met
    assert not latencies("none", [], p99=1).met
    missed = none_of("order", 2, ["b after a"])
    assert not missed.met
    assert table([missed]).splitlines()[-1].split()[-1] == "MISS"


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1, 100)])
def test_a_percentile_is_one_of_the_values(share: float, value: int) -> None:
    assert percentile(range(1, 101), share) == value
