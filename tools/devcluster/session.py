"""A run of a tool in a terminal: a directory of its own, an end on SIGINT and SIGTERM, and nothing left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNALLED = 128


class StoppedError(BaseException):
    """SIGINT or SIGTERM came. No `Exception`, so that nothing that handles errors on the way stops it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = _SIGNALLED + number


@contextlib.contextmanager
def until_signalled() -> Iterator[Callable[[], None]]:
    """Raise StoppedError in the main thread at the first SIGINT or SIGTERM; later ones don't disturb the clean-up.

    What is yielded raises it again where it was lost on the way, in a library that takes any exception for its own.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        ignore_signals()
        came.append(number)
        raise StoppedError(number)

    def check() -> None:
        if came:
            raise StoppedError(came[0])

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let nothing interrupt the clean-up from here on."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Make a directory and remove it in the end; after an error its log files stay, and only they.

    What the tools' own modules log goes to a file in it.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    handler = logging.FileHandler(directory / "tools.log", delay=True)
    logging.getLogger().addHandler(handler)
    try:
        yield directory
    except Exception:
        ignore_signals()
        handler.close()
        _keep_logs(directory)
        raise
    except BaseException:
        handler.close()
        _remove(directory)
        raise
    else:
        ignore_signals()
        handler.close()
        _remove(directory)
    finally:
        logging.getLogger().removeHandler(handler)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _keep_logs(directory: Path) -> None:
    """Remove all but the logs: keys, tokens and data are of no use once their servers have ended."""
    for place, _, names in os.walk(directory, topdown=False):
        for name in names:
            if not name.endswith(".log"):
                (Path(place) / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds a log
            Path(place).rmdir()
