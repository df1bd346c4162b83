"""From operations to what is certain, and what is possible, about who held a permit when: pure functions.

An operation took effect at one unknown moment between its invocation and its completion. So a lease that was granted or
renewed lasts at least until its invocation plus the lease, and at most until its completion plus the lease. Everything
here follows from that, without any assumption about how fast the store is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from tests.chaos.history import FAIL, OK, Operation

GRANTS = ("granted", "resumed")


class Expectation(NamedTuple):
    """What the faults of a run may do to the store, besides losing answers and being slow.

    Attributes:
        loss: "none": what was answered is kept; "bounded": the store lost writes; "not of grants": it lost
            writes, but no acquire that was answered.
        lost_after: In seconds of the history's clock: what was written before is kept, or put back by `rebuilt_at`.
        whole_at: What was written from this moment on is kept.
        rebuilt_at: Until then holders may be told that they hold nothing; nobody else may get what is theirs.
        slack: Seconds by which leases may end early or late: the store counts in whole milliseconds.
        overrun: Seconds by which leases may end late besides: etcd counts them anew when another member leads.
        late: How many seconds after its caller gave up an unknown operation may still be applied.
        lengths: Lengths that semaphores have before the history begins; 0 is none.
    """

    loss: Literal["none", "bounded", "not of grants"] = "none"
    lost_after: float = -math.inf
    whole_at: float = math.inf
    rebuilt_at: float = -math.inf
    slack: float = 0.005
    overrun: float = 0.0
    late: float = math.inf
    lengths: dict[str, int] = {}  # noqa: RUF012 - nobody writes to it

    def may_lose(self, operation: Operation) -> bool:
        """Say whether the store may have forgotten what this operation did."""
        if self.loss == "not of grants" and operation.kind == "acquire" and operation.outcome == OK:
            return False
        return self._within_loss(operation, self.whole_at)

    def may_miss(self, operation: Operation) -> bool:
        """Say whether this operation may have come before what was lost had been put back."""
        return self._within_loss(operation, max(self.whole_at, self.rebuilt_at))

    def _within_loss(self, operation: Operation, end: float) -> bool:
        return self.loss != "none" and self.effect_end(operation) > self.lost_after and operation.invoked < end

    def effect_end(self, operation: Operation) -> float:
        """Return the last moment at which an operation may have taken effect."""
        if operation.outcome == OK:
            return operation.completed
        return float(operation.result.get("gave_up", math.inf)) + self.late


class Hold(NamedTuple):
    """A permit was held from `start` until `end`, as `cause` proves.

    Attributes:
        permit: Its name.
        start: In seconds, inclusive.
        end: In seconds, exclusive.
        entry: The time for which it had been held without a break at `start` began no earlier than this.
        adopted: Whether it was adopted, which no length limits.
        cause: The grant or renewal.
    """

    permit: str
    start: float
    end: float
    entry: float
    adopted: bool
    cause: Operation


class History:
    """The operations of one semaphore, by what they are about.

    Operations that were surely not applied, and dry runs, are left out.
    """

    def __init__(self, semaphore: str, operations: Iterable[Operation], expectation: Expectation) -> None:
        self.semaphore = semaphore
        self.expectation = expectation
        self.operations = sorted(
            (o for o in operations if o.outcome != FAIL and not o.arguments.get("dry_run")),
            key=lambda operation: operation.invoked,
        )
        self.acquires: dict[str, list[Operation]] = defaultdict(list)
        self.renewals: dict[str, list[Operation]] = defaultdict(list)
        self.releases: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            if operation.kind == "acquire" and (operation.outcome != OK or operation.result["outcome"] in GRANTS):
                self.acquires[granted_permit(operation)].append(operation)
            elif operation.kind == "adopt":
                for permit in operation.result.get("permits", operation.arguments.get("permits", ())):
                    self.acquires[permit["permit"]].append(operation)
            elif operation.kind in {"renew", "keep"}:
                self.renewals[operation.permit].append(operation)
            elif operation.kind == "release" or (operation.kind == "reclaim" and operation.permit):
                self.releases[operation.permit].append(operation)
        self._revived: dict[str, list[Operation]] = {}
        self.lengths = Lengths(self.operations, expectation, expectation.lengths.get(semaphore, 0))

    @property
    def permits(self) -> set[str]:
        """The names of all permits that may ever have been held."""
        return {*self.acquires, *self.renewals}

    def granted(self) -> list[Operation]:
        """Return the acquires that were answered with a permit that nobody had before."""
        return [o for o in self.operations if o.kind == "acquire" and o.result.get("outcome") == "granted"]

    def resumed(self) -> list[Operation]:
        """Return the acquires that were answered with a permit that was granted before."""
        return [o for o in self.operations if o.kind == "acquire" and o.result.get("outcome") == "resumed"]

    def tokens(self) -> list[tuple[Operation, str, int]]:
        """Return each grant whose token an answer has shown, with its permit and that token."""
        granted = [(o, o.result["permit"], o.result["token"]) for o in self.granted() if "token" in o.result]
        adopted = [
            (o, permit["permit"], permit["token"])
            for o in self.operations
            if o.kind == "adopt"
            for permit in o.result.get("permits", ())
            if "token" in permit
        ]
        return granted + adopted

    def regrant_possible(self, permit: str, after: Operation, before: Operation) -> bool:
        """Say whether another grant of this name may lie between the effects of two operations."""
        end = self.expectation.effect_end
        return any(
            end(o) > after.invoked and o.invoked < end(before) and self.may_grant(o, permit)
            for o in self.acquires[permit]
            if o is not after and o is not before
        )

    def may_grant(self, operation: Operation, permit: str) -> bool:
        """Say whether an acquire or adopt may be what granted a permit.

        An acquire that was sent twice, as its connection broke, can be answered that it resumed what it was granted.
        """
        resumed = operation.result.get("outcome") == "resumed"
        return not resumed or any(o is operation for o in self._origins(operation, permit))

    def release_possible(self, permit: str, since: float, until: float) -> Operation | None:
        """Return an operation by which the permit may have become free within these moments, or None."""
        for operation in self.releases[permit]:
            in_time = self.expectation.effect_end(operation) > since and operation.invoked < until
            if in_time and not self._surely_refused(operation):
                return operation
        return None

    def _surely_refused(self, release: Operation) -> bool:
        """Whether it answered that it did nothing, and could not: another pod had confirmed the permit.

        Any other such answer proves less: the call may have been sent twice, and the first one applied.
        """
        pod = release.arguments.get("pod", "")
        if release.outcome != OK or release.result.get("released", True) or not pod:
            return False
        return any(
            confirms(renewal) and renewal.arguments["pod"] != pod and renewal.completed <= release.invoked
            for renewal in self.renewals[release.permit]
        )

    def definite(self) -> list[Hold]:
        """Return when which permits were held for certain; those of one permit may overlap."""
        holds = []
        for permit in sorted(self.permits):
            for operation in (*self.acquires[permit], *self.renewals[permit]):
                if operation.outcome != OK or self.expectation.may_lose(operation):
                    continue
                lease = self._lease(operation, permit)
                if lease <= 0:
                    continue
                end = self._leased_since(operation, permit) + lease - self.expectation.slack
                if release := self.release_possible(permit, operation.invoked, end):
                    end = min(end, release.invoked)
                if operation.completed < end:
                    entry = self._entry(operation, permit)
                    adopted = operation.kind == "adopt" or self._adopted(permit)
                    holds.append(Hold(permit, operation.completed, end, entry, adopted, operation))
        return holds

    def possible(self) -> list[Hold]:
        """Return when which permits may have been held at all."""
        holds = []
        for permit in sorted(self.permits):
            freed = [o for o in self.releases[permit] if surely_free(o) and not self.expectation.may_lose(o)]
            for operation in (*self.acquires[permit], *self.renewals[permit]):
                if (
                    operation.outcome == OK
                    and operation.kind in {"renew", "keep"}
                    and operation.result["lease_ms"] <= 0
                ):
                    continue
                effect_end = self.expectation.effect_end(operation)
                end = effect_end + self._latest_end(permit)
                end = min([end, *(o.completed for o in freed if o.invoked > effect_end)])
                holds.append(Hold(permit, operation.invoked, end, operation.invoked, False, operation))
        return holds

    def _lease(self, operation: Operation, permit: str) -> float:
        """How many seconds an operation says that a lease lasts; 0 where it says nothing."""
        if operation.kind == "adopt":
            permits = operation.result.get("permits", operation.arguments.get("permits", ()))
            found = next(one for one in permits if one["permit"] == permit)
            return float(found.get("lease_ms", operation.arguments.get("expiration_ms", 0))) / 1000
        return float(operation.result.get("lease_ms", operation.arguments.get("expiration_ms", 0))) / 1000

    def _leased_since(self, operation: Operation, permit: str) -> float:
        """When, at the earliest, the lease began that an operation's answer is about.

        To resume a permit does not renew it: its lease is the grant's, which may be one whose answer was lost.
        """
        if operation.result.get("outcome") != "resumed":
            return operation.invoked
        return min(o.invoked for o in self._origins(operation, permit))

    def _origins(self, resumed: Operation, permit: str) -> list[Operation]:
        """The operations that may have granted what another one resumed."""
        same = [o for o in self.acquires[permit] if o.invoked < resumed.completed or o is resumed]
        token = resumed.result.get("token")
        exact = [o for o in same if o.result.get("outcome") == "granted" and o.result.get("token") == token]
        return exact or [o for o in same if o is resumed or o.outcome != OK]

    def _entry(self, operation: Operation, permit: str) -> float:
        """A lower bound of when the permit was last granted."""
        if operation.result.get("outcome") == "resumed":
            return self._leased_since(operation, permit)
        if operation.kind in {"acquire", "adopt"}:
            return operation.invoked
        acquires = self.acquires[permit]
        before = [o for o in acquires if o.outcome == OK and o.completed <= operation.invoked]
        granted = [o.invoked for o in before if o.result.get("outcome") != "resumed"]
        entry = max(granted) if granted else min((o.invoked for o in acquires), default=-math.inf)
        revived = [o.invoked for o in self._revivals(permit) if o is operation or o.completed <= operation.invoked]
        return max([entry, *revived])

    def _revivals(self, permit: str) -> list[Operation]:
        """The renewals of a permit that had certainly expired: it was held anew from then on."""
        if permit not in self._revived:
            lease = self._latest_end(permit)
            leased = [o for o in self.acquires[permit] if o.result.get("outcome") != "resumed"]
            leased += [o for o in self.renewals[permit] if o.outcome != OK or o.result["lease_ms"] > 0]
            self._revived[permit] = [
                renewal
                for renewal in self.renewals[permit]
                if renewal.outcome == OK
                and renewal.result["lease_ms"] > 0
                and all(
                    o is renewal
                    or o.invoked > renewal.completed
                    or self.expectation.effect_end(o) + lease < renewal.invoked
                    for o in leased
                )
            ]
        return self._revived[permit]

    def _adopted(self, permit: str) -> bool:
        return any(o.kind == "adopt" for o in self.acquires[permit])

    def _latest_end(self, permit: str) -> float:
        """How many seconds after its last renewal a permit may be held at most."""
        return self._longest_lease(permit) + self.expectation.slack + self.expectation.overrun

    def _longest_lease(self, permit: str) -> float:
        leases = [self._lease(o, permit) for o in (*self.acquires[permit], *self.renewals[permit])]
        return max(leases, default=0.0) or math.inf


class Lengths:
    """Which lengths a semaphore may have had when."""

    def __init__(self, operations: Iterable[Operation], expectation: Expectation, initial: int) -> None:
        self._expectation = expectation
        self._initial = initial
        self._sets = [operation for operation in operations if operation.kind == "set_length"]

    def within(self, start: float, end: float) -> set[int]:
        """Return the lengths that may have been in force at some moment from `start` to `end`; 0 is none."""
        certain = [
            (o.invoked, o.completed)
            for o in self._sets
            if o.outcome == OK and o.completed <= start and not self._expectation.may_lose(o)
        ]
        newest = max((invoked for invoked, _ in certain), default=-math.inf)
        lengths = {
            int(o.arguments["length"])
            for o in self._sets
            if o.invoked <= end and newest <= self._expectation.effect_end(o)
        }
        if not certain:
            lengths.add(self._initial)
        return lengths


def granted_permit(operation: Operation) -> str:
    """Return the permit that an acquire gave, or that it asked for where its answer was lost."""
    return str(operation.result.get("permit") or operation.permit)


def confirms(operation: Operation) -> bool:
    """Say whether an operation proves that a pod's sidecar has confirmed a permit."""
    renewed = operation.kind == "renew" and operation.outcome == OK and operation.result["lease_ms"] > 0
    return renewed and bool(operation.arguments.get("pod"))


def surely_free(operation: Operation) -> bool:
    """Say whether a release's answer proves that the permit is free after it."""
    if operation.outcome != OK:
        return False
    return bool(operation.result.get("released")) or not operation.arguments.get("pod")


def by_semaphore(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Part a history by semaphore: nothing that is done to one has an effect on another."""
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        parts[operation.semaphore].append(operation)
    return dict(parts)


def by_permit(holds: Iterable[Hold]) -> dict[str, list[Hold]]:
    """Part holds by permit."""
    parts: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        parts[hold.permit].append(hold)
    return parts


def covered(holds: Sequence[Hold], start: float, end: float, besides: Operation | None = None) -> bool:
    """Say whether these holds of one permit reach from `start` through `end` without the one that `besides` proves."""
    reached = start
    for hold in sorted(holds, key=lambda hold: hold.start):
        if hold.cause is not besides and hold.start <= reached < hold.end:
            reached = hold.end
        if reached > end:
            return True
    return False
