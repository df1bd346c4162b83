"""Structured logs: one line a decision, JSON or text."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

_encode = msgspec.json.Encoder(enc_hook=str).encode


def _time(record: logging.LogRecord) -> str:
    """Return when a record was made: RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Formatter(logging.Formatter):
    """What both formats share: the fields that a record was given by `extra`."""

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
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


def set_up(level: str, format_: str) -> None:
    """Send all logs to standard error.

    Args:
        level: debug, info, warning or error.
        format_: json or text.
    """
    # Each would be looked up for every line, and none of it is shown.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - the documented way to spare the look-up of the caller
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "httpx2", "httpcore2", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
