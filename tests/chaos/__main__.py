"""`python -m tests.chaos --runs 40 --seed 1`: many runs, a line for each, a table at the end; 1 on a violation."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from devcluster.errors import DevClusterError
from tests.chaos.clusters import Ground
from tests.chaos.fault import Verdict
from tests.chaos.runs import Report, run

ROOM_BYTES = 2**30
REGRESSIONS = Path(__file__).with_name("regressions.json")


def seeds(first: int, count: int, *, regressions: bool = True) -> Iterator[int]:
    """Yield the seeds of what has once failed, then `count` from `first` on."""
    if regressions:
        yield from (entry["seed"] for entry in json.loads(REGRESSIONS.read_text()))
    yield from range(first, first + count)


def in_memory() -> str | None:
    """Name a directory in memory, where there is one with room; None for the usual one.

    What a power cut takes along is cut off by hand, so that waiting for a disk would only lower the load.
    """
    place = Path("/dev/shm")
    enough = place.is_dir() and shutil.disk_usage(place).free > ROOM_BYTES
    return str(place) if enough else None


def run_seed(seed: int, kept: Path, ground: Ground) -> Report:
    """Run a seed; what it leaves is kept below `kept` where it fails."""
    place = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir=in_memory()))
    try:
        report = run(seed, place, ground)
    except BaseException:
        _keep(place, kept / str(seed))
        raise
    if report.violations:
        _keep(place, kept / str(seed))
    else:
        shutil.rmtree(place)
    return report


def _keep(place: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, kept)


def summary(reports: Sequence[Report], seconds: float) -> str:
    """Return the table."""
    kinds = Counter(name for report in reports for name in report.faults)
    points = Counter(point for report in reports for point in report.crash_points)
    rows = [
        ("runs", len(reports)),
        ("  with a real API server", sum(report.real for report in reports)),
        *((f"  {name}", count) for name, count in Counter(report.topology for report in reports).items()),
        ("runs with too little load", sum(not report.counts for report in reports)),
        ("seconds", f"{seconds:.0f} ({seconds / max(1, len(reports)):.1f} a run)"),
        ("operations", sum(report.operations for report in reports)),
        ("operations with unknown outcome", sum(report.unknown for report in reports)),
        ("kinds of faults", len(kinds)),
        *((f"  {name}", count) for name, count in sorted(kinds.items())),
        *_losses(reports),
        ("crash points hit", len(points)),
        *((f"  {name}", count) for name, count in sorted(points.items())),
        ("violations", sum(len(report.violations) for report in reports)),
    ]
    return "\n".join(f"{name:42} {value}" for name, value in rows)


def _losses(reports: Sequence[Report]) -> list[tuple[str, int]]:
    """Tell what must not be apart from what the verdict of a fault allows."""
    rows = []
    for what, among in (
        ("", [report for report in reports if report.verdict is Verdict.NONE]),
        (", as a verdict allows", [report for report in reports if report.verdict is not Verdict.NONE]),
    ):
        rows.append((f"over-admissions{what}", sum(report.over_admissions for report in among)))
        rows.append((f"permits lost{what}", sum(report.permits_lost for report in among)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--only", action="store_true", help="without the seeds that have failed before")
    parser.add_argument("--directory", type=Path, default=Path(".chaos"), help="where what failed is kept")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    reports = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as shared, Ground(Path(shared)) as ground:
        waiting = deque(seeds(options.seed, options.runs, regressions=not options.only))
        others = iter(range(options.seed + options.runs, options.seed + 2 * options.runs))
        while waiting:
            seed = waiting.popleft()
            try:
                report = run_seed(seed, options.directory, ground)
            except DevClusterError as error:
                report = Report(seed, violations=[f"it could not be run: {error}"])
            reports.append(report)
            print(f"{len(reports)}/{len(reports) + len(waiting)} {report.line()}", flush=True)
            if not report.counts and (other := next(others, None)) is not None:
                waiting.append(other)
            for violation in report.violations:
                print(f"    {violation}")
            if report.violations:
                print(f"    again: make chaos RUNS=1 SEED={seed}; left behind: {options.directory / str(seed)}")
    print(summary(reports, time.monotonic() - began))
    return int(any(report.violations for report in reports))


if __name__ == "__main__":
    sys.exit(main())
