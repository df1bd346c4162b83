"""Every crash point, on either store: how kills are shared out, and a short pass over all of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import crash, points, summary
from tests.chaos.__main__ import run_part
from tests.chaos.clusters import Ground
from tests.chaos.provocations import PROVOCATIONS
from tests.chaos.runs import Report

TIMES = int(os.environ.get("CHAOS_POINTS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))


def report_of(part: points.Part) -> Report:
    return Report(part.number, crash_points=list(part.points), topology=part.topology)


@pytest.mark.parametrize("times", [1, 2, 5, 10])
def test_kills_are_shared_out_over_both_stores(times: int) -> None:
    kills = Counter(
        (part.topology, point) for part in points.parts(points.wanted(times, 1), 1) for point in part.points
    )
    for point in crash.POINTS:
        on = [kills[topology, point] for topology in points.TOPOLOGIES]
        assert sum(on) == times
        assert max(on) - min(on) <= 1


def test_with_one_kill_each_store_has_its_turn() -> None:
    both = {which for seed in (1, 2) for which, count in points.wanted(1, seed).items() if count}
    assert both == {(topology, point) for topology in points.TOPOLOGIES for point in crash.POINTS}


def test_webhooks_and_sidecars_are_not_killed_in_one_run() -> None:
    for part in points.parts(points.wanted(10, 1), 1):
        assert len({point.partition(":")[0] for point in part.points}) == 1
        assert len(part.points) <= points.KILLS_A_RUN


def test_what_was_missed_is_tried_again_until_it_is_hit() -> None:
    whole = points.wanted(2, 1)
    tried: list[points.Part] = []

    def work(part: points.Part) -> Report:
        tried.append(part)
        return report_of(part._replace(points=part.points[: len(part.points) // 2] if len(tried) < 4 else part.points))

    reports = list(points.reports(whole, 1, work))
    assert points.missed(reports, whole) == {}
    assert len({part.number for part in tried}) == len(tried)


def test_what_nobody_hits_is_missed() -> None:
    whole = points.wanted(2, 1)
    reports = list(points.reports(whole, 1, lambda part: Report(part.number, topology=part.topology)))
    assert points.missed(reports, whole) == whole
    assert "kills                                      0" in summary.of_points(reports, crash.POINTS, 1.0)


def test_what_is_provoked_has_points() -> None:
    assert set(PROVOCATIONS) <= {point.rpartition(":")[0] for point in crash.POINTS}


def test_nothing_is_violated_when_killed_at_any_point(tmp_path: Path) -> None:
    whole = points.wanted(TIMES, SEED)
    reports = []
    with Ground(tmp_path / "ground") as ground:
        for report in points.reports(whole, SEED, lambda part: run_part(part, tmp_path, ground)):
            assert report.violations == [], report.line()
            reports.append(report)
    assert points.missed(reports, whole) == {}
