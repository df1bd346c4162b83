"""The etcd store with semaphores that have many holders."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.etcd import Client, Range
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.etcd import listening
from at_least_semaphore_pod_hook.stores.etcd.counts import COUNT_SECONDS
from at_least_semaphore_pod_hook.stores.etcd.leases import MAX_ASKED_ANEW
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from devcluster.stores import EtcdServer
from tests.contract.etcd.stores import create, until, wish
from tests.contract.etcd_subject import EtcdSubject
from tests.contract.lock_backends import address
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.contract.etcd.stores import Opener


LENGTH = 8
FREED = b"queue/default/resource-name/freed"


class Tap(Client):
    """Remembers what transactions were sent, and does something before the first one that a release writes with."""

    def __init__(self, addresses: list[Address]) -> None:
        super().__init__(addresses)
        self.sent: list[bytes] = []
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def _post(self, endpoint: Address, path: str, body: bytes, token: str) -> bytes:
        if path.endswith("/txn"):
            self.sent.append(body)
            if self.meanwhile and b"request_delete_range" in body:
                meanwhile, self.meanwhile = self.meanwhile, None
                await meanwhile()
        return await super()._post(endpoint, path, body, token)

    def counts(self) -> int:
        """Return how often holders were counted since this was asked last."""
        sent, self.sent = self.sent, []
        return sum(b'"range_end"' in body for body in sent)


class Tapped(NamedTuple):
    """A store whose clock stands still, and its client."""

    store: EtcdStore
    client: Tap
    clock: list[float]


@pytest.fixture
async def tapped(etcd_server: EtcdServer) -> AsyncIterator[Tapped]:
    client, clock = Tap([address(etcd_server)]), [100.0]
    store = EtcdStore(client, clock=lambda: clock[0])
    yield Tapped(store, client, clock)
    await store.close()


@pytest.fixture
def large_from_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have five holders count as many."""
    monkeypatch.setattr("at_least_semaphore_pod_hook.etcd_permits.EXACT", 4)
    monkeypatch.setattr("at_least_semaphore_pod_hook.stores.etcd.counts.EXACT", 4)


async def fill(store: EtcdStore) -> None:
    await create(store, LENGTH)
    for n in range(LENGTH):
        assert (await store.acquire(wish(f"p{n}", LENGTH))).outcome is Outcome.GRANTED


async def ask(store: EtcdStore, permit: str = "late", **other: Any) -> Outcome:
    return (await store.acquire(wish(permit, LENGTH, **other))).outcome


async def end_lease(store: EtcdStore, permit: str) -> None:
    """Free a permit as the end of its lease does."""
    (kv,) = (await store._client.range(Range(f"inflight/default/resource-name/{permit}".encode()))).kvs
    await store._client.revoke(kv.lease)


@pytest.mark.usefixtures("large_from_five")
async def test_a_denial_does_not_count_again_within_half_a_second(store: EtcdStore, tapped: Tapped) -> None:
    await fill(store)
    assert await ask(tapped.store) is Outcome.FULL
    assert tapped.client.counts() == 1
    for n in range(5):
        full = await tapped.store.acquire(wish(f"q{n}", LENGTH))
        assert (full.outcome, full.held, full.holders) == (Outcome.FULL, LENGTH, ("pod-p0", "pod-p1", "pod-p2"))
    assert await ask(tapped.store, dry_run=True) is Outcome.FULL
    assert tapped.client.counts() == 0
    tapped.clock[0] += COUNT_SECONDS
    assert await ask(tapped.store) is Outcome.FULL
    assert tapped.client.counts() == 1


@pytest.mark.usefixtures("large_from_five")
async def test_what_is_released_is_seen_at_once(store: EtcdStore, tapped: Tapped) -> None:
    await fill(store)
    assert await ask(tapped.store) is Outcome.FULL
    assert await store.release(KEY, "p0")
    assert await ask(tapped.store, "q0") is Outcome.GRANTED
    assert await ask(tapped.store) is Outcome.FULL


@pytest.mark.usefixtures("large_from_five")
@pytest.mark.parametrize("before", [LENGTH, 4])
async def test_what_is_released_while_the_head_is_written_is_seen_at_once(
    store: EtcdStore, tapped: Tapped, opened: Opener, etcd_server: EtcdServer, before: int
) -> None:
    """The head that the release has read is that of a large semaphore, or of one that is not large yet."""
    await fill(store)
    for n in range(before, LENGTH):
        await store.release(KEY, f"p{n}")
    other = opened(etcd_server)

    async def meanwhile() -> None:
        await create(other, LENGTH)
        for n in range(before, LENGTH):
            assert await ask(other, f"p{n}") is Outcome.GRANTED
        assert await ask(other) is Outcome.FULL

    tapped.client.meanwhile = meanwhile
    assert await tapped.store.release(KEY, "p0")
    marks = len((await tapped.client.range(Range(FREED))).kvs)
    assert marks == (before == LENGTH)
    assert await ask(other, "q0") is Outcome.GRANTED
    # Whoever writes the head needs it no more.
    assert (await tapped.client.range(Range(FREED))).kvs == []
    assert await ask(other) is Outcome.FULL
    assert (await store.state(KEY)).held == LENGTH


@pytest.mark.usefixtures("large_from_five")
async def test_what_has_expired_is_seen_within_half_a_second(store: EtcdStore, tapped: Tapped) -> None:
    await fill(store)
    assert await ask(tapped.store) is Outcome.FULL
    await end_lease(store, "p0")
    tapped.clock[0] += COUNT_SECONDS
    assert await ask(tapped.store, "q0") is Outcome.GRANTED
    assert (await store.state(KEY)).held == LENGTH


@pytest.mark.usefixtures("large_from_five")
async def test_what_has_expired_is_seen_at_once_where_somebody_listens(store: EtcdStore, tapped: Tapped) -> None:
    await fill(store)
    changes = store.changes()
    heard = asyncio.ensure_future(anext(changes))

    async def listens() -> bool:
        await store.release(KEY, "p7")
        assert await ask(store, "p7") is Outcome.GRANTED
        return heard.done()

    await until(listens)
    # What was released needs no mark.
    assert (await tapped.client.range(Range(FREED))).kvs == []
    assert await ask(tapped.store) is Outcome.FULL
    await end_lease(store, "p0")

    async def told() -> bool:
        assert await anext(changes) == KEY
        return bool((await tapped.client.range(Range(FREED))).kvs)

    async with asyncio.timeout(5):
        while not await told():
            pass
    assert await ask(tapped.store, "q0") is Outcome.GRANTED
    await changes.aclose()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("large_from_five")
async def test_many_that_are_denied_at_once_count_once(store: EtcdStore, tapped: Tapped) -> None:
    await fill(store)
    assert await ask(tapped.store) is Outcome.FULL
    tapped.clock[0] += COUNT_SECONDS
    tapped.client.counts()
    assert set(await asyncio.gather(*(ask(tapped.store, f"q{n}") for n in range(20)))) == {Outcome.FULL}
    assert tapped.client.counts() <= 2


@pytest.mark.usefixtures("large_from_five")
async def test_more_than_are_counted_are_exact_at_the_bound(store: EtcdStore) -> None:
    await fill(store)
    assert await ask(store) is Outcome.FULL
    for n in range(3):
        assert await store.release(KEY, f"p{n}")
    # Whose lease ends lowers no bound: only a count tells.
    await end_lease(store, "p3")
    outcomes = [(await store.acquire(wish(f"q{n}", 8))).outcome for n in range(5)]
    assert outcomes == [Outcome.GRANTED] * 4 + [Outcome.FULL]
    assert (await store.state(KEY)).held == 8


async def test_semaphores_with_many_holders_are_named_once(store: EtcdStore) -> None:
    keys = [SemaphoreKey("a", "many"), SemaphoreKey("a", "many.more"), SemaphoreKey("b", "few")]
    for key in keys:
        step = await store.begin(key, REDLOCK)
        many = listening.PAGE + 50 if key.key == "many" else 2
        lost = [Adoptee(f"p{n}", "pod", "uid", n + 1, 600) for n in range(many)]
        assert await store.adopt(key, lost, step.fence) == many
    assert sorted([key async for key in store.semaphores()]) == keys


async def test_of_many_holders_it_is_known_what_is_left_at_least(etcd_with_users: EtcdServer) -> None:
    subject = EtcdSubject([etcd_with_users.port])
    store, other = subject.stores
    step = await store.begin(KEY, REDLOCK)
    many = [Adoptee(f"p{n}", "pod", "uid", n + 1, 60) for n in range(MAX_ASKED_ANEW + 1)]
    await store.adopt(KEY, many, step.fence)

    async def left() -> set[int]:
        return {holder.lease_ms for holder in (await store.state(KEY)).holders}

    assert await left() == {60_000}
    subject.advance(20)
    for one in many[:5]:
        await other.renew(KEY, one.permit, "pod")
    # Those were not asked about again: half of what was known of their leases is left.
    assert await left() == {40_000}
    subject.advance(10)
    assert await left() == {50_000, 30_000}
    await store.renew(KEY, "p7", "pod")
    assert await left() == {50_000, 30_000, 60_000}
    await subject.close()
