"""What was asked of semaphores and what was answered, as every caller saw it, with the moments of both."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

OK, FAIL, UNKNOWN = "ok", "fail", "unknown"
KINDS = frozenset({"acquire", "renew", "keep", "release", "reclaim", "begin", "set_length", "adopt", "state"})


class Operation(NamedTuple):
    """One call of a store, as its caller saw it.

    Attributes:
        process: Who called, e.g. "webhook-1", "sidecar p1", "client-3".
        kind: One of `KINDS`.
        semaphore: Its name, "namespace/key".
        permit: The permit that it is about, of an acquire the name that was asked for; "" where it is about none, as
            the reclaim of all that has expired. A reclaim that names a permit takes it whatever its lease.
        invoked: When it was called, in seconds of one monotonic clock.
        completed: When it was answered, by the same clock; math.inf where no answer ever came.
        outcome: "ok"; "fail": surely not applied; "unknown": it may have been applied, may yet be, or may never be.
        result: Of an ok: acquire {"outcome", "permit", "token", "length", "held", "lease_ms"}, renew and keep
            {"lease_ms"}, release {"released"}, reclaim {"count"}, begin {"token"}, set_length {"length"}, adopt
            {"permits": [{"permit", "token", "lease_ms"}]}, state {"permits", "length"}. Of an unknown: {"gave_up"},
            when the caller did, where it did.
        arguments: What was asked. acquire: "length", "expiration_ms", "identity", "carried", "dry_run"; renew, keep,
            release: "pod"; release: "ended"; begin: "domain"; set_length: "length", "domain", "token"; adopt:
            "expiration_ms", and "permits" as in its result.
    """

    process: str
    kind: str
    semaphore: str
    permit: str
    invoked: float
    completed: float
    outcome: str
    result: dict[str, Any]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        answer = f"{self.outcome} {self.result}" if self.result else self.outcome
        asked = f"{self.permit} {self.arguments}" if self.arguments else self.permit
        return f"[{self.invoked:.6f}, {self.completed:.6f}] {self.process}: {self.kind} {asked} -> {answer}"


class Handle:
    """An operation under way; it is ended once, by one of its methods."""

    def __init__(self, recorder: Recorder, operation: Operation) -> None:
        self._recorder = recorder
        self._pending = operation

    def ok(self, **result: Any) -> None:
        """It was answered."""
        self._end(OK, result)

    def fail(self, **result: Any) -> None:
        """It was surely not applied."""
        self._end(FAIL, result)

    def unknown(self) -> None:
        """Nobody will ever know whether it was applied."""
        self._end(UNKNOWN, {})

    def _end(self, outcome: str, result: dict[str, Any]) -> None:
        self._recorder._end(self, self._pending, outcome, result)


class Recorder:
    """Collects the operations of many threads.

    Args:
        clock: Monotonic seconds; the default is the machine's, which all of its processes share.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[Handle, Operation] = {}
        self._ended: list[Operation] = []

    def invoke(self, process: str, kind: str, semaphore: str, permit: str = "", **arguments: Any) -> Handle:
        """Note that an operation begins."""
        if kind not in KINDS:
            raise ValueError(f"no kind of operation is called {kind}")
        operation = Operation(process, kind, semaphore, permit, self._clock(), math.inf, UNKNOWN, {}, arguments)
        handle = Handle(self, operation)
        with self._lock:
            self._pending[handle] = operation
        return handle

    def _end(self, handle: Handle, operation: Operation, outcome: str, result: dict[str, Any]) -> None:
        now = self._clock()
        completed = now
        if outcome == UNKNOWN:
            completed, result = math.inf, {"gave_up": now}
        with self._lock:
            if self._pending.pop(handle, None) is None:
                raise ValueError(f"ended twice: {operation}")
            self._ended.append(operation._replace(completed=completed, outcome=outcome, result=result))

    def operations(self) -> list[Operation]:
        """Return all operations in the order of their invocation; those still under way are unknown."""
        with self._lock:
            return sorted([*self._ended, *self._pending.values()], key=lambda operation: operation.invoked)


def dump(operations: Iterable[Operation], path: Path) -> None:
    """Write operations as lines of JSON; an end that never came is null."""
    with path.open("w", encoding="utf-8") as file:
        for operation in operations:
            fields = operation._asdict()
            if operation.completed == math.inf:
                fields["completed"] = None
            file.write(json.dumps(fields, allow_nan=False) + "\n")


def load(*paths: Path) -> list[Operation]:
    """Read what `dump` has written, of several processes too, in the order of invocation."""
    operations = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            if fields["completed"] is None:
                fields["completed"] = math.inf
            operations.append(Operation(**fields))
    return sorted(operations, key=lambda operation: operation.invoked)
