"""The reflector against a scripted API server, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.controller import reflector
from at_least_semaphore_pod_hook.controller.kube import WatchEvent
from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.controller.reflector import Change, PodSource, Reflector
from at_least_semaphore_pod_hook.errors import ApiGoneError, ApiUnavailableError
from tests.unit import virtual_time
from tests.unit.views import pod_view

GONE = ApiGoneError("too old")
AWAY = ApiUnavailableError("away")


def added(pod: PodView) -> WatchEvent:
    return WatchEvent("ADDED", pod.resource_version, pod)


def modified(pod: PodView) -> WatchEvent:
    return WatchEvent("MODIFIED", pod.resource_version, pod)


def deleted(pod: PodView) -> WatchEvent:
    return WatchEvent("DELETED", pod.resource_version, pod)


def bookmark(version: int) -> WatchEvent:
    return WatchEvent("BOOKMARK", str(version), None)


class Script:
    """An API server that answers from a script: a list is (pods, version), a watch is a list of what happens.

    In a watch a number is seconds that pass, an exception ends it; at its end it ends in an orderly way. After the last
    step everything hangs.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.calls: list[tuple[float, str, str]] = []
        self.open = 0

    async def list_pods(self, label_selector: str) -> tuple[list[PodView], str]:
        step = await self._next("list", "")
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, tuple), f"a list was asked for, and {step} was to come"
        return list(step[0]), str(step[1])

    async def watch_pods(self, label_selector: str, resource_version: str) -> AsyncGenerator[WatchEvent]:
        self.open += 1
        try:
            step = await self._next("watch", resource_version)
            assert isinstance(step, list), f"a watch was asked for, and {step} was to come"
            for item in step:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, WatchEvent):
                    yield item
                else:
                    await asyncio.sleep(item)
        finally:
            self.open -= 1

    async def _next(self, call: str, version: str) -> Any:
        self.calls.append((round(virtual_time.now(), 6), call, version))
        if not self.steps:
            await asyncio.sleep(1e9)
        return self.steps.pop(0)


def follow(script: Script, seconds: float = 3600.0, **options: Any) -> list[tuple[str, str, str]]:
    """Run a reflector over a script; return kind, UID and version of each change."""
    changes: list[Change] = []

    async def work() -> None:
        task = asyncio.create_task(make(script, changes.append, **options).run())
        await asyncio.sleep(seconds)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert script.open == 0

    virtual_time.run(work())
    assert not script.steps, "not all of the script has been asked for"
    return [(change.kind.value, change.pod.uid, change.pod.resource_version) for change in changes]


def make(script: PodSource, on_change: Callable[[Change], None], **options: Any) -> Reflector:
    loop = asyncio.get_running_loop()
    return Reflector(script, "ours", on_change, **{"clock": loop.time, "jitter": lambda: 0.0} | options)


A1, A2, A3 = (pod_view("a", uid="a", version=version) for version in (1, 5, 9))
B1 = pod_view("b", uid="b", version=2)
NEW_A = pod_view("a", uid="new", version=7)


def test_a_list_then_a_watch_from_its_version() -> None:
    script = Script(([A1, B1], 3), [modified(A2), deleted(pod_view("b", uid="b", version=6)), 20])
    assert follow(script) == [("added", "a", "1"), ("added", "b", "2"), ("modified", "a", "5"), ("deleted", "b", "6")]
    # The watch that goes on begins at the last event, also where that was a deletion.
    assert script.calls == [(0, "list", ""), (0, "watch", "3"), (20, "watch", "6")]


@virtual_time.virtual
async def test_synced_is_set_when_all_have_been_told_of_and_the_copy_can_be_read() -> None:
    changes: list[Change] = []
    followed = make(Script(AWAY, ([A1], 3)), changes.append)
    assert followed.silent_seconds == float("inf")
    task = asyncio.create_task(followed.run())
    await asyncio.sleep(0.01)
    assert not followed.synced.is_set()
    await followed.synced.wait()
    assert followed.pods == {("default", "a"): A1}
    assert len(changes) == 1
    await asyncio.sleep(7)
    assert followed.silent_seconds == pytest.approx(7)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@virtual_time.virtual
async def test_the_orderly_end_of_a_quiet_watch_is_a_sign_of_life() -> None:
    followed = make(Script(([A1], 3), [30], [1e9]), lambda _change: None)
    task = asyncio.create_task(followed.run())
    await asyncio.sleep(31)
    assert followed.silent_seconds == pytest.approx(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_what_happened_in_a_gap_is_found_by_the_relist() -> None:
    script = Script(([A1, B1], 3), [10, GONE], ([A2, pod_view("c", uid="new", version=7)], 8), [9])
    assert follow(script) == [
        ("added", "a", "1"),
        ("added", "b", "2"),
        ("deleted", "b", "2"),
        ("modified", "a", "5"),
        ("added", "new", "7"),
    ]
    assert script.calls[2:4] == [(10, "list", ""), (10, "watch", "8")]


def test_gone_in_the_middle_of_a_watch_and_unchanged_pods_are_not_told_of_again() -> None:
    script = Script(([A1], 3), [modified(A2), GONE], ([A2], 8), [modified(A3), 9])
    assert follow(script) == [("added", "a", "1"), ("modified", "a", "5"), ("modified", "a", "9")]


def test_a_name_taken_over_during_the_gap_is_an_end_and_a_beginning() -> None:
    script = Script(([A1], 3), [6, GONE], ([NEW_A], 8), [9])
    assert follow(script) == [("added", "a", "1"), ("deleted", "a", "1"), ("added", "new", "7")]


def test_a_name_taken_over_within_a_watch_and_the_late_end_of_the_old_one() -> None:
    script = Script(([A1], 3), [added(NEW_A), deleted(A2), deleted(A2), 9])
    assert follow(script) == [("added", "a", "1"), ("deleted", "a", "1"), ("added", "new", "7")]


def test_duplicates_are_told_of_once() -> None:
    script = Script(([A1], 3), [added(A1), modified(A2), modified(A2), deleted(A3), deleted(A3), 9])
    assert follow(script) == [("added", "a", "1"), ("modified", "a", "5"), ("deleted", "a", "9")]


def test_a_list_that_breaks_off_halfway_begins_anew_and_ends_nobody() -> None:
    script = Script(([A1], 3), [6, GONE], GONE, ([A1, B1], 8), [9])
    assert follow(script) == [("added", "a", "1"), ("added", "b", "2")]
    # The first relist at once; one that fails too, after a wait.
    assert [call[:2] for call in script.calls[2:4]] == [(6, "list"), (6.1, "list")]


def test_bookmarks_move_the_version_on_and_are_not_needed() -> None:
    script = Script(([A1], 3), [bookmark(40), 20], [20], [bookmark(50), AWAY])
    assert follow(script) == [("added", "a", "1")]
    assert [call[2] for call in script.calls] == ["", "3", "40", "40", "50"]


def test_a_lost_connection_goes_on_from_the_last_event() -> None:
    script = Script(([A1], 3), [6, modified(A2), AWAY], [AWAY], [modified(A3), 9])
    assert follow(script) == [("added", "a", "1"), ("modified", "a", "5"), ("modified", "a", "9")]
    assert [call[1:] for call in script.calls] == [
        ("list", ""),
        ("watch", "3"),
        ("watch", "5"),
        ("watch", "5"),
        ("watch", "9"),
    ]


def test_failures_back_off_to_a_bound_and_a_sound_watch_begins_afresh() -> None:
    script = Script(*[AWAY] * 9, ([], 3), [30, AWAY], [])
    assert follow(script) == []
    times = [call[0] for call in script.calls[:10]]
    waits = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5, 1.5]
    assert script.calls[11][0] - script.calls[10][0] == pytest.approx(30.05)


@pytest.mark.parametrize("watch", [[], [GONE], [added(A1), GONE]])
def test_a_source_that_ends_every_watch_at_once_is_no_hot_loop(watch: list[Any]) -> None:
    class Endless(Script):
        async def _next(self, call: str, version: str) -> Any:
            self.calls.append((virtual_time.now(), call, version))
            return watch if call == "watch" else ([A1], 3)

    script = Endless()
    follow(script, 60.0)
    assert len(script.calls) < 120


def test_all_is_listed_anew_now_and_then_at_the_end_of_a_watch() -> None:
    script = Script(([A1], 3), [30], [30], ([B1], 8), [30])
    assert follow(script, relist_seconds=45) == [("added", "a", "1"), ("deleted", "a", "1"), ("added", "b", "2")]
    assert [call[1] for call in script.calls] == ["list", "watch", "watch", "list", "watch", "watch"]


def test_run_again_tells_what_has_changed_since() -> None:
    async def work() -> list[str]:
        changes: list[Change] = []
        script = Script(([A1, B1], 3), [1e9])
        followed = make(script, changes.append)
        for _ in range(2):
            task = asyncio.create_task(followed.run())
            await asyncio.sleep(10)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            script.steps[:] = [([B1], 9), [1e9]]
        return [f"{change.kind.value} {change.pod.uid}" for change in changes]

    assert virtual_time.run(work()) == ["added a", "added b", "deleted a"]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_backoff_is_bounded(failures: int, jitter: float) -> None:
    wait = reflector.backoff(failures, jitter)
    assert reflector.FIRST_BACKOFF / 2 <= wait <= reflector.MAX_BACKOFF


class World:
    """Pods come, change and go; watches break off and versions get lost anywhere, for some rounds."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.pods: dict[str, PodView] = {}
        self.log: list[WatchEvent] = []
        self.rounds = self.draw(st.integers(1, 6))

    async def list_pods(self, label_selector: str) -> tuple[list[PodView], str]:
        return list(self.pods.values()), str(len(self.log))

    async def watch_pods(self, label_selector: str, resource_version: str) -> AsyncGenerator[WatchEvent]:
        self.rounds -= 1
        self._happen()
        unseen = self.log[int(resource_version) :]
        if self.rounds >= 0:
            unseen = unseen[: self.draw(st.integers(0, len(unseen)))]
        for event in unseen:
            yield event
        if self.rounds < 0:
            await asyncio.sleep(1e9)
        self._happen()
        raise self.draw(st.sampled_from([GONE, AWAY]))

    def _happen(self) -> None:
        for _ in range(self.draw(st.integers(0, 4))):
            name, version = self.draw(st.sampled_from("abc")), len(self.log) + 1
            if name not in self.pods:
                self.pods[name] = pod_view(name, uid=f"{name}{version}", version=version)
                self.log.append(added(self.pods[name]))
            elif self.draw(st.booleans()):
                self.log.append(deleted(pod_view(name, uid=self.pods.pop(name).uid, version=version)))
            else:
                self.pods[name] = pod_view(name, uid=self.pods[name].uid, version=version)
                self.log.append(modified(self.pods[name]))


@given(st.data())
def test_any_history_ends_with_what_there_is(data: st.DataObject) -> None:
    world = World(data)
    changes: list[Change] = []

    async def work() -> None:
        followed = make(world, changes.append)
        task = asyncio.create_task(followed.run())
        ended, _ = await asyncio.wait([task], timeout=100)
        if ended:
            # What stops a draw has to reach hypothesis, and not be found by the garbage collector in another test.
            await task
        assert {pod.name: pod for pod in followed.pods.values()} == world.pods
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    virtual_time.run(work())
    alive: dict[str, str] = {}
    for change in changes:
        name, uid = change.pod.name, change.pod.uid
        if change.kind is reflector.ChangeKind.ADDED:
            assert name not in alive
            alive[name] = uid
        elif change.kind is reflector.ChangeKind.MODIFIED:
            assert alive[name] == uid
        else:
            assert alive.pop(name) == uid
    uids = [change.pod.uid for change in changes if change.kind is reflector.ChangeKind.ADDED]
    assert len(uids) == len(set(uids))
    assert alive == {name: pod.uid for name, pod in world.pods.items()}
