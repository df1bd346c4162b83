"""How a run's history is checked, and small readings of pods."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from tests.chaos.checker import check
from tests.chaos.fault import Fault, Verdict, verdict_of
from tests.chaos.history import Operation
from tests.chaos.holds import Expectation
from tests.cluster.e2e import PREFIX

UNSYNCED_SECONDS = 5.0
"""How old a write may be that a power cut takes along, and then some."""
UNSEEN_SECONDS = 1.0
"""How long it may take from a grant until the API server lists its pod as one that was let in, and then some."""
OF_LEASES = {"never_above_length", "granted_once", "held_is_renewed", "full_is_full"}
"""Rules that go by how long leases last."""


def key_of(pod: dict[str, Any]) -> str:
    """Return the key that a pod asked for."""
    return str(pod["metadata"]["annotations"][f"{PREFIX}key"])


class Span(NamedTuple):
    """From the first fault to the end of healing, in seconds of the history's clock."""

    start: float
    end: float


def expectation(verdict: Verdict, faults: Span, topology: str) -> Expectation:
    """Return what a history may show under faults of this verdict, on such a store."""
    allowed = Expectation(overrun=math.inf if topology == "etcd" else 0.0)
    if verdict in (Verdict.GRANTS, Verdict.WRITES):
        loss: Literal["not of grants", "bounded"] = "not of grants" if verdict is Verdict.GRANTS else "bounded"
        return allowed._replace(loss=loss, lost_after=faults.start - UNSYNCED_SECONDS, whole_at=faults.end)
    return allowed


def violations(operations: Sequence[Operation], verdict: Verdict, faults: Span, topology: str = "single") -> list[str]:
    """Return what a history shows that must not be."""
    found = [
        str(violation)
        for violation in check(operations, expectation(verdict, faults, topology))
        if verdict is not Verdict.CLOCK or violation.rule not in OF_LEASES
    ]
    return found + lost(operations) if verdict is Verdict.NONE else found


def in_flight(operations: Sequence[Operation], faults: Sequence[Fault]) -> dict[str, int] | None:
    """Return how many pods a rebuild could not see, by key; None where more may be lost.

    These were granted a permit, or let in, so short a time before the store lost it that the API server need not have
    shown it.
    """
    losing = [fault for fault in faults if fault.verdict >= Verdict.WRITES]
    others = [fault for fault in faults if fault not in losing]
    if not losing or verdict_of(others) > Verdict.NONE or not all(fault.rebuilt and fault.lost for fault in losing):
        return None
    unseen: Counter[str] = Counter()
    for start, end in (fault.lost for fault in losing if fault.lost):
        for one in operations:
            granted = one.outcome != "fail" and one.result.get("outcome", "granted") in {"granted", "resumed"}
            answered = one.result.get("gave_up", one.completed)
            if one.kind == "acquire" and granted and one.invoked < end and answered > start - UNSEEN_SECONDS:
                unseen[one.semaphore.partition("/")[2]] += 1
    return unseen


def lost(operations: Sequence[Operation]) -> list[str]:
    """Name the permits that a sidecar had confirmed, nobody gave back, and a store did not know any more."""
    confirmed: set[str] = set()
    found: dict[str, str] = {}
    for operation in sorted(operations, key=lambda one: one.invoked):
        permit = operation.permit
        if operation.kind == "release" and operation.outcome != "fail":
            confirmed.discard(permit)
        elif operation.kind == "renew" and operation.result.get("lease_ms", 0) > 0:
            confirmed.add(permit)
        elif operation.kind in {"renew", "keep"} and permit in confirmed and operation.result.get("lease_ms") == 0:
            if not _released(permit, operations, operation.completed):
                found[permit] = f"{operation.semaphore}: {permit} was lost at {operation.invoked:.3f}"
        elif operation.kind == "acquire" and operation.result.get("outcome") == "granted":
            granted = operation.result["permit"]
            if granted in confirmed and not _released(granted, operations, operation.completed):
                found[granted] = f"{operation.semaphore}: {granted} was granted anew at {operation.invoked:.3f}"
    return list(found.values())


def _released(permit: str, operations: Sequence[Operation], before: float) -> bool:
    return any(
        one.kind == "release" and one.permit == permit and one.outcome != "fail" and one.invoked < before
        for one in operations
    )
