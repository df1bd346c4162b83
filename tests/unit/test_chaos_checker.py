"""Each rule of the checker on the smallest history that breaks it, and on one that nearly does."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.chaos.checker import RULES, Final, check, check_final
from tests.chaos.history import Operation, Recorder, dump, load
from tests.chaos.holds import Expectation
from tests.chaos.linearizable import Verdict, judge

if TYPE_CHECKING:
    from pathlib import Path

LEASE = 10.0
Moments = tuple[float, float]


def op(kind: str, permit: str, at: Moments, result: dict[str, Any], **arguments: Any) -> Operation:
    return Operation("client", kind, "ns/key", permit, *at, "ok", result, arguments)


def unknown(operation: Operation, gave_up: float | None = None) -> Operation:
    result = {} if gave_up is None else {"gave_up": gave_up}
    return operation._replace(completed=math.inf, outcome="unknown", result=result)


def length(n: int, at: Moments = (0.0, 0.1), **arguments: Any) -> Operation:
    return op("set_length", "", at, {"length": n}, length=n, **arguments)


def acquire(outcome: str, permit: str, at: Moments, token: int = 0, **arguments: Any) -> Operation:
    asked = {"length": 0, "expiration_ms": int(LEASE * 1000), "identity": "me", "pod": "pod", **arguments}
    result: dict[str, Any] = {"outcome": outcome}
    if outcome in {"granted", "resumed"}:
        result |= {"permit": asked["carried"] if asked.get("carried") and outcome == "resumed" else permit}
        result |= {"token": token or int(at[0] * 1000), "lease_ms": asked["expiration_ms"]}
    return op("acquire", permit, at, result, **asked)


def granted(permit: str, at: Moments, token: int = 0, **arguments: Any) -> Operation:
    return acquire("granted", permit, at, token, **arguments)


def resumed(permit: str, at: Moments, token: int = 0, **arguments: Any) -> Operation:
    return acquire("resumed", permit, at, token, **arguments)


def full(permit: str, at: Moments) -> Operation:
    return acquire("full", permit, at)


def renew(permit: str, at: Moments, pod: str = "pod", lease: float = LEASE) -> Operation:
    return op("renew", permit, at, {"lease_ms": int(lease * 1000)}, pod=pod)


def release(permit: str, at: Moments, pod: str = "", *, released: bool = True) -> Operation:
    return op("release", permit, at, {"released": released}, pod=pod)


def adopt(permit: str, at: Moments, token: int) -> Operation:
    return op("adopt", "", at, {"permits": [{"permit": permit, "token": token, "lease_ms": int(LEASE * 1000)}]})


A, B, C = granted("a", (1, 1.1)), granted("b", (2, 2.1)), granted("c", (3, 3.1))
ANEW = Expectation(overrun=5.0)
LOST = Expectation(loss="bounded", lost_after=1.5, whole_at=2.5, rebuilt_at=3.5)

BREAKS: dict[str, tuple[str, list[Operation]]] = {
    "one too many": ("never_above_length", [length(1), A, B]),
    "at the same time": ("never_above_length", [length(1), A, granted("b", (1, 1.2), 1001)]),
    "without a semaphore": ("never_above_length", [A]),
    "after shrinking": ("never_above_length", [length(2), A, length(1, (1.5, 1.6)), B]),
    "while it drains": (
        "never_above_length",
        [length(3), A, B, C, length(2, (4, 4.1)), release("a", (5, 5.1)), granted("d", (6, 6.1))],
    ),
    "kept by a renewal": ("never_above_length", [length(1), A, renew("a", (9, 9.1)), granted("b", (15, 15.1))]),
    "revived over the length": (
        "never_above_length",
        [length(2), A, length(1, (9, 9.1)), granted("b", (12, 12.1)), renew("a", (13, 13.1))],
    ),
    "over what was adopted": ("never_above_length", [length(1), adopt("a", (1, 1.1), 5), B]),
    "release refused": (
        "never_above_length",
        [length(1), A, renew("a", (1.2, 1.3), "owner"), release("a", (1.4, 1.5), "other", released=False), B],
    ),
    "before the loss": ("never_above_length", [length(1), A, granted("b", (4, 4.1))]),
    "lower token": ("tokens_rise", [length(2), granted("a", (1, 1.1), 7), granted("b", (2, 2.1), 6)]),
    "not above what was adopted": ("tokens_rise", [length(2), adopt("a", (1, 1.1), 7), granted("b", (2, 2.1), 6)]),
    "same token": ("tokens_are_unique", [length(2), granted("a", (1, 2), 7), granted("b", (1, 2), 7)]),
    "new token when resumed": ("resumed_tokens", [length(1), A, resumed("a", (2, 2.1), 9)]),
    "given back by another": (
        "releases_are_ones_own",
        [length(1), A, renew("a", (2, 2.1), "owner"), release("a", (3, 3.1), "other")],
    ),
    "renewed by another": (
        "releases_are_ones_own",
        [length(1), A, renew("a", (2, 2.1), "owner"), renew("a", (3, 3.1), "other")],
    ),
    "granted again": ("granted_once", [length(2), A, granted("a", (2, 2.1), identity="other")]),
    "granted again at once": ("granted_once", [length(2), A, granted("a", (1.05, 1.2), 2000)]),
    "resumed by another": ("resumed_by_its_own", [length(1), A, resumed("a", (2, 2.1), 1000, identity="other")]),
    "resumed when confirmed": (
        "resumed_by_its_own",
        [length(1), A, renew("a", (2, 2.1)), resumed("x", (3, 3.1), 1000, carried="a")],
    ),
    "renewed when given back": ("released_is_over", [length(1), A, release("a", (2, 2.1)), renew("a", (3, 3.1))]),
    "holder told it has none": ("held_is_renewed", [length(1), A, renew("a", (3, 3.1), lease=0)]),
    "told that it has none when rebuilt": ("held_is_renewed", [length(1), A, renew("a", (4, 4.1), lease=0)]),
    "full with one free": ("full_is_full", [length(2), A, full("x", (2, 2.1))]),
    "full when released": ("full_is_full", [length(1), A, release("a", (2, 2.1)), full("x", (3, 3.1))]),
    "full when expired": ("full_is_full", [length(1), A, full("x", (11.2, 11.3))]),
    "full when nothing is late": (
        "full_is_full",
        [length(1), unknown(A, 1.5), full("x", (12, 12.1))],
    ),
    "full when expired and counted anew": ("full_is_full", [length(1), A, full("x", (16.2, 16.3))]),
    "stale step": (
        "stale_steps_are_refused",
        [op("begin", "", (1, 1.1), {"token": 5}, domain="d"), length(2, (2, 2.1), domain="d", token=4)],
    ),
}

KEEPS: dict[str, list[Operation]] = {
    "as many as the length": [length(2), A, B, full("c", (3, 3.1))],
    "release under way": [length(1), A, release("a", (1.9, 2.2)), granted("b", (2, 2.1))],
    "release without an answer": [length(1), A, unknown(release("a", (1.5, 1.6))), B],
    "release that may have been sent twice": [length(1), A, release("a", (1.5, 1.6), released=False), B],
    "reclaimed by name": [length(1), A, op("reclaim", "a", (1.5, 1.6), {"count": 1}), B],
    "full while its lease is counted anew": [length(1), A, full("x", (15.9, 16.1))],
    "lease just over": [length(1), A, granted("b", (10.9, 11.1))],
    "acquire without an answer": [length(1), unknown(A), B],
    "dry run": [length(1), A, granted("b", (2, 2.1), dry_run=True)],
    "resumed and not renewed": [length(1), A, resumed("a", (9, 9.1), 1000), granted("b", (11.2, 11.3))],
    "resumed what was lost": [length(1), unknown(A), resumed("a", (9, 9.1), 1), granted("b", (11.2, 11.3))],
    "growing at the time": [length(1), A, length(2, (2, 3)), B],
    "shrinking at the time": [length(2), A, length(1, (2, 3)), B],
    "resize without an answer": [length(1), A, unknown(length(2, (1.5, 1.6))), B],
    "draining": [length(2), A, B, length(1, (3, 3.1)), renew("a", (4, 4.1)), renew("b", (4, 4.1))],
    "drained": [
        length(2),
        A,
        B,
        length(1, (3, 3.1)),
        release("a", (4, 4.1)),
        release("b", (4, 4.1)),
        granted("c", (5, 5.1)),
    ],
    "revived below the length": [length(2), A, granted("b", (12, 12.1)), renew("a", (13, 13.1))],
    "adopted over the length": [length(1), A, adopt("b", (2, 2.1), 5000)],
    "after the loss": [length(1), granted("a", (1.6, 1.7)), granted("b", (3, 3.1))],
    "told that it has none before it is rebuilt": [length(1), A, renew("a", (3, 3.1), lease=0)],
    "length lost": [length(2), length(1, (1.6, 1.7)), granted("a", (3, 3.1)), granted("b", (4, 4.1))],
    "tokens at the same time": [length(2), granted("a", (1, 2), 7), granted("b", (1.5, 1.6), 6)],
    "same token when resumed": [length(1), A, resumed("a", (2, 2.1), 1000)],
    "resumed after another grant": [
        length(1),
        A,
        release("a", (2, 2.1)),
        unknown(granted("a", (3, 3.1))),
        resumed("a", (4, 4.1), 3001),
    ],
    "given back before it was confirmed": [length(1), A, release("a", (3, 3.1), "other")],
    "given back under a new grant": [
        length(1),
        A,
        renew("a", (2, 2.1), "owner"),
        release("a", (3, 3.1), "owner"),
        granted("a", (4, 4.1)),
        release("a", (5, 5.1), "other"),
    ],
    "granted again after a release": [length(1), A, release("a", (1.5, 1.6)), granted("a", (2, 2.1), identity="o")],
    "granted again after its end": [length(1), A, granted("a", (11.05, 11.2), identity="o")],
    "resumed before it was confirmed": [
        length(1),
        A,
        renew("a", (2.9, 3.2)),
        resumed("x", (3, 3.1), 1000, carried="a"),
    ],
    "own name resumed when confirmed": [length(1), A, renew("a", (2, 2.1)), resumed("a", (3, 3.1), 1000)],
    "renewed as it was given back": [length(1), A, release("a", (2, 2.2)), renew("a", (2.1, 2.3))],
    "given back to nobody, and granted": [
        length(1),
        A,
        release("a", (2, 2.1)),
        unknown(granted("a", (2.2, 2.3))),
        renew("a", (3, 3.1)),
    ],
    "renewed too late": [length(1), A, renew("a", (11, 11.1), lease=0)],
    "renewed by whom it is not": [length(1), A, renew("a", (2, 2.1), "owner"), renew("a", (3, 3.1), "other", lease=0)],
    "full as it may be held": [length(1), unknown(A), full("x", (50, 50.1))],
    "full as the release is under way": [length(1), A, release("a", (2, 2.2)), full("x", (2.1, 2.15))],
    "full while it shrinks": [length(2), A, length(1, (2, 3)), full("x", (2.5, 2.6))],
    "full as the name is taken": [length(2), A, acquire("full", "a", (2, 2.1), identity="other")],
    "newest step": [op("begin", "", (1, 1.1), {"token": 5}, domain="d"), length(2, (2, 2.1), domain="d", token=5)],
    "step of another lock": [
        op("begin", "", (1, 1.1), {"token": 5}, domain="d"),
        length(2, (2, 2.1), domain="e", token=4),
    ],
}


EXPECTATIONS = {
    "full when nothing is late": Expectation(late=0),
    "full when expired and counted anew": ANEW,
    "full while its lease is counted anew": ANEW,
    "before the loss": LOST,
    "told that it has none when rebuilt": LOST,
    "told that it has none before it is rebuilt": LOST,
    "after the loss": LOST,
    "length lost": LOST,
}


@pytest.mark.parametrize("name", BREAKS)
def test_breach_is_noticed(name: str) -> None:
    rule, operations = BREAKS[name]
    violations = check(operations, EXPECTATIONS.get(name))
    assert {violation.rule for violation in violations} == {rule}
    assert all(violation.operations and violation.semaphore == "ns/key" for violation in violations)
    assert all(str(operation) in str(violations[0]) for operation in violations[0].operations)


@pytest.mark.parametrize("name", KEEPS)
def test_near_miss_raises_no_alarm(name: str) -> None:
    assert [str(violation) for violation in check(KEEPS[name], EXPECTATIONS.get(name))] == []


def test_every_rule_has_a_breach() -> None:
    assert {rule for rule, _ in BREAKS.values()} == set(RULES)


def test_semaphores_do_not_concern_each_other() -> None:
    elsewhere = [operation._replace(semaphore="ns/other") for operation in (length(1), B)]
    assert check([length(1), A, *elsewhere]) == []


@pytest.mark.parametrize(
    ("holders", "live", "waiters", "messages"),
    [
        ("ab", "ab", "", []),
        ("ab", "ab", "c", []),
        ("ab", "a", "", ["held by no pod"]),
        ("a", "ab", "", ["of a live pod, and not held"]),
        ("a", "a", "c", ["waits beside a free permit"]),
    ],
)
def test_end(holders: str, live: str, waiters: str, messages: list[str]) -> None:
    final = Final("ns/key", frozenset(holders), frozenset(live), frozenset(waiters), length=2)
    violations = check_final(final, [length(2), A, B])
    assert [violation.message for violation in violations] == messages


def answered(operation: Operation, held: int, n: int = 1) -> Operation:
    return operation._replace(result=operation.result | {"length": n, "held": held})


SEQUENTIAL = [
    op("begin", "", (0, 0.1), {"token": 9}, domain="d"),
    length(1, (0.2, 0.3), domain="d", token=9),
    answered(A, 1),
    renew("a", (1.2, 1.3)),
    answered(full("b", (1.4, 1.5)), 1),
    release("a", (1.6, 1.7), "pod"),
    answered(granted("b", (1.8, 1.9)), 1),
]


def verdict(*operations: Operation, **options: Any) -> Verdict:
    return judge([*SEQUENTIAL[:3], *operations], **options)[0].verdict


def test_history_in_order_is_linearizable() -> None:
    assert judge(SEQUENTIAL)[0].verdict is Verdict.LINEARIZABLE


def test_wrong_answer_is_not_linearizable() -> None:
    second = answered(granted("b", (2, 2.1)), 2)
    assert verdict(second) is Verdict.NOT
    assert "1 client" not in judge([*SEQUENTIAL[:3], second])[0].reason
    assert "acquire b" in judge([*SEQUENTIAL[:3], second])[0].reason


def test_operations_at_once_take_any_order() -> None:
    granted_b = answered(granted("b", (2, 2.3)), 1)
    assert verdict(granted_b, release("a", (2.1, 2.2))) is Verdict.LINEARIZABLE
    assert verdict(granted_b, release("a", (2.4, 2.5))) is Verdict.NOT


def test_unknown_operations_take_effect_later_or_never() -> None:
    lost = unknown(release("a", (2, 2.1)), 2.1)
    assert verdict(lost, answered(granted("b", (3, 3.1)), 1)) is Verdict.LINEARIZABLE
    assert verdict(lost, answered(full("b", (3, 3.1)), 1)) is Verdict.LINEARIZABLE
    late = [answered(full("b", (3, 3.1)), 1), answered(granted("c", (4, 4.1)), 1)]
    assert verdict(lost, *late) is Verdict.LINEARIZABLE
    assert verdict(lost, *late, expectation=Expectation(late=0)) is Verdict.NOT


@pytest.mark.parametrize(("loss", "rules"), [("bounded", set()), ("not of grants", {"never_above_length"})])
def test_a_store_that_keeps_grants_may_lose_the_rest(
    loss: Literal["bounded", "not of grants"], rules: set[str]
) -> None:
    losing = Expectation(loss=loss, lost_after=0.5, whole_at=9)
    assert {violation.rule for violation in check([length(1, (0.1, 0.2)), A, B], losing)} == rules
    assert not check([length(1, (0.1, 0.2)), A, release("a", (1.5, 1.6)), renew("a", (2, 2.1), lease=0)], losing)


def test_what_cannot_be_decided_is_not_passed() -> None:
    assert verdict(budget=2) is Verdict.UNDECIDED
    assert verdict(renew("a", (20, 20.1))) is Verdict.UNDECIDED
    assert verdict(expectation=LOST) is Verdict.UNDECIDED


def test_history_is_written_and_read(tmp_path: Path) -> None:
    operations = [length(1), A, unknown(B)]
    dump(operations[1:], tmp_path / "late.jsonl")
    dump(operations[:1], tmp_path / "early.jsonl")
    assert load(tmp_path / "late.jsonl", tmp_path / "early.jsonl") == operations


def test_recorder_knows_what_is_under_way_and_what_ended() -> None:
    times = iter(range(10))
    recorder = Recorder(lambda: float(next(times)))
    pending, lost, refused, done = (recorder.invoke("p", "renew", "ns/key", name, pod="x") for name in "plrd")
    done.ok(lease_ms=1)
    refused.fail()
    lost.unknown()
    assert [(o.permit, o.completed, o.outcome, o.result) for o in recorder.operations()] == [
        ("p", math.inf, "unknown", {}),
        ("l", math.inf, "unknown", {"gave_up": 6.0}),
        ("r", 5.0, "fail", {}),
        ("d", 4.0, "ok", {"lease_ms": 1}),
    ]
    pending.ok()
    with pytest.raises(ValueError, match="ended twice"):
        pending.ok()
    with pytest.raises(ValueError, match="no kind"):
        recorder.invoke("p", "steal", "ns/key")


def test_recorder_takes_threads() -> None:
    recorder = Recorder()

    def work() -> None:
        for _ in range(200):
            recorder.invoke("p", "state", "ns/key").ok()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [operation.outcome for operation in recorder.operations()] == ["ok"] * 800
