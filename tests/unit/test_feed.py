"""What viewers of the status page are told, and what is remembered of the last hour."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.overview import feed as feeds
from at_least_semaphore_pod_hook.overview.document import SemaphoreView, view
from at_least_semaphore_pod_hook.overview.feed import Feed, TooManyViewersError, Update
from at_least_semaphore_pod_hook.overview.history import SEMAPHORES, SLOT_SECONDS, SLOTS, History
from at_least_semaphore_pod_hook.overview.reading import Reader
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, SemaphoreKey, SemaphoreState
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.unit.fakes import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = 1_767_322_800


class CountingStore(MemoryStore):
    """A memory store that counts how often it is listed, and that can be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0
        self.reachable = True

    async def semaphores(self) -> AsyncIterator[SemaphoreKey]:
        self.listed += 1
        if not self.reachable:
            raise StoreUnavailableError("the store is away")
        async for key in super().semaphores():
            yield key


async def take(store: MemoryStore, name: str, permit: str, length: int = 5) -> None:
    key = SemaphoreKey("default", name)
    if not (await store.state(key)).length:
        await store.set_length(key, length, (await store.begin(key, Fence("test", 0))).fence)
    await store.acquire(AcquireRequest(key, length, 60, permit, "me"))


@pytest.fixture
async def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
async def feed(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    monkeypatch.setattr(feeds, "VIEWED_SECONDS", 0.01)
    feed = Feed(Reader(store, PREFIX, lambda: None))
    running = asyncio.create_task(feed.run())
    yield feed
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def told(update: Update) -> dict[str, Any]:
    found = [msgspec.json.decode(body) for body in update.semaphores]
    return {one["key"]: one["held"] for one in found}


async def test_a_viewer_is_told_all_and_then_what_changes(store: CountingStore, feed: Feed) -> None:
    await take(store, "a", "1")
    await take(store, "b", "1")
    async with asyncio.timeout(10), aclosing(feed.updates()) as updates:
        first = await anext(updates)
        while not told(first):
            first = await anext(updates)
        assert told(first) == {"a": 1, "b": 1}
        await take(store, "b", "2")
        update = await anext(updates)
        while "b" not in told(update) or told(update)["b"] != 2:
            update = await anext(updates)
        assert not update.whole
        await store.release(SemaphoreKey("default", "a"), "1")
        while not update.gone:
            update = await anext(updates)
        assert update.gone == ("default/a",)
    assert (feed.current().whole, told(feed.current())) == (True, {"b": 2})


async def test_the_store_is_read_once_for_all_viewers(store: CountingStore, feed: Feed) -> None:
    async def follow() -> None:
        async with aclosing(feed.updates()) as updates:
            async for update in updates:
                if told(update).get("a") == 3:
                    return

    followers = [asyncio.create_task(follow()) for _ in range(feeds.VIEWERS)]
    for permit in "123":
        await take(store, "a", permit)
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.gather(*followers)
    assert store.listed < feeds.VIEWERS


async def test_there_are_only_so_many_viewers_and_who_leaves_makes_room(feed: Feed) -> None:
    viewers = [feed.updates() for _ in range(feeds.VIEWERS)]
    for viewer in viewers:
        await anext(viewer)
    with pytest.raises(TooManyViewersError):
        await anext(feed.updates())
    await viewers.pop().aclose()
    another = feed.updates()
    await anext(another)
    for viewer in [another, *viewers]:
        await viewer.aclose()


async def test_a_store_that_is_away_is_told_and_what_was_known_is_kept(store: CountingStore, feed: Feed) -> None:
    await take(store, "a", "1")
    async with asyncio.timeout(10), aclosing(feed.updates()) as updates:
        while "a" not in told(await anext(updates)):
            pass
        store.reachable = False
        while "the store is away" not in (await anext(updates)).trouble:
            pass
        assert told(feed.current()) == {"a": 1}
        store.reachable = True
        while "the store is away" in (await anext(updates)).trouble:
            pass


async def test_viewers_are_let_go_when_the_webhook_stops(feed: Feed) -> None:
    running = asyncio.create_task(feed.run())

    async def follow() -> None:
        async for _ in feed.updates():
            pass

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    running.cancel()
    async with asyncio.timeout(10):
        await follower


async def test_a_viewer_hears_that_we_live_where_nothing_changes(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "ALIVE_SECONDS", 0.01)
    async with asyncio.timeout(10), aclosing(feed.updates()) as updates:
        found = [await anext(updates) for _ in range(5)]
    assert [update.semaphores for update in found] == [()] * 5


def seen(name: str, held: int) -> SemaphoreView:
    shown = view(SemaphoreKey("default", name), SemaphoreState(9, ()), None, START, named=0)
    return msgspec.structs.replace(shown, held=held, waiting=held * 2)


def test_a_slot_of_the_history_keeps_the_most() -> None:
    history = History()
    for second, held in ((0, 1), (4, 3), (SLOT_SECONDS - 1, 2), (SLOT_SECONDS, 1)):
        history.add(START + second, [seen("a", held)])
    assert history.of("default/a") == [(START, 3, 6), (START + SLOT_SECONDS, 1, 2)]
    assert history.of("default/none") == []


def test_the_history_ends_after_an_hour() -> None:
    history = History()
    for slot in range(2 * SLOTS):
        history.add(START + slot * SLOT_SECONDS, [seen("a", 1), *([seen("b", 1)] if slot < 5 else [])])
    assert len(history.of("default/a")) == SLOTS
    assert history.of("default/b") == []


def test_the_history_is_bounded_in_memory() -> None:
    history = History()
    many = [seen(f"s{number}", 1) for number in range(SEMAPHORES + 50)]
    for slot in range(SLOTS + 5):
        history.add(START + slot * SLOT_SECONDS, many)
    assert len(history._rows) == SEMAPHORES
    assert sum(row.itemsize * len(row) for row in history._rows.values()) < 6_000_000
