"""Seeded runs under faults: no violation, and enough load in each to say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import run_seed, seeds
from tests.chaos.clusters import Ground

RUNS = int(os.environ.get("CHAOS_RUNS", "40"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
MOST_TRIES = 3
ENOUGH_COUNTED = 0.8


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("ground")) as ground:
        yield ground


@pytest.fixture(scope="module")
def counted() -> list[bool]:
    """For each run, whether there was enough load for it to say something."""
    return []


@pytest.mark.parametrize("seed", list(seeds(SEED, RUNS)))
def test_nothing_is_violated_under_faults(seed: int, ground: Ground, tmp_path: Path, counted: list[bool]) -> None:
    for _ in range(MOST_TRIES):
        report = run_seed(seed, tmp_path, ground)
        assert report.violations == [], report.line()
        if report.counts:
            break
    counted.append(report.counts)


def test_enough_of_the_runs_were_under_load(counted: list[bool]) -> None:
    # A busy machine keeps some of them from loading the store.
    assert counted.count(True) >= ENOUGH_COUNTED * len(counted)
