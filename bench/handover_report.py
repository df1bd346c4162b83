"""What a case gives: rows of a table, each with its floor and whether it was met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        case: What was measured.
        samples: How often.
        typical: The median, as text with its unit.
        worst: The 99th percentile or the worst, the same.
        floor: What is demanded, the same.
        met: Whether it was met.
    """

    case: str
    samples: int
    typical: str
    worst: str
    floor: str
    met: bool


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of all values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def latencies(case: str, seconds: Sequence[float], *, p99: float, p50: float | None = None) -> Row:
    """Return the row of latencies; the floors are in seconds."""
    if not seconds:
        return Row(case, 0, "-", "-", _milliseconds(p99), met=False)
    typical, worst = statistics.median(seconds), percentile(seconds, 0.99)
    floor = f"p99 {_milliseconds(p99)}" if p50 is None else f"{_milliseconds(p50)} / {_milliseconds(p99)}"
    met = worst <= p99 and (p50 is None or typical <= p50)
    return Row(case, len(seconds), _milliseconds(typical), _milliseconds(worst), floor, met)


def none_of(case: str, samples: int, wrong: Sequence[object]) -> Row:
    """Return the row of an invariant: `wrong` is what broke it."""
    shown = "; ".join(map(str, wrong[:3]))
    return Row(f"{case}{f': {shown}' if shown else ''}", samples, "", f"{len(wrong)} wrong", "0 wrong", not wrong)


def at_most(case: str, samples: int, value: float, floor: float, unit: str, typical: float | None = None) -> Row:
    """Return the row of a value that has an upper bound."""
    middle = "" if typical is None else f"{typical:.3g} {unit}"
    return Row(case, samples, middle, f"{value:.3g} {unit}", f"at most {floor:g} {unit}", value <= floor)


def at_least(case: str, samples: int, value: float, floor: float, unit: str) -> Row:
    """Return the row of a value that has a lower bound."""
    return Row(case, samples, "", f"{value:.3g} {unit}", f"at least {floor:g} {unit}", value >= floor)


def failed(case: str, reason: object) -> Row:
    """Return the row of a case that could not be measured."""
    first = str(reason).partition("\n")[0]
    return Row(f"{case}: {first[:100]}", 0, "-", "-", "", met=False)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text."""
    head = ("case", "n", "p50", "p99/worst", "floor", "")
    lines = [head, *((r.case, str(r.samples), r.typical, r.worst, r.floor, "pass" if r.met else "MISS") for r in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = ("<", ">", ">", ">", ">", "<")
    return "\n".join(
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(line, aligned, widths, strict=True)).rstrip()
        for line in lines
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
