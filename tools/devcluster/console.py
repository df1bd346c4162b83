"""What the tools print: steps with their times, wrapped sentences, small tables; colour on a terminal only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

_LOG = logging.getLogger(__name__)
_WIDTH = 100
_INDENT = "      "
_STYLES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "red": "31"}


class StepError(Exception):
    """A step could not be done; the message names it and says why."""


class Console:
    """Prints to `stream` (standard output). `steps` is how many there will be."""

    def __init__(self, steps: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._steps = steps
        self._number = 0
        self._coloured = (
            self._stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        )

    def style(self, text: str, style: str) -> str:
        """Return the text in a style, as it is where there is no colour."""
        return f"\033[{_STYLES[style]}m{text}\033[0m" if self._coloured else text

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        print(text, file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Print sentences, wrapped below the present step."""
        for paragraph in text.split("\n"):
            self.line(_wrapped(" ".join(paragraph.split()), _INDENT))

    def quote(self, text: str) -> None:
        """Print what another program said: wrapped, indented, and marked."""
        margin = f"{_INDENT}| "
        for paragraph in text.splitlines():
            self.line(self.style(_wrapped(paragraph, margin), "dim"))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None] = ()) -> None:
        """Print rows in columns below a head; `styles` gives each row's style where it has one."""
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for number, row in enumerate([head, *rows]):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            text = f"{_INDENT}{'  '.join(cells)}".rstrip()
            style = "bold" if number == 0 else next(iter(styles[number - 1 : number]), None)
            self.line(self.style(text, style) if style else text)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Head what follows, and tell how long it took. StepError in place of whatever error is raised inside."""
        self._number += 1
        self.line()
        self.line(self.style(f"[{self._number}/{self._steps}] {title}", "bold"))
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            _LOG.error("step %d, %r, failed", self._number, title, exc_info=error)
            raise StepError(f"step {self._number}, {title!r}, failed: {error or type(error).__name__}") from error
        self.line(self.style(f"{_INDENT}({time.monotonic() - started:.1f} s)", "dim"))


def _wrapped(text: str, margin: str) -> str:
    # Whole names and paths, so that they can be copied.
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
