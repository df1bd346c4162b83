"""`side_by_side.py NAME=COMMAND …`: run shell commands at once, each line of output under its command's name.

What waits for leases, probes and elections leaves a processor idle that something else can use. What a command that
failed said last is repeated at the end. The exit code is 1 where one has failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from typing import cast

LAST_LINES = 80
MAX_LINE_BYTES = 1 << 20


async def _run(name: str, command: str, last: deque[str]) -> int:
    started = time.monotonic()
    process = await asyncio.create_subprocess_shell(
        command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        limit=MAX_LINE_BYTES,
    )
    try:
        async for line in cast("asyncio.StreamReader", process.stdout):
            last.append(f"{name} | {line.decode(errors='replace').rstrip()}")
            print(last[-1], flush=True)
        code = await process.wait()
    finally:
        if process.returncode is None:
            # All of its group, as an interrupt from a terminal would: the shell alone would leave the rest behind.
            os.killpg(process.pid, signal.SIGINT)
            await process.wait()
    print(f"{name} | exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
    return code


async def _all(commands: dict[str, str]) -> int:
    last: dict[str, deque[str]] = {name: deque(maxlen=LAST_LINES) for name in commands}
    codes = await asyncio.gather(*(_run(name, command, last[name]) for name, command in commands.items()))
    failed = [name for name, code in zip(commands, codes, strict=True) if code]
    for name in failed:
        print(f"--- {name} failed; its last lines:", *last[name], sep="\n", flush=True)
    return int(bool(failed))


def main(arguments: list[str]) -> int:
    """Run the commands, and return the exit code."""
    commands = dict(argument.split("=", 1) for argument in arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(_all(commands))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
