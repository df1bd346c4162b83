"""The tables at the end of many runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tests.chaos.fault import Verdict
from tests.chaos.runs import Report

Row = tuple[str, object]


def of_runs(reports: Sequence[Report], seconds: float) -> str:
    """Return what befell seeded runs, and what came of it."""
    rows: list[Row] = [
        ("runs", len(reports)),
        ("  with a real API server", sum(report.real for report in reports)),
        *_counted(report.topology for report in reports),
        ("runs with too little load", sum(not report.counts for report in reports)),
        ("seconds", f"{seconds:.0f} ({seconds / max(1, len(reports)):.1f} a run)"),
        ("operations", sum(report.operations for report in reports)),
        ("operations with unknown outcome", sum(report.unknown for report in reports)),
        *_kinds("kinds of faults", [name for report in reports for name in report.faults]),
        *_losses(reports),
        *_kinds("crash points hit", [point for report in reports for point in report.crash_points]),
        ("violations", sum(len(report.violations) for report in reports)),
    ]
    return "\n".join(f"{name:42} {value}" for name, value in rows)


def _kinds(what: str, names: Sequence[str]) -> Iterator[Row]:
    yield what, len(set(names))
    yield from sorted(_counted(names))


def _counted(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    return ((f"  {name}", count) for name, count in Counter(names).items())


def _losses(reports: Sequence[Report]) -> Iterator[Row]:
    """Tell what must not be apart from what the verdict of a fault allows."""
    for what, allowed in (("", False), (", as a verdict allows", True)):
        among = [report for report in reports if (report.verdict is not Verdict.NONE) == allowed]
        yield f"over-admissions{what}", sum(report.over_admissions for report in among)
        yield f"permits lost{what}", sum(report.permits_lost for report in among)


def of_points(reports: Sequence[Report], points: Sequence[str], seconds: float) -> str:
    """Return how often processes were killed at each point, and what came of the runs in which they were.

    Operations are those that began between the order to die there and the death.
    """
    lines = [
        f"{'point':38} {'kills':>5} {'single':>6} {'etcd':>5} {'operations':>10} {'viol.':>5} {'over':>4} {'lost':>4}"
    ]
    for point in points:
        its = [report for report in reports if point in report.crash_points]
        kills = Counter({report.topology: 0 for report in reports})
        for report in its:
            kills[report.topology] += report.crash_points.count(point)
        operations = sum(report.operations_at.get(point, 0) for report in its)
        lines.append(
            f"{point:38} {kills.total():5} {kills['single']:6} {kills['etcd']:5} {operations:10}"
            f" {sum(len(report.violations) for report in its):5} {sum(report.over_admissions for report in its):4}"
            f" {sum(report.permits_lost for report in its):4}"
        )
    totals = {
        "runs": len(reports),
        "seconds": round(seconds),
        "points": len({point for report in reports for point in report.crash_points}),
        "kills": sum(len(report.crash_points) for report in reports),
        "operations": sum(report.operations for report in reports),
        "operations with unknown outcome": sum(report.unknown for report in reports),
        "over-admissions": sum(report.over_admissions for report in reports),
        "permits lost": sum(report.permits_lost for report in reports),
        "violations": sum(len(report.violations) for report in reports),
    }
    return "\n".join([*lines, *(f"{name:42} {value}" for name, value in totals.items())])
