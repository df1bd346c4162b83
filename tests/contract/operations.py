"""Calls of a store as values: performed on a store or on its specification, and their answers compared."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from at_least_semaphore_pod_hook.errors import NotHolderError, StaleFenceError
from at_least_semaphore_pod_hook.semaphore.model import (
    ENDED_SECONDS,
    FRESH_SECONDS,
    Acquired,
    AcquireRequest,
    Adoptee,
    Fence,
    Holder,
    Outcome,
    SemaphoreKey,
    SemaphoreState,
)
from at_least_semaphore_pod_hook.stores.memory import MAX_HOLDERS_NAMED, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from at_least_semaphore_pod_hook.semaphore.contracts import Store

KEYS = (SemaphoreKey("default", "one"), SemaphoreKey("default", "two"))
PERMITS = ("a", "b", "c")
PODS = ("", "pod-1", "pod-2")
LENGTHS = (2, 1, 3)
LEASES_SECONDS = (60, 2, 30)
OWNERS = ("", "Job/one", "Job/two")
STALE = "stale fence"
NOT_HOLDER = "another pod's"
UIDS = ("", "uid", "uid-2")


class Call(NamedTuple):
    """One call of a store.

    Attributes:
        method: Which of its methods.
        key: The semaphore.
        arguments: What else it is called with, by name.
        fence: Which fence it is called with, counted back from the newest that the semaphore has seen; None for none.
    """

    method: str
    key: SemaphoreKey
    arguments: dict[str, Any]
    fence: int | None = None


def _calls(method: str, **choices: Sequence[Any]) -> list[Call]:
    names = list(choices)
    return [
        Call(method, key, dict(zip(names, chosen, strict=True)))
        for key in KEYS
        for chosen in product(*choices.values())
    ]


def _acquires(requests: Sequence[AcquireRequest]) -> list[Call]:
    return [Call("acquire", request.key, {"request": request}) for request in requests]


CARRIED_ACQUIRES = _acquires(
    [
        AcquireRequest(key, 0, 60, permit, identity, carried, "pod-*")
        for key, permit, identity, carried in product(KEYS, PERMITS, ("one", "two"), PERMITS)
    ]
)
# Most grants are plain ones: were they as rare as they are among all combinations, semaphores would seldom be full.
PLAIN_ACQUIRES = _acquires(
    [
        AcquireRequest(key, 0, lease, permit, identity, pod=pod, owner=owner)
        for key, lease, permit, identity, owner, pod in product(
            KEYS, LEASES_SECONDS, PERMITS, ("one", "two"), OWNERS, ("pod-*", "pod-1")
        )
    ]
)
ACQUIRES = _acquires(
    [
        AcquireRequest(key, length, 60, permit, identity, carried, "pod-*", dry_run, assumed_length, owner, uid)
        for key, length, permit, identity, carried, dry_run, assumed_length, owner, uid in product(
            KEYS,
            (0, 0, *LENGTHS),
            PERMITS,
            ("one", "two"),
            ("", *PERMITS),
            (False, False, True),
            (0, 3),
            OWNERS,
            ("", "uid"),
        )
    ]
)
RENEWALS = _calls("renew", permit=PERMITS, pod=PODS) + _calls("renew", permit=PERMITS, pod=PODS[1:], uid=UIDS[1:])
KEEPS = _calls("keep", permit=PERMITS, pod=PODS[1:], uid=("uid", "uid-2"))
RELEASES = _calls("release", permit=PERMITS, pod=PODS, ended=(False, True)) + _calls(
    "release", permit=PERMITS, pod=PODS[1:], uid=UIDS[1:], ended=(False, True)
)
RECLAIMS = _calls("reclaim")
STATES = _calls("state")
FORGETTINGS = _calls("forget_denied", owner=OWNERS[1:])
BEGINNINGS = _calls(
    "begin", fence=(Fence("redlock", 0), *(Fence("etcd/1", token) for token in (3, 1, 2)), Fence("etcd/2", 1))
)
RESIZES = [call._replace(fence=back) for call, back in product(_calls("set_length", length=LENGTHS), (0, 0, 0, 1, 2))]
_ADOPTEES = (
    Adoptee("a", "pod-1", "uid", 0, 60),
    Adoptee("b", "pod-2", "uid-2", 7, 2),
    Adoptee("c", "pod-1", "uid", 1_800_000_000_000_000 + 10**12, 30),
)
ADOPTIONS = [
    call._replace(fence=back)
    for call, back in product(_calls("adopt", adoptees=[(), *((one,) for one in _ADOPTEES), _ADOPTEES]), range(4))
]


def performed(store: Store, call: Call, fences: Sequence[Fence]) -> Coroutine[Any, Any, Any]:
    """Perform a call. Returns its answer, STALE where its fence was out of date, or NOT_HOLDER."""
    arguments = dict(call.arguments)
    if call.fence is not None:
        arguments["fence"] = fences[-1 - call.fence % len(fences)]
    return _answered(store, call, arguments)


async def _answered(store: Store, call: Call, arguments: dict[str, Any]) -> Any:
    if call.method == "acquire":
        return await store.acquire(**arguments)
    try:
        return await getattr(store, call.method)(call.key, **arguments)
    except StaleFenceError:
        return STALE
    except NotHolderError:
        return NOT_HOLDER


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns that never waits: the specification's."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def ends_ms(specification: MemoryStore, key: SemaphoreKey) -> list[int]:
    """Return the moments at which something of a semaphore ends, in milliseconds since 1970."""
    semaphore = specification._get(key)
    fresh = [held.granted_ms + FRESH_SECONDS * 1000 for held in semaphore.permits.values()]
    noted = [at + ENDED_SECONDS * 1000 for at in semaphore.ended.values()]
    return [held.lease_end_ms for held in semaphore.permits.values()] + fresh + noted


def agree(answer: Any, expected: Any, specification: MemoryStore, key: SemaphoreKey) -> bool:
    """Whether an answer is the specification's, or another one that the contract leaves as good."""
    if isinstance(answer, Acquired) and isinstance(expected, Acquired) and answer.outcome is Outcome.FULL:
        # Any holders may be named.
        pods = [holder.pod for holder in at_once(specification.state(key)).holders]
        named = Counter(answer.holders)
        fits = named <= Counter(pods) and named.total() == min(MAX_HOLDERS_NAMED, len(pods))
        return fits and answer._replace(holders=()) == expected._replace(holders=())
    if isinstance(answer, SemaphoreState) and isinstance(expected, SemaphoreState):
        # Holders come in any order, and so do owners that were denied at the same moment.
        since = specification._get(key).denied
        return (
            (answer.length, answer.complete) == (expected.length, expected.complete)
            and sorted(answer.holders) == sorted(expected.holders)
            and sorted(answer.denied) == sorted(expected.denied)
            and [since[owner] for owner in answer.denied] == [since[owner] for owner in expected.denied]
        )
    return bool(answer == expected)


def is_between(answer: Any, before: SemaphoreState, after: SemaphoreState) -> bool:
    """Whether a state was read while a holder was renewed: each of its details is from before it or from after it."""
    if not isinstance(answer, SemaphoreState):
        return False
    rest = before.length, before.complete, sorted(before.denied), before.permits
    if rest != (after.length, after.complete, sorted(after.denied), after.permits):
        return False
    if rest != (answer.length, answer.complete, sorted(answer.denied), answer.permits):
        return False
    ends = [{holder.permit: holder for holder in state.holders} for state in (before, after)]
    return all(
        detail in details or (name == "age_ms" and detail == holder.silent_ms)
        for holder in answer.holders
        for name, detail, *details in zip(Holder._fields, holder, *(end[holder.permit] for end in ends), strict=True)
    )
