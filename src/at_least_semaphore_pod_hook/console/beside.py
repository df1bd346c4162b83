"""The flags of the webhook that runs in the same container, so that nobody has to repeat them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from at_least_semaphore_pod_hook.errors import InvalidInputError

PROGRAM = "at-least-semaphore-pod-hook"
MODULE = "at_least_semaphore_pod_hook"
ANY = "any"
PROCESSES = Path("/proc")


def webhook_arguments(process: str = ANY, processes: Path = PROCESSES) -> list[str]:
    """Return what the webhook was started with, after its subcommand.

    Args:
        process: Its process ID, or `ANY` for the first process that is a webhook.
        processes: Where processes are found.

    Raises:
        InvalidInputError: There is no such webhook, or it may not be looked at.
    """
    if process != ANY:
        found = _arguments(processes / process)
    else:
        numbers = sorted(int(entry.name) for entry in processes.iterdir() if entry.name.isdecimal())
        found = next((given for number in numbers if (given := _arguments(processes / str(number)))), None)
    if found is None:
        what = "there is no webhook here" if process == ANY else f"{process} is no webhook"
        raise InvalidInputError(f"--like-webhook: {what}: run this in the webhook's container")
    return found[1:]


def _arguments(process: Path) -> list[str] | None:
    """Return a process's arguments from the subcommand on; None where it is no webhook, or is not ours to see."""
    try:
        parts = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    for number, (program, command) in enumerate(pairwise(parts)):
        if command == "webhook" and (Path(program).name == PROGRAM or program == MODULE):
            return parts[number + 1 :]
    return None
