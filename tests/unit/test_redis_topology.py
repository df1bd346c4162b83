"""What is decided about several Redis servers, without any."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.redis_client import NotSentError
from at_least_semaphore_pod_hook.stores.redis.advice import Advisor, shortcomings
from at_least_semaphore_pod_hook.stores.redis.cluster import read_slots
from at_least_semaphore_pod_hook.stores.redis.router import Verdict, verdict
from at_least_semaphore_pod_hook.stores.redis.topology import SLOTS, Topology, answers


def not_sent(cause: Exception) -> NotSentError:
    error = NotSentError("no connection")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "meaning"),
    [
        (MovedError("1 a:2"), Verdict.MOVED),
        (AskError("1 a:2"), Verdict.ASK),
        (ReadOnlyError(), Verdict.REFUSED),
        (BusyLoadingError(), Verdict.REFUSED),
        (MasterDownError("MASTERDOWN"), Verdict.REFUSED),
        (ClusterDownError("CLUSTERDOWN"), Verdict.REFUSED),
        (TryAgainError(), Verdict.REFUSED),
        (not_sent(RedisConnectionError()), Verdict.REFUSED),
        (not_sent(AuthenticationError()), Verdict.FINAL),
        (AuthenticationError(), Verdict.FINAL),
        (RedisConnectionError(), Verdict.LOST),
        (TimeoutError(), Verdict.LOST),
        (OutOfMemoryError(), Verdict.FINAL),
        (ResponseError("NOPERM"), Verdict.FINAL),
        (None, Verdict.FINAL),
    ],
)
def test_what_a_failed_call_means(cause: BaseException | None, meaning: Verdict) -> None:
    assert verdict(cause) is meaning


@given(st.lists(st.integers(0, SLOTS - 1), unique=True, min_size=2, max_size=12).map(sorted))
def test_a_slots_owner_is_whose_range_it_is_in(bounds: list[int]) -> None:
    ranges = [(first, last - 1, (f"n{first}", 1)) for first, last in zip(bounds[::2], bounds[1::2], strict=False)]
    topology = Topology.of(1, list(reversed(ranges)))
    for slot in {0, SLOTS - 1, *bounds, *(max(0, bound - 1) for bound in bounds)}:
        owners = [place for first, last, place in ranges if first <= slot <= last]
        assert topology.owner(slot) == (owners[0] if owners else None)
    assert topology.places == {place for _, _, place in ranges}


def test_slots_are_read_with_the_host_that_was_asked_where_there_is_none() -> None:
    reply = [
        [0, 99, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.2", 7001, b"id", []]],
        [100, 199, [None, 7002, b"id"], [b"", 7003, b"id"]],
        [200, 299, [b"?", 7004, b"id"], [b"node.test", 7005, b"id"]],
    ]
    assert read_slots(reply, "asked") == (
        [(0, 99, ("10.0.0.1", 7000)), (100, 199, ("asked", 7002))],
        {("10.0.0.1", 7000), ("10.0.0.2", 7001), ("asked", 7002), ("asked", 7003), ("node.test", 7005)},
    )


SAFE = {b"connected_slaves": b"2", b"min_slaves_good_slaves": b"2", b"aof_enabled": b"1"}


@pytest.mark.parametrize(
    ("info", "fails_over", "wait_replicas", "said"),
    [
        (SAFE, True, 1, []),
        ({}, True, 1, []),
        (SAFE | {b"aof_enabled": b"0"}, False, 0, ["appendonly"]),
        ({b"connected_slaves": b"0"}, False, 0, []),
        (SAFE, True, 0, ["has no wait-replicas"]),
        ({b"connected_slaves": b"2"}, True, 1, ["min-replicas-to-write is 0"]),
        (SAFE | {b"connected_slaves": b"0"}, True, 1, ["no replica is connected"]),
    ],
)
def test_what_can_lose_grants(info: dict[bytes, bytes], fails_over: bool, wait_replicas: int, said: list[str]) -> None:
    found = shortcomings(info, fails_over=fails_over, wait_replicas=wait_replicas)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    advise = Advisor("store", fails_over=True)
    for _ in range(3):
        advise(SAFE)
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["store"]) == (logging.WARNING, "store")


async def test_those_who_are_slow_are_not_waited_for() -> None:
    async def after(seconds: float, answer: Any) -> Any:
        await asyncio.sleep(seconds)
        if isinstance(answer, Exception):
            raise answer
        return answer

    given, failures = await answers(
        [after(0, UnavailableError("down")), after(0.01, "quick"), after(0.02, "soon"), after(60, "never")], 1
    )
    assert (given, failures) == (["quick", "soon"], ["down"])
    assert await answers([after(0, UnavailableError("a")), after(0, UnavailableError("b"))], 1) == ([], ["a", "b"])
    with pytest.raises(ValueError, match="a defect"):
        await answers([after(0, ValueError("a defect"))], 1)
