"""Events: what they say, how many there are at most, and that an outage holds nobody up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import pytest

from at_least_semaphore_pod_hook.controller import reports as module
from at_least_semaphore_pod_hook.controller.decide import Reason
from at_least_semaphore_pod_hook.controller.kube import Kube, Reference, Written
from at_least_semaphore_pod_hook.controller.reports import (
    RECLAIMED_AS,
    Reports,
    TokenBucket,
    duration,
    listing,
    waiting_note,
)
from at_least_semaphore_pod_hook.errors import ApiForbiddenError, ApiUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from tests.unit.views import SIDECAR, pod_view
from tests.unit.virtual_time import now, run

DATABASE = SemaphoreKey("default", "database")
OWNER = Reference("apps/v1", "ReplicaSet", "default", "web", "owner")


class Told(NamedTuple):
    at: float
    regarding: Reference
    reason: str
    note: str
    warning: bool
    happened: float


class Events:
    """An API server that takes Events, or fails as it is told."""

    def __init__(self) -> None:
        self.written: list[Told] = []
        self.tried = 0
        self.error: Exception | None = None

    async def create_event(
        self, regarding: Reference, reason: str, note: str, *, action: str, warning: bool, at: float
    ) -> Written:
        assert action
        self.tried += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        self.written.append(Told(now(), regarding, reason, note, warning, at))
        return Written.MISSING

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.written]


class Case:
    def __init__(self) -> None:
        self.events = Events()
        self.drops = 0
        self.reports = Reports(
            cast("Kube", self.events), on_drop=self.drop, clock=now, wall_clock=lambda: 1_000_000 + now()
        )

    def drop(self) -> None:
        self.drops += 1

    def wait(self, number: int) -> None:
        self.reports.waiting(DATABASE, pod_view(f"web-{number}", uid=f"u{number}"), number + 1, 10, 3, ["a", "b", "c"])


OF_ONE = module.QUEUED // 2
"""What a namespace alone has of the queue."""


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Case]:
    case = Case()
    task = asyncio.create_task(case.reports.run())
    try:
        yield case
    finally:
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_what_the_events_say() -> None:
    sidecar: dict[str, Any] = {"containers": [{"name": SIDECAR, "args": ["default/database", "u"]}]}

    async def work() -> None:
        async with running() as case:
            pod = pod_view(spec=sidecar)
            case.reports.waiting(DATABASE, pod, 3, 12, 3, ["a", "b", "c"])
            case.reports.granted(DATABASE, pod, 12.34)
            case.reports.reclaimed(DATABASE, pod, Reason.FINISHED)
            case.reports.silent(DATABASE, pod)
            case.reports.late(DATABASE, pod, 3)
            case.reports.woken(DATABASE, OWNER)
            await asyncio.sleep(1)
            of = "default/database"
            assert [(event.reason, event.note, event.warning) for event in case.events.written] == [
                (
                    "WaitingForPermit",
                    f"waiting for a permit of {of}: position 3 of 12; its 3 permits are held by a, b and c",
                    False,
                ),
                ("PermitGranted", f"got a permit of {of} after 12.3 s", False),
                ("PermitReclaimed", f"permit of {of} taken back: the pod has finished", False),
                (
                    "SidecarSilent",
                    f"permit of {of} kept for the pod, though its sidecar {SIDECAR} does not renew it: see its log",
                    True,
                ),
                (
                    "WithoutPermit",
                    f"the pod has no permit of {of}: its 3 permits are held by others. It gets the next one that is "
                    "free",
                    True,
                ),
                ("Woken", f"a permit of {of} is free: a pod that was denied can be created now", False),
            ]
            assert {event.regarding for event in case.events.written} == {
                OWNER,
                Reference("v1", "Pod", "default", "web-0", "u"),
            }
            assert case.drops == 0

    run(work())


def test_every_reason_has_its_phrase() -> None:
    assert set(RECLAIMED_AS) == set(Reason)


@pytest.mark.parametrize(
    ("length", "holders", "ending"),
    [
        (3, [], ""),
        (1, ["a"], "; its permit is held by a"),
        (2, ["a", "b"], "; its 2 permits are held by a and b"),
        (3, ["a"], "; 1 of its 3 permits is held by a"),
        (2, ["a", "b", "c"], "; 3 of its 2 permits are held by a, b and c"),
        (9, list("abcdefghi"), "; its 9 permits are held by a, b, c and 6 more"),
    ],
)
def test_whom_a_pod_waits_for(length: int, holders: Sequence[str], ending: str) -> None:
    note = waiting_note(DATABASE, 2, 4, length, holders)
    assert note == f"waiting for a permit of default/database: position 2 of 4{ending}"


def test_a_note_has_room_for_the_longest_names() -> None:
    longest = SemaphoreKey("n" * 63, "k" * 63)
    assert len(waiting_note(longest, 10**6, 10**6, 10**6, ["p" * 253] * 10**6)) < 1024
    assert listing(["a"]) == "a"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (0.26, "0.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (245, "4 min 5 s"),
        (3599.9, "1 h 0 min"),
        (11_520, "3 h 12 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_bucket_paces() -> None:
    time = 100.0
    bucket = TokenBucket(2, 10.0, lambda: time)
    assert [round(bucket.take(), 3) for _ in range(4)] == [0, 0, 0.1, 0.2]
    time += 0.2
    assert round(bucket.take(), 3) == 0.1
    time += 3600
    assert [round(bucket.take(), 3) for _ in range(3)] == [0, 0, 0.1]


def test_events_are_paced_and_tell_when_it_happened() -> None:
    async def work() -> None:
        async with running() as case:
            for number in range(100):
                case.wait(number)
            await asyncio.sleep(0.05)
            assert len(case.events.written) == module.BURST
            await asyncio.sleep(10)
            assert len(case.events.written) == 100
            assert case.events.written[-1].at == pytest.approx(5.0, abs=0.1)
            assert {event.happened for event in case.events.written} == {1_000_000}
            assert case.drops == 0

    run(work())


def test_what_the_queue_does_not_hold_is_dropped_and_may_be_told_later() -> None:
    async def work() -> None:
        async with running() as case:
            for number in range(OF_ONE + 7):
                case.wait(number)
            assert case.drops == 7
            await asyncio.sleep(200)
            assert len(case.events.written) == OF_ONE
            case.wait(0)
            case.wait(OF_ONE)
            await asyncio.sleep(1)
            assert case.events.written[-1].regarding.uid == f"u{OF_ONE}"
            assert len(case.events.written) == OF_ONE + 1

    run(work())


def test_one_event_for_each_pod_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)

    async def work() -> None:
        async with running() as case:
            first, second = pod_view(uid="1"), pod_view(uid="2")
            for pod in (first, first, second, first):
                case.reports.silent(DATABASE, pod)
            case.reports.granted(DATABASE, first, 1)
            await asyncio.sleep(1)
            assert case.events.reasons == ["SidecarSilent", "SidecarSilent", "PermitGranted"]
            # The one that came up last is still remembered, the other is not.
            case.reports.silent(DATABASE, first)
            case.reports.silent(DATABASE, second)
            await asyncio.sleep(1)
            assert [event.regarding.uid for event in case.events.written] == ["1", "2", "1", "2"]

    run(work())


def test_an_owner_is_reported_on_again_after_a_while() -> None:
    async def work() -> None:
        async with running() as case:
            for _ in range(61):
                case.reports.woken(DATABASE, OWNER)
                await asyncio.sleep(10)
            assert [round(event.at) for event in case.events.written] == [0, 300, 600]

    run(work())


def test_an_outage_is_logged_once_and_what_comes_up_again_is_told_after_it(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with running() as case:
            case.events.error = ApiUnavailableError("no answer")
            for number in range(3):
                case.wait(number)
            await asyncio.sleep(12)
            assert (case.drops, case.events.tried) == (3, 3)
            case.events.error = None
            case.wait(0)
            await asyncio.sleep(10)
            assert [event.regarding.uid for event in case.events.written] == ["u0"]
            case.events.error = ApiUnavailableError("no answer")
            case.wait(5)
            await asyncio.sleep(10)

    with caplog.at_level(logging.INFO):
        run(work())
    assert [record.message for record in caplog.records] == [
        "Events cannot be written",
        "Events are written again",
        "Events cannot be written",
    ]


def test_missing_rights_are_logged_once_and_hold_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with running() as case:
            for number in range(20):
                case.events.error = None if number % 2 else ApiForbiddenError("403")
                case.wait(number)
                await asyncio.sleep(0.1)
            assert (case.drops, len(case.events.written)) == (10, 10)
            # One that was refused is not tried again.
            case.wait(0)
            await asyncio.sleep(1)
            assert case.events.tried == 20

    run(work())
    assert [record.message for record in caplog.records] == ["Events may not be written"]


def test_a_defect_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with running() as case:
            case.events.error = KeyError("?")
            case.wait(0)
            await asyncio.sleep(1)
            case.events.error = None
            case.wait(1)
            await asyncio.sleep(1)
            assert case.drops == len(case.events.written) == 1

    run(work())
    assert [record.message for record in caplog.records] == ["Event not written"]


def test_a_namespace_with_many_events_holds_up_its_own() -> None:
    async def work() -> None:
        async with running() as case:
            for number in range(2 * module.QUEUED):
                case.wait(number)
            good = msgspec.structs.replace(pod_view("good", uid="good"), namespace="good")
            case.reports.waiting(DATABASE, good, 1, 10, 3, ["a"])
            await asyncio.sleep(0.5)
            assert "good" in {event.regarding.uid for event in case.events.written[:3]}

    run(work())
