"""Leader election in virtual time: candidates with clocks of their own, an API server that fails as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.controller.election import Election, Step, Timing, boot_clock, decide
from at_least_semaphore_pod_hook.controller.leases import LeaseView, decode_lease, encode_spec, micro_time
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from tests.unit import virtual_time


class Leases:
    """One Lease. `away` makes it unavailable, `delay` slow; what a cancelled write has sent is applied."""

    def __init__(self) -> None:
        self.lease: LeaseView | None = None
        self.writes: list[tuple[float, LeaseView]] = []
        self.reads = 0

    async def get_lease(self, namespace: str, name: str) -> LeaseView | None:
        self.reads += 1
        return self.lease

    async def create_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        return None if self.lease else self._write(lease)

    async def update_lease(self, namespace: str, name: str, lease: LeaseView) -> LeaseView | None:
        if self.lease is None or self.lease.resource_version != lease.resource_version:
            return None
        return self._write(lease)

    def _write(self, lease: LeaseView) -> LeaseView:
        self.writes.append((virtual_time.now(), lease))
        self.lease = lease._replace(resource_version=str(len(self.writes)))
        return self.lease


class Path:
    """One candidate's way to the Lease."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.cut = False
        self.hangs = False
        self.answers_lost = False
        self.delay = 0.001

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if self.hangs:
                await asyncio.sleep(1e9)
            if self.cut:
                raise ApiUnavailableError("away")
            answer = await getattr(self.leases, name)(*arguments)
            await asyncio.sleep(self.delay)
            if self.answers_lost and name != "get_lease":
                raise ApiUnavailableError("the answer was lost")
            return answer

        return call


class Candidate:
    def __init__(self, identity: str, leases: Leases, *, rate: float = 1.0, offset: float = 0.0) -> None:
        self.path = Path(leases)
        self.log: list[tuple[float, str]] = []
        loop = asyncio.get_running_loop()
        self.clock_stop: float | None = None
        self.election = Election(
            self.path,
            "hook",
            "leader",
            identity,
            on_started=self._note("started"),
            on_stopped=self._note("stopped"),
            clock=lambda: offset + loop.time() * rate,
            wall_clock=lambda: 1.8e9 + offset + loop.time(),
            jitter=lambda: 0.0,
        )
        self.task = asyncio.create_task(self.election.run())

    def _note(self, what: str) -> Any:
        async def note() -> None:
            self.log.append((virtual_time.now(), what))

        return note

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def kill(self) -> None:
        """Silence it: nothing it does from now on reaches anybody."""
        self.path.hangs = True


def lease(holder: str, duration: int = 4) -> LeaseView:
    return LeaseView("1", holder, duration, 0, "", "")


@pytest.mark.parametrize(
    ("seen", "unchanged", "step"),
    [
        (None, 0, Step.CREATE),
        (lease("me"), 0, Step.RENEW),
        (lease("me"), 100, Step.RENEW),
        (lease(""), 0, Step.TAKE),
        (lease("you"), 0, Step.WAIT),
        (lease("you"), 3.9, Step.WAIT),
        (lease("you"), 4, Step.TAKE),
        (lease("you", 15), 14.9, Step.WAIT),
    ],
)
def test_decide(seen: LeaseView | None, unchanged: float, step: Step) -> None:
    assert decide(seen, unchanged, "me") is step


async def elected() -> tuple[Leases, Candidate]:
    """Let a candidate lead for a while."""
    leases = Leases()
    one = Candidate("one", leases)
    await asyncio.sleep(10.3)
    return leases, one


async def one_after_the_other() -> tuple[Leases, Candidate, Candidate]:
    """Let one candidate lead, and half a second later another stand for election."""
    leases = Leases()
    one = Candidate("one", leases)
    await asyncio.sleep(0.5)
    return leases, one, Candidate("two", leases)


@virtual_time.virtual
async def test_one_creates_the_lease_and_renews_it_and_the_other_waits() -> None:
    leases = Leases()
    one, two = Candidate("one", leases), Candidate("two", leases)
    await asyncio.sleep(60)
    assert [name for _, name in one.log] == ["started"]
    assert not two.log
    assert one.election.leading
    assert not two.election.leading
    assert two.election.holder == "one"
    assert {written.holder for _, written in leases.writes} == {"one"}
    assert {written.transitions for _, written in leases.writes} == {0}
    # One write and one read a second, no more.
    assert 55 <= len(leases.writes) <= 61
    assert leases.reads <= 64


@virtual_time.virtual
async def test_a_dead_leader_is_replaced_when_its_lease_has_run_out() -> None:
    leases, one, two = await one_after_the_other()
    await asyncio.sleep(10.3)
    one.kill()
    killed = virtual_time.now()
    await asyncio.sleep(10)
    ((started, _),) = two.log
    assert 3.0 <= started - killed <= 5.1
    assert leases.lease is not None
    assert (leases.lease.holder, leases.lease.transitions) == ("two", 1)


@virtual_time.virtual
async def test_an_orderly_end_hands_over_within_a_retry() -> None:
    leases, one, two = await one_after_the_other()
    await asyncio.sleep(10.3)
    await one.end()
    ended = virtual_time.now()
    assert leases.writes[-1][1].holder == ""
    assert [name for _, name in one.log] == ["started", "stopped"]
    assert one.log[1][0] <= leases.writes[-1][0]
    await asyncio.sleep(5)
    assert two.log[0][0] - ended <= 1.1


@virtual_time.virtual
async def test_an_end_in_the_middle_of_a_renewal_still_releases() -> None:
    leases = Leases()
    one = Candidate("one", leases)
    one.path.delay = 0.4
    await asyncio.sleep(10)
    # A renewal's write is made, and its answer under way.
    await asyncio.sleep(leases.writes[-1][0] + 1.4 + 0.2 - virtual_time.now())
    assert virtual_time.now() - leases.writes[-1][0] < 0.4
    await one.end()
    assert leases.writes[-1][1].holder == ""


@virtual_time.virtual
async def test_one_that_does_not_lead_leaves_the_lease_alone_when_it_ends() -> None:
    leases, _, two = await one_after_the_other()
    await asyncio.sleep(5)
    await two.end()
    assert leases.writes[-1][1].holder == "one"
    assert not two.log


@pytest.mark.parametrize("fault", ["cut", "hangs"])
@virtual_time.virtual
async def test_a_leader_that_cannot_renew_stops_before_anybody_takes_over(fault: str) -> None:
    leases, one, two = await one_after_the_other()
    await asyncio.sleep(10.3)
    setattr(one.path, fault, True)
    renewed = leases.writes[-1][0]
    await asyncio.sleep(20)
    stopped, what = one.log[1]
    assert what == "stopped"
    assert stopped == pytest.approx(renewed + 3, abs=0.05)
    assert two.log[0][0] >= stopped + 0.9
    setattr(one.path, fault, False)
    await asyncio.sleep(20)
    assert len(one.log) == 2
    assert two.election.leading


@virtual_time.virtual
async def test_a_short_failure_costs_no_leadership() -> None:
    _, one = await elected()
    for fault in ("cut", "answers_lost"):
        setattr(one.path, fault, True)
        await asyncio.sleep(1.6)
        setattr(one.path, fault, False)
        await asyncio.sleep(10)
    assert [name for _, name in one.log] == ["started"]


@virtual_time.virtual
async def test_a_leader_whose_answers_are_lost_does_not_trust_itself() -> None:
    _, one = await elected()
    one.path.answers_lost = True
    await asyncio.sleep(10)
    assert not one.election.leading
    one.path.answers_lost = False
    await asyncio.sleep(2)
    assert [name for _, name in one.log] == ["started", "stopped", "started"]


@virtual_time.virtual
async def test_a_lease_taken_or_deleted_under_a_leader() -> None:
    leases, one = await elected()
    assert leases.lease is not None
    leases.lease = leases.lease._replace(holder="thief", resource_version="x")
    await asyncio.sleep(1.1)
    assert [name for _, name in one.log] == ["started", "stopped"]
    leases.lease = None
    await asyncio.sleep(1.1)
    assert one.election.leading


@virtual_time.virtual
async def test_a_paused_leader_does_not_lead_when_it_goes_on() -> None:
    _, one = await elected()
    assert one.election.leading
    # What a SIGSTOP is to the process: time goes by, and no task has run yet.
    loop = asyncio.get_running_loop()
    loop._virtual.now += 3  # type: ignore[attr-defined]
    assert not one.election.leading


@given(
    st.lists(st.tuples(st.floats(0.97, 1.03), st.floats(0, 1e9)), min_size=2, max_size=4),
    st.lists(st.tuples(st.floats(0, 6), st.integers(0, 3), st.sampled_from(["cut", "hangs", "answers_lost"]))),
    st.floats(0.001, 0.5),
)
def test_never_two_leaders(
    clocks: list[tuple[float, float]], faults: list[tuple[float, int, str]], delay: float
) -> None:
    """Clocks that run 3 % apart and years off, connections that fail at any moment: at most one leads."""

    async def work() -> None:
        leases = Leases()
        candidates = [
            Candidate(f"c{number}", leases, rate=rate, offset=offset) for number, (rate, offset) in enumerate(clocks)
        ]
        for candidate in candidates:
            candidate.path.delay = delay

        async def look(seconds: float) -> None:
            end = virtual_time.now() + seconds
            while virtual_time.now() < end:
                assert sum(candidate.election.leading for candidate in candidates) <= 1
                await asyncio.sleep(0.05)

        await look(3)
        for seconds, number, fault in faults:
            path = candidates[number % len(candidates)].path
            setattr(path, fault, not getattr(path, fault))
            await look(seconds)
        for candidate in candidates:
            candidate.path.cut = candidate.path.hangs = candidate.path.answers_lost = False
        await look(12)
        assert sum(candidate.election.leading for candidate in candidates) == 1
        for candidate in candidates:
            await candidate.end()

    virtual_time.run(work())


def test_the_timing_leaves_room_for_clocks() -> None:
    timing = Timing()
    assert timing.renew_seconds < timing.deadline_seconds <= 0.8 * timing.duration_seconds
    assert timing.duration_seconds + timing.retry_seconds < 6
    assert boot_clock() > 0


def test_a_lease_as_json() -> None:
    written = LeaseView("7", "me", 4, 2, micro_time(1767323045.25), micro_time(1767323046.5))
    assert written.acquired == "2026-01-02T03:04:05.250000Z"
    spec = encode_spec(written)
    assert spec["renewTime"] == "2026-01-02T03:04:06.500000Z"
    assert decode_lease(b'{"metadata":{"resourceVersion":"7"},"spec":null}'.replace(b"null", b"{}")).holder == ""
    with pytest.raises(ApiUnavailableError, match="no Lease"):
        decode_lease(b"[]")
