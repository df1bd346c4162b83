"""The document as text for people: tables, in colour where that is wanted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from at_least_semaphore_pod_hook.overview.document import HolderView, Overview, SemaphoreView

RED, YELLOW, GREEN, BOLD, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[1m", "\x1b[0m"
GAP = "   "
UNKNOWN = "?"
NONE = "-"
MINUTE, HOUR, DAY = 60, 3_600, 86_400
_unprintable = re.compile(r"[^\x20-\x7e]")


class Cell(NamedTuple):
    """A field of a table, and the colour that it is shown in."""

    text: str
    colour: str = ""


Row = list[Cell]


def render(overview: Overview, *, wide: bool, detailed: bool, colour: bool) -> str:
    """Return the document as text that ends with a newline; an empty one where there are no semaphores.

    Args:
        overview: What to show.
        wide: Show what few need as well.
        detailed: Show holders and waiters, too.
        colour: Use terminal colours.
    """
    blocks = []
    if overview.semaphores:
        blocks.append(table(_summary(overview, wide=wide), colour=colour))
    for semaphore in overview.semaphores if detailed else ():
        blocks += [block for block in _details(semaphore, overview.at, wide=wide, colour=colour) if block]
    return "\n".join(blocks)


def age(seconds: float) -> str:
    """Return a duration in its two largest units: `42s`, `3m5s`, `2h10m`, `4d2h`."""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole}s"
    if whole < HOUR:
        return f"{whole // MINUTE}m{whole % MINUTE}s"
    if whole < DAY:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE}m"
    return f"{whole // DAY}d{whole % DAY // HOUR}h"


def printable(text: str) -> str:
    """Return a text that cannot steer a terminal: names are written by whoever reaches the store."""
    return _unprintable.sub("?", text)


def _summary(overview: Overview, *, wide: bool) -> list[Row]:
    heads = ["NAMESPACE", "KEY", "LENGTH", "FREE", "HELD", "WAITING", "OLDEST WAIT"]
    rows = [heads_of([*heads, "DENIED OWNERS", "CONDITIONS"] if wide else heads)]
    for one in overview.semaphores:
        oldest = age((overview.at - one.oldest_wait_since).total_seconds()) if one.oldest_wait_since else NONE
        row = [
            Cell(one.namespace),
            Cell(one.key),
            Cell(str(one.length)),
            Cell(str(one.free), GREEN if one.free else YELLOW),
            Cell(str(one.held), RED if one.held > one.length else ""),
            Cell(UNKNOWN if one.waiting is None else str(one.waiting), YELLOW if one.waiting else ""),
            Cell(UNKNOWN if one.waiting is None else oldest),
        ]
        if wide:
            row.append(Cell(str(len(one.denied))))
            row.append(Cell(",".join(one.conditions) or NONE, RED if one.conditions else ""))
        rows.append(row)
    return rows


def _details(semaphore: SemaphoreView, at: datetime, *, wide: bool, colour: bool) -> Iterable[str]:
    heads = ["HOLDER", "NODE", "SINCE", "LEASE LEFT", "TOKEN", "PERMIT"]
    rows = [heads_of([*heads, "PHASE", "SIDECAR"] if wide else heads)]
    for holder in semaphore.holders:
        left = (holder.lease_ends - at).total_seconds()
        row = [
            Cell(holder.pod),
            Cell(holder.node or NONE),
            Cell(age((at - holder.since).total_seconds())),
            Cell(age(left)),
            Cell(str(holder.token)),
            Cell(holder.permit),
        ]
        if wide:
            row += [Cell(holder.phase or NONE), Cell(sidecar(holder), RED if holder.silent else "")]
        rows.append(row)
    yield f"{semaphore.name}\n" + _named(rows, semaphore.held, colour=colour) if semaphore.holders else ""
    rows = [heads_of(["POSITION", "WAITER", "WAITING FOR", *(["BEHIND"] if wide else [])])]
    for waiter in semaphore.waiters:
        row = [Cell(str(waiter.position)), Cell(waiter.pod), Cell(age((at - waiter.since).total_seconds()))]
        rows.append([*row, Cell("gate" if waiter.gated else "sidecar")] if wide else row)
    yield _named(rows, semaphore.waiting or 0, colour=colour) if semaphore.waiters else ""


def sidecar(holder: HolderView) -> str:
    """Say in a word how a holder's sidecar does."""
    if holder.silent:
        return "silent"
    return "renews" if holder.confirmed else "not yet"


def heads_of(names: Sequence[str]) -> Row:
    """Return a table's first row."""
    return [Cell(name, BOLD) for name in names]


def _named(rows: list[Row], count: int, *, colour: bool) -> str:
    more = count - (len(rows) - 1)
    return table(rows, colour=colour) + (f"and {more} more\n" if more > 0 else "")


def table(rows: list[Row], *, colour: bool) -> str:
    """Lay rows out in columns."""
    rows = [[Cell(printable(text), tint) for text, tint in row] for row in rows]
    widths = [max(len(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        last = len(row) - 1
        # Colour codes have no width: they go around the padded text.
        padded = [cell.text if number == last else cell.text.ljust(widths[number]) for number, cell in enumerate(row)]
        shown = [
            f"{cell.colour}{text}{PLAIN}" if colour and cell.colour else text
            for cell, text in zip(row, padded, strict=True)
        ]
        lines.append(GAP.join(shown).rstrip() + "\n")
    return "".join(lines)
