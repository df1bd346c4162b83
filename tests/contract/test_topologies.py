"""Stores of several servers, through failovers and moves."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.stores import RedisServer
from devcluster.topologies import RedisCluster, SentinelGroup, client, followers, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Store

KEY = SemaphoreKey("ns", "key")
SLOT = key_slot(b"ns/key")
FENCE = Fence("redlock", 0)
FAILOVER = 9.0
"""Seconds that a call may take which meets a failover: those that the API server gives an admission."""


def wish(permit: str, key: SemaphoreKey = KEY) -> AcquireRequest:
    return AcquireRequest(key, 1000, 60, permit, permit)


async def complete(store: Store, key: SemaphoreKey = KEY, length: int = 1000) -> None:
    step = await store.begin(key, FENCE)
    await store.set_length(key, length, step.fence)


async def granted(store: Store, permit: str, timeout: float = FAILOVER) -> None:
    """Take a permit, over an epoch's end."""
    outcome = (await store.acquire(wish(permit), timeout)).outcome
    if outcome in {Outcome.INCOMPLETE, Outcome.OTHER_LENGTH}:
        await complete(store)
        outcome = (await store.acquire(wish(permit), timeout)).outcome
    assert outcome is Outcome.GRANTED


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = open_store(parse_store_url(url))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[SentinelGroup]:
    with SentinelGroup(tmp_path / "group") as group:
        yield group


@pytest.fixture
async def store(group: SentinelGroup) -> AsyncIterator[Store]:
    async with opened(group.url) as store:
        await complete(store)
        yield store


async def outage(store: Store, disturb: Callable[[], object], lasting: float = 6) -> tuple[float, int]:
    """Call all the time, over a disturbance; returns the seconds without an answer, and how many calls failed."""
    answered = [time.monotonic()]
    failed = 0
    disturbed = False
    started = time.monotonic()
    for number in itertools.count():
        if not disturbed and number == 20:
            disturb()
            disturbed = True
        try:
            await store.renew(KEY, f"{number}")
            answered.append(time.monotonic())
        except StoreUnavailableError:
            failed += 1
        if time.monotonic() > started + lasting:
            break
        await asyncio.sleep(0.005)
    assert disturbed
    return max(after - before for before, after in itertools.pairwise(answered)), failed


@pytest.mark.parametrize("disturbance", ["kill", "pause"])
async def test_a_dead_primary_costs_no_call_and_few_seconds(
    group: SentinelGroup, store: Store, disturbance: str, record_property: Callable[[str, object], None]
) -> None:
    await granted(store, "before")
    primary = group.primary()
    until(lambda: all(followers_have(group, "before")), "replicated")
    seconds, failed = await outage(store, getattr(primary, disturbance))
    record_property("seconds", round(seconds, 2))
    sys.stdout.write(f"primary, {disturbance}: {seconds:.2f} s without an answer\n")
    assert failed == 0
    assert seconds < 5
    await granted(store, "after")
    assert (await store.state(KEY)).permits == {"before", "after"}
    primary.kill()


def followers_have(group: SentinelGroup, permit: str) -> Iterator[bool]:
    for server in group.servers:
        with group.client(server) as asked:
            yield asked.zscore(f"inflight/{{{KEY}}}", permit) is not None


async def test_a_primary_that_gives_its_place_up_is_left_without_an_error(group: SentinelGroup, store: Store) -> None:
    before = group.primary()

    def fail_over() -> None:
        with client(group.sentinels[0].port) as asked:
            asked.execute_command("SENTINEL", "FAILOVER", "semaphores")

    _, failed = await outage(store, fail_over, 3)
    assert failed == 0
    assert group.primary() is not before
    assert (await store.acquire(wish("a"))).outcome is Outcome.INCOMPLETE


async def test_a_primary_that_is_cut_off_is_left_as_soon_as_there_is_another(
    group: SentinelGroup, store: Store
) -> None:
    await granted(store, "before")
    old = group.primary()
    group.isolate(old)
    new = group.wait_for_another(old)
    # It still takes whatever it is sent.
    with group.client(old) as asked:
        assert asked.execute_command("ROLE")[0] == "master"
    # At once on the Sentinels' message, and within a second without.
    await asyncio.sleep(1.5)
    await granted(store, "after")
    with group.client(old) as asked:
        assert asked.zscore(f"inflight/{{{KEY}}}", "after") is None
    with group.client(new) as asked:
        assert asked.zscore(f"inflight/{{{KEY}}}", "after") is not None


async def test_who_listens_to_a_primary_that_is_cut_off_is_told(group: SentinelGroup, store: Store) -> None:
    async with aclosing(store.changes()) as changes:  # type: ignore[type-var]
        heard = asyncio.ensure_future(anext(changes))
        await granted(store, "a")
        while not heard.done():
            await store.release(KEY, "a")
            await granted(store, "a")
            await asyncio.sleep(0.01)
        assert await heard == KEY
        group.isolate(group.primary())
        async with asyncio.timeout(FAILOVER):
            with pytest.raises(StoreUnavailableError):
                [key async for key in changes]


async def test_a_service_that_no_sentinel_knows(group: SentinelGroup) -> None:
    async with opened(group.url.replace("/semaphores", "/other")) as store:
        with pytest.raises(StoreUnavailableError, match=r"no Sentinel names the primary of other: .*knows no other"):
            await store.renew(KEY, "a")


async def test_a_wrong_password_is_said_at_once(group: SentinelGroup) -> None:
    async with opened(group.url.replace(":clients@", ":wrong@")) as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"refused the user or the password|WRONGPASS") as caught:
            await store.renew(KEY, "a")
        assert time.monotonic() - started < 2
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "").lower()


async def test_sentinels_that_are_down_cost_nothing_while_the_primary_is_up(group: SentinelGroup, store: Store) -> None:
    for sentinel in group.sentinels:
        sentinel.process.kill()
    _, failed = await outage(store, lambda: None, 2.5)
    assert failed == 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path / "cluster") as cluster:
        yield cluster


async def test_a_cluster_holds_semaphores_on_all_masters(cluster: RedisCluster) -> None:
    keys = {SemaphoreKey("ns", f"key-{number}") for number in range(30)}
    async with opened(cluster.url) as store, aclosing(store.changes()) as changes:  # type: ignore[type-var]
        heard = asyncio.ensure_future(anext(changes))
        for key in keys:
            await complete(store, key)
            assert (await store.acquire(wish("a", key))).outcome is Outcome.GRANTED
        assert {cluster.owner(key_slot(str(key).encode())).port for key in keys} == {
            server.port for server in cluster.servers
        }
        assert {key async for key in store.semaphores()} == keys
        for key in keys:
            assert await store.release(key, "a")
        assert await asyncio.wait_for(heard, 5) in keys
        # Released at any master, heard of at the one that is listened to.
        rest = {await asyncio.wait_for(anext(changes), 5) for _ in range(len(keys) - 1)}
        assert len(rest) == len(keys) - 1


async def test_a_slot_that_moves_is_followed_without_an_error(cluster: RedisCluster) -> None:
    source = cluster.owner(SLOT)
    to = next(server for server in cluster.servers if server is not source)
    async with opened(cluster.url) as store:
        await granted(store, "a")
        cluster.move(SLOT, to, finish=False)
        # Some of its keys do not exist, so that the source cannot tell whether they have moved: try again, it says.
        renewal = asyncio.ensure_future(store.renew(KEY, "a"))
        await asyncio.sleep(0.3)
        assert not renewal.done()
        await asyncio.to_thread(cluster.finish_move, SLOT, source, to)
        assert await renewal == 60_000
        assert cluster.owner(SLOT) is to
        # Another server, that is another epoch.
        assert (await store.acquire(wish("b"))).outcome is Outcome.INCOMPLETE
        await granted(store, "b")
        assert (await store.state(KEY)).permits == {"a", "b"}


async def test_a_new_semaphore_of_a_slot_on_its_way_waits_until_it_is_there(cluster: RedisCluster) -> None:
    source = cluster.owner(SLOT)
    to = next(server for server in cluster.servers if server is not source)
    async with opened(cluster.url) as store:
        cluster.move(SLOT, to, finish=False)
        # The source sends us to where it goes, and there a script of several keys is told to try again.
        step = asyncio.ensure_future(store.begin(KEY, FENCE))
        await asyncio.sleep(0.3)
        assert not step.done()
        await asyncio.to_thread(cluster.finish_move, SLOT, source, to)
        assert not (await step).complete
        with client(to.port) as asked:
            assert asked.execute_command("CLUSTER", "COUNTKEYSINSLOT", SLOT) == 1


@pytest.mark.parametrize("disturbance", ["kill", "pause"])
async def test_a_masters_replica_takes_over(tmp_path: Path, disturbance: str) -> None:
    with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
        master = cluster.owner(SLOT)
        async with opened(cluster.url) as store:
            await granted(store, "before")
            until(lambda: followers(master) == 1, "replicated")
            seconds, failed = await outage(store, getattr(master, disturbance))
            assert failed == 0
            assert seconds < 5
            await granted(store, "after")
            assert (await store.state(KEY)).permits == {"before", "after"}
        master.kill()


@pytest.fixture(params=["redis", "valkey"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    with RedisServer(tmp_path / "0", prefer=request.param) as primary:
        options = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
        with RedisServer(tmp_path / "1", prefer=request.param, arguments=options) as replica:
            until(lambda: followers(primary) == 1, "replicated")
            yield primary, replica


async def test_a_grant_that_no_replica_has_does_not_count(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    async with opened(f"redis://{primary.address}?wait-replicas=1") as store:
        await complete(store, length=2)
        assert (await store.acquire(wish("a")._replace(length=2))).outcome is Outcome.GRANTED
        replica.pause()
        try:
            with pytest.raises(StoreUnavailableError, match="did not acquire: 0 of 1 replicas have it, so it does not"):
                await store.acquire(wish("b")._replace(length=2))
            # Neither of these grants.
            assert (await store.acquire(wish("c")._replace(length=2))).outcome is Outcome.FULL
            assert await store.renew(KEY, "a") == 60_000
            # Its grant may have been lost: the same once more, and not yet replicated.
            with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
                await store.acquire(wish("b")._replace(length=2))
            # By another connection, which has written nothing.
            async with opened(f"redis://{primary.address}?wait-replicas=1") as other:
                with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
                    await other.acquire(wish("b")._replace(length=2))
            assert await store.release(KEY, "b")
        finally:
            replica.resume()
        assert (await store.acquire(wish("d")._replace(length=2))).outcome is Outcome.GRANTED


async def test_what_can_lose_grants_is_said_once(
    group: SentinelGroup, caplog: pytest.LogCaptureFixture, pair: tuple[RedisServer, RedisServer]
) -> None:
    async with opened(group.url) as store:
        await complete(store)
        await asyncio.gather(*(store.renew(KEY, "a") for _ in range(2000)))
    messages = [record.message for record in caplog.records]
    assert messages == [
        "a failover can lose the last grants: the store's URL has no wait-replicas",
        "a failover can lose the last grants: min-replicas-to-write is 0",
        "a restart can lose the last grants: appendonly is off",
    ]
    caplog.clear()
    for server in group.servers:
        with group.client(server) as asked:
            asked.config_set("min-replicas-to-write", 1)
            asked.config_set("appendonly", "yes")
    async with opened(f"{group.url}?wait-replicas=1") as store:
        await complete(store)
    assert not caplog.records
