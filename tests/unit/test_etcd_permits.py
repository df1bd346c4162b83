"""Renewal and release in etcd as a conversation: what is asked, and what each answer leads to."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from at_least_semaphore_pod_hook import etcd_permits
from at_least_semaphore_pod_hook.etcd_permits import KEEP_ALIVE, LEASE_GRANT, TXN, Released, Renewed
from at_least_semaphore_pod_hook.semaphore import model

HOLDER = {"identity": "i", "pod": "pod", "uid": "", "token": 1, "lease_ms": 60_000, "confirmed": True, "silent": 0}
ALIVE: dict[str, Any] = {"result": {"TTL": "60"}}
GONE: dict[str, Any] = {"result": {}}
NOTHING: dict[str, Any] = {"response_range": {}}


def kv(value: dict[str, Any] | None, *, revision: int = 5, lease: int = 9) -> dict[str, Any]:
    text = base64.b64encode(json.dumps(value).encode()).decode() if value is not None else ""
    return {"response_range": {"kvs": [{"value": text, "mod_revision": str(revision), "lease": str(lease)}]}}


def read(*found: dict[str, Any], succeeded: bool = True) -> dict[str, Any]:
    return {"responses": list(found), "succeeded": succeeded}


def converse(flow: etcd_permits.Flow, *answers: dict[str, Any]) -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
    """Drive a flow with these answers to its end; returns what it came to and what it asked."""
    asked = [next(flow)]
    asked += [flow.send(answer) for answer in answers[:-1]]
    with pytest.raises(StopIteration) as end:
        flow.send(answers[-1])
    return end.value.value, asked


def written(body: dict[str, Any], step: int = 0) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.b64decode(body["success"][step]["request_put"]["value"]))
    return value


def test_a_renewal_keeps_alive_before_it_looks() -> None:
    renewed, asked = converse(etcd_permits.renew("ns/key", "p", "pod", 9), ALIVE, read(kv(HOLDER), NOTHING))
    assert renewed == Renewed(60_000, 9)
    assert [path for path, _ in asked] == [KEEP_ALIVE, TXN]
    assert asked[0][1] == {"ID": "9"}


def test_an_unknown_lease_is_looked_up_and_then_proven() -> None:
    holder = kv({**HOLDER, "confirmed": False, "pod": "pod-", "more": "kept"})
    renewed, asked = converse(
        etcd_permits.renew("ns/key", "p", "pod-1"),
        read(holder, NOTHING),
        ALIVE,
        read(holder, NOTHING),
        {"succeeded": True},
    )
    assert renewed == Renewed(60_000, 9)
    assert [path for path, _ in asked] == [TXN, KEEP_ALIVE, TXN, TXN]
    body = asked[-1][1]
    assert body["compare"][0]["mod_revision"] == "5"
    assert body["success"][0]["request_put"]["lease"] == "9"
    confirmed = written(body)
    assert (confirmed["confirmed"], confirmed["pod"], confirmed["more"]) == (True, "pod-1", "kept")


def test_silence_ends_with_a_renewal() -> None:
    renewed, asked = converse(
        etcd_permits.renew("ns/key", "p", "pod", 9),
        ALIVE,
        read(kv({**HOLDER, "silent": 40}), NOTHING),
        {"code": 5},
        GONE,
        read(NOTHING, NOTHING),
    )
    # The lease ended between looking and writing.
    assert written(asked[2][1])["silent"] == 0
    assert renewed == Renewed(0)


@pytest.mark.parametrize(
    ("pod", "answers", "expected"),
    [
        ("pod", [GONE, read(NOTHING, NOTHING)], Renewed(0)),
        ("pod", [GONE, read(NOTHING, kv(None))], Renewed(-1)),
        ("pod", [GONE, read(kv(HOLDER), NOTHING)], Renewed(0)),
        ("other", [ALIVE, read(kv(HOLDER), NOTHING)], Renewed(0)),
        ("", [ALIVE, read(kv(HOLDER), NOTHING)], Renewed(60_000, 9)),
        ("pod", [GONE, read(kv(HOLDER, lease=10), NOTHING), ALIVE, read(kv(HOLDER, lease=10), NOTHING)],
         Renewed(60_000, 10)),
    ],
)  # fmt: skip
def test_what_else_a_renewal_finds(pod: str, answers: list[dict[str, Any]], expected: Renewed) -> None:
    assert converse(etcd_permits.renew("ns/key", "p", pod, 9), *answers)[0] == expected


def test_a_release_is_conditional_and_looked_at_again() -> None:
    head = kv({"held": 3, "length": 3})
    released, asked = converse(
        etcd_permits.release("ns/key", "p", "pod"),
        read(kv(HOLDER), head),
        read(kv(HOLDER, revision=6), head, succeeded=False),
        read(succeeded=True),
    )
    assert released == Released(True, 9)
    assert [body["compare"][0]["mod_revision"] for _, body in asked[1:]] == ["5", "6"]
    # Nobody relies on the bound of a small one.
    assert asked[2][1]["success"][1]["request_txn"]["success"] == []
    gone, _ = converse(
        etcd_permits.release("ns/key", "p", "pod"), read(kv(HOLDER), head), read(NOTHING, head, succeeded=False)
    )
    assert gone == Released(False)


def test_a_release_lowers_a_bound_that_is_relied_on() -> None:
    head = kv({"held": 1001, "length": 5000, "token": 7}, revision=8)
    _, asked = converse(etcd_permits.release("ns/key", "p"), read(kv(HOLDER), head), read(succeeded=True))
    nested = asked[1][1]["success"][1]["request_txn"]
    assert nested["compare"][0]["mod_revision"] == "8"
    assert written(nested) == {"held": 1000, "length": 5000, "token": 7}


MARK = [{"request_put": {"key": base64.b64encode(b"queue/ns/key/freed").decode()}}]


def test_a_release_leaves_a_mark_where_the_head_was_written_meanwhile() -> None:
    head = kv({"held": 1001, "length": 5000})
    _, asked = converse(etcd_permits.release("ns/key", "p"), read(kv(HOLDER), head), read(succeeded=True))
    nested = asked[1][1]["success"][1]["request_txn"]
    assert base64.b64decode(nested["compare"][0]["key"]) == b"queue/ns/key"
    assert nested["failure"] == MARK


@pytest.mark.parametrize("head", [NOTHING, kv({"held": 3, "length": 3})])
def test_a_release_of_a_small_semaphore_writes_nothing_unless_the_head_was_written(head: dict[str, Any]) -> None:
    _, asked = converse(
        etcd_permits.release("ns/key", "p"),
        read(kv(HOLDER), head),
        read(kv(HOLDER), head, succeeded=False),
        read(succeeded=True),
    )
    first, second = asked[1][1], asked[2][1]
    assert [base64.b64decode(one["key"]) for one in first["compare"]] == [b"inflight/ns/key/p", b"queue/ns/key"]
    assert [list(step) for step in first["success"]] == [["request_delete_range"]]
    assert len(second["compare"]) == 1
    nested = second["success"][1]["request_txn"]
    assert (nested["success"], nested["failure"]) == ([], MARK)


def test_another_pods_permit_is_left_alone() -> None:
    for ended in (False, True):
        flow = etcd_permits.release("ns/key", "p", "other", ended=ended)
        assert converse(flow, read(kv(HOLDER), NOTHING)) == (Released(False), [flow_start("p")])


def flow_start(permit: str) -> tuple[str, dict[str, Any]]:
    return next(etcd_permits.release("ns/key", permit))


def test_the_end_is_noted_for_an_hour_held_or_not() -> None:
    for found, expected in ((kv(HOLDER), Released(True, 9)), (NOTHING, Released(False, 0))):
        released, asked = converse(
            etcd_permits.release("ns/key", "p", ended=True), read(found, NOTHING), {}, read(succeeded=True)
        )
        assert released == expected
        assert asked[1][0] == LEASE_GRANT
        assert asked[1][1]["TTL"] == "3600"
        put = asked[2][1]["success"][-1]["request_put"]
        assert base64.b64decode(put["key"]) == b"ended/ns/key/p"
        assert put["lease"] == asked[1][1]["ID"]
    assert etcd_permits.ENDED_SECONDS == model.ENDED_SECONDS


def test_leases_are_numbered_at_random_and_positive() -> None:
    numbers = {etcd_permits.new_lease() for _ in range(100)}
    assert len(numbers) == 100
    assert all(0 < number < 2**63 for number in numbers)
