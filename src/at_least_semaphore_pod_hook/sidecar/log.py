"""A line of log for each event on standard error, as JSON or as text."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.settings import Sidecar

STDERR = 2
LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "critical": 50}
MAX_MESSAGE = 240
ASCII_END, BMP_END = 0x7F, 0x10000


def quote(text: str) -> str:
    """Write a JSON string in ASCII. The `json` module would do, for another 100 kB in each pod."""
    parts = ['"']
    for char in text:
        point = ord(char)
        if char in '"\\':
            parts.append("\\" + char)
        elif char >= " " and point < ASCII_END:
            parts.append(char)
        elif point < BMP_END:
            parts.append(f"\\u{point:04x}")
        else:
            point -= BMP_END
            parts.append(f"\\u{0xD800 + (point >> 10):04x}\\u{0xDC00 + (point & 0x3FF):04x}")
    parts.append('"')
    return "".join(parts)


def timestamp(seconds: float) -> str:
    """Write seconds since the epoch as RFC 3339, in UTC, to the millisecond."""
    milliseconds = int(seconds * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000)) + f".{milliseconds % 1000:03d}Z"


class Log:
    """Writes lines of at least the level that the settings say."""

    __slots__ = ("_fields", "_json", "_level", "_poll")

    def __init__(self, settings: Sidecar) -> None:
        self._level = LEVELS.get(settings.common.log_level.lower(), LEVELS["info"])
        self._json = settings.common.log_format.lower() != "text"
        self._fields = (
            ("semaphore", f"{settings.namespace}/{settings.key}"),
            ("namespace", settings.namespace),
            ("key", settings.key),
            ("permit", settings.permit),
            ("pod", settings.pod),
        )
        self._poll = select.poll()
        self._poll.register(STDERR, select.POLLOUT)

    def write(self, level: str, message: str, outcome: str = "", seconds: float = 0.0) -> None:
        """Write a line, or drop it where standard error takes none: a log that is stuck must not cost the permit.

        What a call of the store came to has an `outcome`, and how many `seconds` it took.
        """
        if LEVELS[level] < self._level:
            return
        line = self.line(level, message, time.time(), outcome, seconds).encode("ascii", "backslashreplace")
        # A pipe that is writable at all takes 4,096 bytes without blocking; no line comes near that.
        try:
            if self._poll.poll(0):
                os.write(STDERR, line + b"\n")
        except OSError:
            return

    def line(self, level: str, message: str, at: float, outcome: str = "", seconds: float = 0.0) -> str:
        """Return a line without its end; `at` is when, in seconds since the epoch."""
        message = message[:MAX_MESSAGE]
        own = [(name, quote(value)) for name, value in self._fields]
        if outcome:
            own += [("outcome", quote(outcome)), ("milliseconds", f"{seconds * 1_000:.1f}")]
        if self._json:
            first = [("time", quote(timestamp(at))), ("level", quote(level)), ("message", quote(message))]
            return "{" + ", ".join(f'"{name}": {value}' for name, value in first + own) + "}"
        rest = " ".join(f"{name}={value}" for name, value in own)
        return f"{timestamp(at)} {level.upper()} {quote(message)[1:-1]} {rest}"
