"""What a tool that was run with a temporary directory of its own has left on the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of all processes that were given a directory, or work in it."""
    wanted = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            told = command + (entry / "environ").read_bytes() + os.fsencode((entry / "cwd").readlink())
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        if wanted in told:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def assert_nothing_left(directory: Path) -> None:
    """Fail where a process or a file is left. Processes that die with their parent get a moment for it."""
    deadline = time.monotonic() + 2
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(directory) == []
    assert list(directory.iterdir()) == []
