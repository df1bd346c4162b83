"""A history that its callers write themselves, where what they say to a store cannot be read along on its way.

Each process appends lines to one file: one when it calls, one when it is answered. A call without the second line is
unknown, whatever became of its process. All take the machine's one monotonic clock.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.history import FAIL, OK, UNKNOWN, Operation

VARIABLE = "CHAOS_JOURNAL"
"""Names the file, for processes that `crash.py` starts, and who they are."""
PROCESS = "CHAOS_PROCESS"


class Entry:
    """An operation under way; it is ended once, by one of its methods."""

    def __init__(self, end: Callable[[str, dict[str, Any]], None]) -> None:
        self._end = end

    def ok(self, **result: Any) -> None:
        """It was answered."""
        self._end(OK, result)

    def fail(self, **result: Any) -> None:
        """It was surely not applied."""
        self._end(FAIL, result)

    def unknown(self) -> None:
        """Nobody will ever know whether it was applied."""
        self._end(UNKNOWN, {})


class Journal:
    """Writes the operations of one process; has a `history.Recorder`'s `invoke`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._count = 0

    def invoke(self, process: str, kind: str, semaphore: str, permit: str = "", **arguments: Any) -> Entry:
        """Note that an operation begins."""
        self._count += 1
        name = f"{self._name}-{self._count}"
        self._write([name, time.monotonic(), process, kind, semaphore, permit, arguments])
        return Entry(partial(self._end, name))

    def _end(self, name: str, outcome: str, result: dict[str, Any]) -> None:
        self._write([name, time.monotonic(), outcome, result])

    def _write(self, line: list[Any]) -> None:
        # One write each, so that neither another process nor a SIGKILL comes in between.
        os.write(self._file, f"{json.dumps(line)}\n".encode())


def read(path: Path) -> list[Operation]:
    """Return what was written so far, in the order of invocation."""
    operations: dict[str, Operation] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # The last line may be just being written.
    for line in text.rpartition("\n")[0].splitlines():
        name, at, *rest = json.loads(line)
        if len(rest) > 2:
            process, kind, semaphore, permit, arguments = rest
            operations[name] = Operation(process, kind, semaphore, permit, at, math.inf, UNKNOWN, {}, arguments)
        elif rest[0] == UNKNOWN:
            operations[name] = operations[name]._replace(result={"gave_up": at})
        else:
            operations[name] = operations[name]._replace(completed=at, outcome=rest[0], result=rest[1])
    return sorted(operations.values(), key=lambda operation: operation.invoked)


def record_webhook() -> None:
    """Have the webhook that is about to start write down what it asks of its store."""
    from at_least_semaphore_pod_hook.server import sweeping  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores import opening  # noqa: PLC0415
    from tests.chaos.recorded import Faults, RecordedStore  # noqa: PLC0415

    opened, journal = opening.open_store, Journal(Path(os.environ[VARIABLE]))
    undisturbed = Faults(random.Random(0), 0.0, 0.0)
    process = os.environ.get(PROCESS, "webhook")
    assert vars(sweeping)["open_store"] is opened
    vars(sweeping)["open_store"] = lambda url: RecordedStore(opened(url), journal, process, undisturbed)


def record_sidecar() -> None:
    """Have the sidecar that is about to start write down what it asks of its store."""
    from at_least_semaphore_pod_hook.sidecar import main, stores  # noqa: PLC0415

    opened, journal = stores.open_store, Journal(Path(os.environ[VARIABLE]))

    def open_recorded(settings: Any, signals: Any) -> Any:
        store, semaphore = opened(settings, signals), f"{settings.namespace}/{settings.key}"
        renew, release = store.renew, store.release

        def recorded(kind: str, call: Callable[..., int], result: str, permit: str, pod: str, deadline: float) -> int:
            entry = journal.invoke(f"sidecar {pod}", kind, semaphore, permit, pod=pod)
            try:
                answer = call(permit, pod, deadline)
            except BaseException:
                entry.unknown()
                raise
            entry.ok(**{result: answer})
            return answer

        store.renew = partial(recorded, "renew", renew, "lease_ms")  # type: ignore[method-assign]
        store.release = partial(recorded, "release", release, "released")  # type: ignore[method-assign]
        return store

    vars(main)["open_store"] = open_recorded
