"""Whether a history is one that the memory store, the executable specification, could have had.

The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993): take any operation that nothing else
must precede, apply it to the specification, and go on where the answer is the recorded one; go back where it is not.
Configurations that were seen are not entered again, as Lowe has it ("Testing for linearizability", 2017). An operation
whose answer was lost may be taken at any moment after its invocation, or never.

It says nothing about time: leases do not end in it. Histories in which they may are undecided.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from at_least_semaphore_pod_hook.errors import StaleFenceError
from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, SemaphoreKey
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.chaos.history import FAIL, OK, Operation
from tests.chaos.holds import GRANTS, Expectation, by_semaphore

BUDGET = 20_000


class Verdict(StrEnum):
    """How a search ended."""

    LINEARIZABLE = "linearizable"
    NOT = "not linearizable"
    UNDECIDED = "undecided"


class Judgement(NamedTuple):
    """What was found out about one semaphore.

    Attributes:
        semaphore: Its name.
        verdict: The answer.
        reason: Why it is undecided; or how far the search came at most, and what it could not explain there.
        steps: How many applications of an operation that took.
    """

    semaphore: str
    verdict: Verdict
    reason: str
    steps: int


def judge(
    operations: Sequence[Operation], expectation: Expectation | None = None, budget: int = BUDGET
) -> list[Judgement]:
    """Search an order for each semaphore's operations.

    Args:
        operations: In any order.
        expectation: What the faults of the run allow; where they allow a loss, all is undecided.
        budget: How many steps a search may take.
    """
    expected = expectation or Expectation()
    return [_judge(name, part, expected, budget) for name, part in sorted(by_semaphore(operations).items())]


def _judge(semaphore: str, operations: Sequence[Operation], expectation: Expectation, budget: int) -> Judgement:
    history = sorted((o for o in operations if o.outcome != FAIL), key=lambda o: o.invoked)
    if not history:
        return Judgement(semaphore, Verdict.LINEARIZABLE, "", 0)
    if expectation.loss != "none":
        return Judgement(semaphore, Verdict.UNDECIDED, "the store may have lost writes", 0)
    leases = [o.arguments["expiration_ms"] / 1000 for o in history if "expiration_ms" in o.arguments]
    lasted = max(o.invoked if o.completed == math.inf else o.completed for o in history) - history[0].invoked
    if leases and lasted >= min(leases):
        return Judgement(semaphore, Verdict.UNDECIDED, f"it lasted {lasted:.1f} s, in which a lease may have ended", 0)
    return _search(semaphore, history, expectation, budget)


def _search(semaphore: str, history: list[Operation], expectation: Expectation, budget: int) -> Judgement:
    """Search depth first; a configuration is which operations were taken (a bit each) and the specification's state."""
    needed = sum(1 << index for index, operation in enumerate(history) if operation.outcome == OK)
    specification = MemoryStore(clock=_no_time)
    ends = [expectation.effect_end(operation) for operation in history]
    stack = [(0, specification)]
    seen: set[tuple[int, str]] = set()
    steps = 0
    furthest, stuck = -1, ""
    while stack:
        taken, store = stack.pop()
        if taken & needed == needed:
            return Judgement(semaphore, Verdict.LINEARIZABLE, "", steps)
        if (done := (taken & needed).bit_count()) > furthest:
            furthest, stuck = done, "; ".join(str(history[i]) for i in _candidates(history, ends, taken))
        # Those without an answer are tried last, that is, pushed first.
        for index in sorted(_candidates(history, ends, taken), key=lambda i: (history[i].outcome == OK, -i)):
            if steps >= budget:
                return Judgement(semaphore, Verdict.UNDECIDED, f"not decided in {budget} steps", steps)
            steps += 1
            after = copy.deepcopy(store)
            if not _explains(after, history[index]):
                continue
            configuration = (taken | 1 << index, _fingerprint(after))
            if configuration not in seen:
                seen.add(configuration)
                stack.append((configuration[0], after))
    reason = f"{furthest} of {needed.bit_count()} answers explained, then none of: {stuck}"
    return Judgement(semaphore, Verdict.NOT, reason, steps)


def _no_time() -> float:
    return 0.0


def _candidates(history: list[Operation], ends: list[float], taken: int) -> list[int]:
    """Which operations may come next.

    Those that were invoked before any other that is left was answered, and that may still be applied when the last one
    of those that were taken was invoked.
    """
    now = history[taken.bit_length() - 1].invoked if taken else -math.inf
    found = []
    earliest = math.inf
    for index, operation in enumerate(history):
        if operation.invoked > earliest:
            break
        if not taken >> index & 1 and ends[index] >= now:
            found.append(index)
            earliest = min(earliest, operation.completed)
    return found


def _fingerprint(store: MemoryStore) -> str:
    """The state in words, without what no answer depends on: tokens of grants and the order of insertion."""
    text = re.sub(r"token=\d+", "", repr(store._semaphores))
    return "".join(sorted(re.split(r"(?<=\)), ", text)))


def _explains(store: Store, operation: Operation) -> bool:
    """Apply an operation to the specification, and say whether the answer is the recorded one."""
    work = _apply(store, operation)
    try:
        work.send(None)
    except StopIteration as stop:
        return bool(stop.value)
    work.close()
    raise AssertionError("the memory store waits for something")


async def _apply(store: Store, operation: Operation) -> bool:
    key = SemaphoreKey(*operation.semaphore.split("/"))
    asked, answer, known = operation.arguments, operation.result, operation.outcome == OK
    pod, permit = asked.get("pod", ""), operation.permit
    given: object
    wanted: object
    match operation.kind:
        case "acquire":
            request = AcquireRequest(
                key,
                asked["length"],
                asked["expiration_ms"] // 1000,
                permit,
                asked["identity"],
                asked.get("carried", ""),
                pod,
                asked.get("dry_run", False),
            )
            acquired = await store.acquire(request)
            given = (acquired.outcome.value, acquired.length, acquired.held, acquired.permit)
            named = answer.get("permit", "") if answer.get("outcome") in GRANTS else ""
            wanted = (answer.get("outcome"), answer.get("length"), answer.get("held"), named)
        case "renew":
            given, wanted = await store.renew(key, permit, pod), answer.get("lease_ms")
        case "keep":
            given, wanted = await store.keep(key, permit, pod, asked["uid"]), answer.get("lease_ms")
        case "release":
            given = await store.release(key, permit, pod, ended=asked.get("ended", False))
            wanted = answer.get("released")
        case "reclaim":
            given, wanted = await store.reclaim(key), answer.get("count")
        case "begin" | "set_length":
            return await _guarded(store, key, operation)
        case "state":
            found = await store.state(key)
            given, wanted = (found.length, found.permits), (answer.get("length"), set(answer.get("permits", ())))
        case _:
            raise ValueError(f"the specification has no {operation.kind}")
    return not known or given == wanted


async def _guarded(store: Store, key: SemaphoreKey, operation: Operation) -> bool:
    """A step's token is the one that the real store gave; that of an unknown one is the specification's."""
    asked = operation.arguments
    try:
        if operation.kind == "begin":
            token = operation.result.get("token", 0)
            await store.begin(key, Fence(asked["domain"], token))
        else:
            await store.set_length(key, asked["length"], Fence(asked["domain"], asked["token"]))
    except StaleFenceError:
        return operation.outcome != OK
    return True
