"""What a recorded history proves against the semaphore: each rule a pure function from a history to violations.

Only what is certain counts. An operation takes effect at one moment between its invocation and its completion, an
unknown one also later or never. Where any such moments make an answer right, it is no violation. So slow stores, lost
answers and repeated calls raise no alarm, and a violation is a proof.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.chaos.history import OK, Operation
from tests.chaos.holds import Expectation, History, Hold, by_permit, by_semaphore, confirms, covered


class Violation(NamedTuple):
    """A rule that was broken.

    Attributes:
        rule: Its name, the key of `RULES` or "final".
        semaphore: Where.
        permits: Which permits are concerned.
        start: When, in seconds of the history's clock.
        end: Until when.
        message: What happened.
        operations: Those that prove it.
    """

    rule: str
    semaphore: str
    permits: tuple[str, ...]
    start: float
    end: float
    message: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        what = f"{self.rule}: {self.semaphore} {', '.join(self.permits)} at {self.start:.6f}: {self.message}"
        return "\n  ".join([what, *map(str, self.operations)])


def _violation(rule: str, history: History, permits: Iterable[str], message: str, *proof: Operation) -> Violation:
    start, end = min(o.invoked for o in proof), max(o.completed for o in proof)
    return Violation(rule, history.semaphore, tuple(permits), start, end, message, proof)


def check(operations: Iterable[Operation], expectation: Expectation | None = None) -> list[Violation]:
    """Return every violation that a history proves, by semaphore, rule and time.

    Args:
        operations: In any order, of any number of semaphores.
        expectation: What the faults of the run allow; without one, no loss.
    """
    violations: list[Violation] = []
    for semaphore, part in sorted(by_semaphore(operations).items()):
        history = History(semaphore, part, expectation or Expectation())
        for rule in RULES.values():
            violations += rule(history)
    return violations


def never_above_length(history: History) -> Iterator[Violation]:
    """No more permits are held than the semaphore's length, except by those that were granted before it shrank.

    Of permits that are held at the same time one entered last, and all the others were held at that moment. It lies
    between the latest of their entries and now. So their number is at most the largest length in between.
    """
    holds = sorted(history.definite(), key=lambda hold: hold.start)
    active: list[Hold] = []
    above = False
    for hold in holds:
        now = hold.start
        active = [other for other in active if other.end > now]
        active.append(hold)
        newest = {other.permit: other for other in sorted(active, key=lambda other: other.entry)}
        limited = [other for other in newest.values() if not other.adopted]
        if not limited:
            continue
        entered = max(other.entry for other in limited)
        # What was adopted, whatever the length, counts from then on.
        there = limited + [o for o in newest.values() if o.adopted and o.cause.completed <= entered]
        allowed = max(history.lengths.within(entered, now))
        if len(there) > allowed and not above:
            yield _violation(
                "never_above_length",
                history,
                sorted(other.permit for other in there),
                f"{len(there)} hold a permit, and the length is at most {allowed}",
                *(other.cause for other in there),
            )
        above = len(there) > allowed


def tokens_rise(history: History) -> Iterator[Violation]:
    """A grant has a higher token than every grant that was answered before it was asked for."""
    done = sorted(history.tokens(), key=lambda item: item[0].completed)
    highest: list[tuple[int, Operation]] = []
    for operation, _, token in done:
        highest.append(
            max(highest[-1], (token, operation), key=lambda item: item[0]) if highest else (token, operation)
        )
    ends = [operation.completed for operation, _, _ in done]
    for operation, permit, token in done:
        if operation.kind == "adopt":
            continue
        before = bisect.bisect_left(ends, operation.invoked)
        if before and highest[before - 1][0] >= token:
            older = highest[before - 1][1]
            yield _violation("tokens_rise", history, [permit], "a later grant has no higher token", older, operation)


def tokens_are_unique(history: History) -> Iterator[Violation]:
    """No two grants have the same token; a permit that is resumed keeps its own."""
    first: dict[int, tuple[Operation, str]] = {}
    resumed = ((o, o.result["permit"], o.result["token"]) for o in history.resumed() if "token" in o.result)
    for operation, permit, token in [*history.tokens(), *resumed]:
        older, owner = first.setdefault(token, (operation, permit))
        twice = {older.result.get("outcome"), operation.result.get("outcome")} == {"granted"}
        if older is not operation and (owner != permit or twice):
            yield _violation(
                "tokens_are_unique", history, [owner, permit], f"token {token} is given twice", older, operation
            )


def resumed_tokens(history: History) -> Iterator[Violation]:
    """A permit that is resumed keeps the token of its grant."""
    for resumed in history.resumed():
        permit = resumed.result["permit"]
        before = [o for o in history.acquires[permit] if o.result.get("outcome") == "granted"]
        before = [o for o in before if o.completed <= resumed.invoked]
        if not before or "token" not in resumed.result:
            continue
        grant = max(before, key=lambda o: o.completed)
        others = (o for o in history.acquires[permit] if o is not grant and o.result.get("outcome") != "resumed")
        end = history.expectation.effect_end
        again = any(end(o) > grant.invoked and o.invoked < resumed.completed for o in others)
        if not again and grant.result.get("token") != resumed.result["token"]:
            yield _violation("resumed_tokens", history, [permit], "resumed under another token", grant, resumed)


def releases_are_ones_own(history: History) -> Iterator[Violation]:
    """A pod neither gives back nor renews a permit that another pod has confirmed."""
    for permit in sorted(history.permits):
        confirmed = [o for o in history.renewals[permit] if confirms(o)]
        taken = [o for o in history.releases[permit] if o.outcome == OK and o.result.get("released")]
        for operation in sorted([*taken, *confirmed], key=lambda o: o.invoked):
            pod = operation.arguments.get("pod", "")
            owner = next(
                (
                    o
                    for o in confirmed
                    if pod
                    and o.arguments["pod"] != pod
                    and o.completed <= operation.invoked
                    and not history.expectation.may_lose(o)
                    and not history.regrant_possible(permit, o, operation)
                ),
                None,
            )
            if owner:
                message = f"{pod} did to a permit of {owner.arguments['pod']} what only that pod may"
                yield _violation("releases_are_ones_own", history, [permit], message, owner, operation)


def granted_once(history: History) -> Iterator[Violation]:
    """A permit that is held is not granted again."""
    holds = by_permit(history.definite())
    for permit, acquires in sorted(history.acquires.items()):
        grants = [o for o in acquires if o.result.get("outcome") == "granted"]
        for grant in grants:
            if covered(holds[permit], grant.invoked, grant.completed, besides=grant):
                older = max((o for o in grants if o.invoked < grant.invoked), key=lambda o: o.invoked, default=grant)
                message = "granted while it is held"
                yield _violation("granted_once", history, [permit], message, older, grant)
        for first, second in itertools.pairwise(grants):
            lease = first.result.get("lease_ms", first.arguments.get("expiration_ms", 0)) / 1000
            until = max(first.completed, second.completed)
            concurrent = second.invoked <= first.completed
            held = until < first.invoked + lease - history.expectation.slack
            lost = history.expectation.may_lose(first)
            if concurrent and held and not lost and not history.release_possible(permit, first.invoked, until):
                yield _violation("granted_once", history, [permit], "granted twice at once", first, second)


def resumed_by_its_own(history: History) -> Iterator[Violation]:
    """A permit is resumed by whom it was granted to, and one that is carried only before it is confirmed."""
    for resumed in history.resumed():
        permit = resumed.result["permit"]
        for grant in history.acquires[permit]:
            same = grant.result.get("outcome") == "granted" and grant.result.get("token") == resumed.result.get("token")
            if same and grant.arguments.get("identity") != resumed.arguments.get("identity"):
                yield _violation("resumed_by_its_own", history, [permit], "resumed by another", grant, resumed)
        if permit == resumed.permit:
            continue
        for renewal in history.renewals[permit]:
            before = confirms(renewal) and renewal.completed <= resumed.invoked
            lost = history.expectation.may_lose(renewal)
            if before and not lost and not history.regrant_possible(permit, renewal, resumed):
                message = "resumed although its pod had confirmed it"
                yield _violation("resumed_by_its_own", history, [permit], message, renewal, resumed)
                break


def released_is_over(history: History) -> Iterator[Violation]:
    """A permit that was given back is not renewed, unless it was granted again in between."""
    for permit, releases in sorted(history.releases.items()):
        for release in releases:
            if release.outcome != OK or not release.result.get("released") or history.expectation.may_lose(release):
                continue
            for renewal in history.renewals[permit]:
                renewed = renewal.outcome == OK and renewal.result["lease_ms"] > 0
                later = renewed and renewal.invoked >= release.completed
                if later and not history.regrant_possible(permit, release, renewal):
                    message = "renewed after it was given back"
                    yield _violation("released_is_over", history, [permit], message, release, renewal)
                    break


def held_is_renewed(history: History) -> Iterator[Violation]:
    """Whoever holds a permit, and has given it to nobody, is never told that it holds none."""
    holds = by_permit(history.definite())
    for permit, renewals in sorted(history.renewals.items()):
        for refused in renewals:
            if refused.outcome != OK or refused.result["lease_ms"] > 0 or history.expectation.may_miss(refused):
                continue
            pod = refused.arguments.get("pod", "")
            others = any(
                o.invoked < refused.completed
                and o.arguments.get("pod", "") not in ("", pod)
                and (o.outcome != OK or o.result["lease_ms"] > 0)
                for o in renewals
            )
            if not (pod and others) and covered(holds[permit], refused.invoked, refused.completed):
                grant = max((h.cause for h in holds[permit] if h.start <= refused.invoked), key=lambda o: o.invoked)
                message = "a permit that is held was not renewed"
                yield _violation("held_is_renewed", history, [permit], message, grant, refused)


def full_is_full(history: History) -> Iterator[Violation]:
    """FULL is answered only where as many permits as the length may be held: N always can."""
    possible = by_permit(history.possible())
    spans = sorted((h.start, h.end, h.permit) for holds in possible.values() for h in holds)
    starts = [start for start, _, _ in spans]
    for full in history.operations:
        if full.kind != "acquire" or full.result.get("outcome") != "full":
            continue
        near = [s for s in spans[: bisect.bisect_right(starts, full.completed)] if s[1] >= full.invoked]
        if any(permit == full.permit for _, _, permit in near):
            continue  # Its own name may be held by another identity, which is FULL, too.
        moments = [full.invoked, *(start for start, _, _ in near if start > full.invoked)]
        if all(
            len({permit for start, end, permit in near if start <= moment <= end})
            < min(history.lengths.within(moment, full.completed) - {0}, default=0)
            for moment in moments
        ):
            held = sorted({permit for _, _, permit in near})
            message = f"told that it is full, with at most {len(held)} held"
            yield _violation("full_is_full", history, [full.permit, *held], message, full)


def stale_steps_are_refused(history: History) -> Iterator[Violation]:
    """A guarded step whose lock another one has taken since does not set the length any more."""
    steps = [o for o in history.operations if o.kind == "begin" and o.outcome == OK and "token" in o.result]
    for write in history.operations:
        if write.kind != "set_length" or write.outcome != OK or "token" not in write.arguments:
            continue
        for step in steps:
            newer = step.result["token"] > write.arguments["token"]
            same = step.arguments.get("domain") == write.arguments.get("domain")
            lost = history.expectation.may_lose(step)
            if newer and same and not lost and step.completed <= write.invoked:
                message = "a step set the length though a newer one had begun"
                yield _violation("stale_steps_are_refused", history, [], message, step, write)
                break


RULES = {
    rule.__name__: rule
    for rule in (
        never_above_length,
        tokens_rise,
        tokens_are_unique,
        resumed_tokens,
        releases_are_ones_own,
        granted_once,
        resumed_by_its_own,
        released_is_over,
        held_is_renewed,
        full_is_full,
        stale_steps_are_refused,
    )
}


class Final(NamedTuple):
    """A semaphore when everything has come to rest.

    Attributes:
        semaphore: Its name.
        holders: The permits that the store says are held.
        live: The permits of the pods that were admitted and neither have finished nor are gone.
        waiters: Those of the pods that wait for one.
        length: The semaphore's length.
    """

    semaphore: str
    holders: frozenset[str]
    live: frozenset[str]
    waiters: frozenset[str] = frozenset()
    length: int = 0


def check_final(final: Final, operations: Iterable[Operation] = ()) -> list[Violation]:
    """Return what is wrong at the end: a permit without a pod, a pod without a permit, a waiter beside a free permit.

    Args:
        final: How it ended.
        operations: The run's history; those about the permits concerned are named with the violation.
    """
    history = list(operations)
    found = [
        (final.holders - final.live, "held by no pod"),
        (final.live - final.holders, "of a live pod, and not held"),
        (final.waiters if len(final.holders) < final.length else frozenset(), "waits beside a free permit"),
    ]
    violations = []
    for permits, message in found:
        if permits:
            proof = tuple(
                o for o in history if o.semaphore == final.semaphore and {o.permit, o.result.get("permit")} & permits
            )
            moment = max((o.completed for o in proof if o.completed < math.inf), default=0.0)
            violations.append(
                Violation("final", final.semaphore, tuple(sorted(permits)), moment, math.inf, message, proof)
            )
    return violations
