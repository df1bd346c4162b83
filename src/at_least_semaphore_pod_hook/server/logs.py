"""Structured logs: one line a decision, JSON or text."""

from __future__ import annotations

import logging
import sys
import time
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    import asyncio

_STANDARD = len(vars(logging.makeLogRecord({})))

_encode = msgspec.json.Encoder(enc_hook=str).encode


def _time(record: logging.LogRecord) -> str:
    """Return when a record was made: RFC 3339, UTC, milliseconds."""
    return f"{_second(int(record.created))}.{int(record.msecs):03}Z"


@lru_cache(maxsize=2)
def _second(epoch: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch))


class _Formatter(logging.Formatter):
    """What both formats share: the fields that a record was given by `extra`."""

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        # What `extra` gives a record comes after what every record has.
        fields = dict(islice(vars(record).items(), _STANDARD, None))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return _encode(line | self.fields(record)).decode()


class TextFormatter(_Formatter):
    """The message, followed by name=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        pairs = "".join(f" {name}={value}" for name, value in self.fields(record).items())
        return f"{_time(record)} {record.levelname:7} {record.getMessage()}{pairs}"


class BufferedHandler(logging.StreamHandler[TextIO]):
    """Writes lines of one turn of the event loop at once; a warning or worse is never kept back.

    Writing is a system call, which costs more than making the line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Write at the end of each turn of this loop from now on; with None, at once again."""
        self._loop = loop
        self.write_out()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - what a handler does with a record that cannot be formatted
            self.handleError(record)
            return
        if self._loop is None or record.levelno >= logging.WARNING:
            self.write_out()
        elif len(self._lines) == 1:
            self._loop.call_soon(self.write_out)

    def write_out(self) -> None:
        """Write what has been kept back."""
        lines, self._lines = self._lines, []
        if lines:
            self.stream.write("\n".join(lines) + "\n")
            self.flush()


def set_up(level: str, format_: str) -> BufferedHandler:
    """Send all logs to standard error, by the handler that is returned.

    Args:
        level: debug, info, warning or error.
        format_: json or text.
    """
    # Each would be looked up for every line, and none of it is shown.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way to spare the look-up of the caller
    handler = BufferedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "aiohttp", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler
