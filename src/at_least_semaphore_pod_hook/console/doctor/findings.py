"""What there is to say of an installation, one line each, and how it is shown."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.overview.tables import GREEN, NONE, RED, YELLOW, Cell, heads_of, table

if TYPE_CHECKING:
    from collections.abc import Sequence


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


_COLOURS = {Level.OK: GREEN, Level.WARNING: YELLOW, Level.ERROR: RED}


class Finding(NamedTuple):
    """One line.

    Attributes:
        check: What was looked at.
        level: How bad it is.
        seen: What was seen.
        todo: What to do about it; empty where nothing.
    """

    check: str
    level: Level
    seen: str
    todo: str = ""


def ok(check: str, seen: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(check, Level.OK, seen)


def warning(check: str, seen: str, todo: str) -> Finding:
    """Say that something works, and what could come of it."""
    return Finding(check, Level.WARNING, seen, todo)


def error(check: str, seen: str, todo: str) -> Finding:
    """Say that something does not work, or that pods can get past the semaphore."""
    return Finding(check, Level.ERROR, seen, todo)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 where there is an error, else 0."""
    return int(any(finding.level is Level.ERROR for finding in findings))


def render(findings: Sequence[Finding], output: str, *, colour: bool) -> str:
    """Return findings as a table, JSON or YAML, with a newline at the end."""
    if output == "table":
        rows = [heads_of(["LEVEL", "CHECK", "SEEN", "TO DO"])]
        rows += [
            [Cell(each.level.value, _COLOURS[each.level]), Cell(each.check), Cell(each.seen), Cell(each.todo or NONE)]
            for each in findings
        ]
        return table(rows, colour=colour)
    document = {"findings": [each._asdict() for each in findings]}
    if output == "json":
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    return msgspec.yaml.encode(document).decode()
