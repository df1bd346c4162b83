"""`python -m tests.chaos --runs 40 --seed 1`: many runs, a line for each, a table at the end; 1 on a violation.

With `--points 10`, runs in which webhooks and sidecars are killed at every crash point, so many times each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from devcluster.errors import DevClusterError
from tests.chaos import crash, points, summary
from tests.chaos.clusters import Ground
from tests.chaos.points import Part, Wanted
from tests.chaos.runs import Report, run, run_kept

REGRESSIONS = Path(__file__).with_name("regressions.json")


def seeds(first: int, count: int, *, regressions: bool = True) -> Iterator[int]:
    """Yield the seeds of what has once failed, then `count` from `first` on."""
    if regressions:
        yield from (entry["seed"] for entry in json.loads(REGRESSIONS.read_text()))
    yield from range(first, first + count)


def run_seed(seed: int, kept: Path, ground: Ground) -> Report:
    """Run a seed; what it leaves is kept below `kept` where it fails."""
    return run_kept(str(seed), kept, lambda place: run(seed, place, ground))


def run_part(part: Part, kept: Path, ground: Ground) -> Report:
    """Run a part of the crash points; what it leaves is kept below `kept` where it fails."""
    return run_kept(f"points-{part.number}", kept, lambda place: points.run(part, place, ground))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--points", type=int, default=0, metavar="TIMES", help="kill so often at every crash point")
    parser.add_argument("--only", action="store_true", help="without the seeds that have failed before")
    parser.add_argument("--directory", type=Path, default=Path(".chaos"), help="where what failed is kept")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as shared, Ground(Path(shared)) as ground:
        if options.points:
            return _tell_points(options, ground, began)
        reports = _all_seeds(options, ground)
    print(summary.of_runs(reports, time.monotonic() - began))
    return int(any(report.violations for report in reports))


def _tell_points(options: argparse.Namespace, ground: Ground, began: float) -> int:
    whole = points.wanted(options.points, options.seed)
    reports = _all_points(options, whole, ground)
    print(summary.of_points(reports, crash.POINTS, time.monotonic() - began))
    missed = points.missed(reports, whole)
    for (topology, point), count in missed.items():
        print(f"too few kills: {topology} {point}: {count} more are wanted")
    return int(bool(missed) or any(report.violations for report in reports))


def _all_points(options: argparse.Namespace, whole: Wanted, ground: Ground) -> list[Report]:
    def work(part: Part) -> Report:
        return _tolerantly(part.number, partial(run_part, part, options.directory, ground))

    done: list[Report] = []
    for report in points.reports(whole, options.seed, work):
        _tell(report, done, len(points.parts(whole, options.seed)), options.directory / f"points-{report.seed}")
    return done


def _all_seeds(options: argparse.Namespace, ground: Ground) -> list[Report]:
    reports: list[Report] = []
    waiting = deque(seeds(options.seed, options.runs, regressions=not options.only))
    others = iter(range(options.seed + options.runs, options.seed + 2 * options.runs))
    while waiting:
        seed = waiting.popleft()
        report = _tolerantly(seed, partial(run_seed, seed, options.directory, ground))
        if not report.counts and (other := next(others, None)) is not None:
            waiting.append(other)
        _tell(report, reports, len(reports) + 1 + len(waiting), options.directory / str(seed))
    return reports


def _tolerantly(seed: int, work: Callable[[], Report]) -> Report:
    try:
        return work()
    except DevClusterError as error:
        return Report(seed, violations=[f"it could not be run: {error}"])


def _tell(report: Report, reports: list[Report], most: int, left: Path) -> None:
    reports.append(report)
    print(f"{len(reports)}/{most} {report.line()}", flush=True)
    for violation in report.violations:
        print(f"    {violation}")
    if report.violations:
        print(f"    left behind: {left}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
