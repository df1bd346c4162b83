"""The etcd store over real time and real faults: leases that end, members that fail, passwords and certificates."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.addresses import Address, parse_store_url
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Client, Delete, Put, Range, Watch, prefix_end
from at_least_semaphore_pod_hook.etcd.outcomes import UnansweredError
from at_least_semaphore_pod_hook.locks.etcd import EtcdLock
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Adoptee, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.stores.etcd import listening
from at_least_semaphore_pod_hook.stores.etcd.leases import MAX_ASKED_ANEW
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore, open_etcd_store
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.certificates import Authority
from devcluster.stores import EtcdServer
from devcluster.topologies_etcd import EtcdGroup
from tests.contract.etcd_subject import EtcdSubject
from tests.contract.lock_backends import address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    Opener = Callable[..., EtcdStore]

KEY = SemaphoreKey("default", "resource-name")
REDLOCK = Fence("redlock", 0)
PASSWORD = "secret-word"


def wish(permit: str, length: int = 3, **other: Any) -> AcquireRequest:
    return AcquireRequest(KEY, length, 60, permit, identity=f"id-{permit}", pod=f"pod-{permit}")._replace(**other)


async def create(store: EtcdStore, length: int = 3, key: SemaphoreKey = KEY) -> None:
    step = await store.begin(key, REDLOCK)
    await store.set_length(key, length, step.fence)


async def until(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Open stores over servers, or over addresses, and close them at the end of the test."""
    stores: list[EtcdStore] = []

    def make(*servers: Any) -> EtcdStore:
        addresses = [one if isinstance(one, Address) else address(one) for one in servers]
        stores.append(open_etcd_store(addresses))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(etcd_server: EtcdServer, opened: Opener) -> EtcdStore:
    client = Client([address(etcd_server)])
    await client.delete(Delete(b"\0", b"\0"))
    await client.close()
    return opened(etcd_server)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[EtcdGroup]:
    with EtcdGroup(tmp_path) as members:
        yield members


async def test_a_lease_that_ends_frees_the_permit_and_is_told(store: EtcdStore) -> None:
    await create(store, 1)
    changes = store.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await store.acquire(wish("a", 1, expiration_seconds=2))
    assert await store.renew(KEY, "a", "pod-a") == 2_000
    assert (await store.acquire(wish("b", 1))).outcome is Outcome.FULL
    async with asyncio.timeout(6):
        assert await heard == KEY
    assert time.monotonic() - began > 1.9
    assert await store.renew(KEY, "a", "pod-a") == 0
    assert await store.release(KEY, "a", "pod-a") is False
    granted = await store.acquire(wish("b", 1))
    assert (granted.outcome, granted.held) == (Outcome.GRANTED, 1)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_what_is_renewed_lives(store: EtcdStore) -> None:
    await create(store)
    await store.acquire(wish("a", expiration_seconds=1))
    for _ in range(8):
        await asyncio.sleep(0.3)
        assert await store.renew(KEY, "a", "pod-a") == 1_000
    await store.release(KEY, "a")


async def test_real_leases_tell_age_and_silence(store: EtcdStore) -> None:
    await create(store)
    await store.acquire(wish("a", expiration_seconds=10))
    await asyncio.sleep(2.2)
    (holder,) = (await store.state(KEY)).holders
    assert 2_000 <= holder.age_ms <= 3_300
    assert 6_500 <= holder.lease_ms <= 8_000
    await store.keep(KEY, "a", "pod-a", "uid-a")
    (holder,) = (await store.state(KEY)).holders
    assert 8_900 <= holder.lease_ms <= 10_000
    assert 2_000 <= holder.silent_ms <= 4_300
    await store.renew(KEY, "a", "pod-a")
    (holder,) = (await store.state(KEY)).holders
    assert holder.silent_ms <= 1_100


async def test_three_processes_with_thirty_callers_each_get_exactly_ten(
    store: EtcdStore, etcd_server: EtcdServer, opened: Opener
) -> None:
    await create(store, 10)
    stores = [store, opened(etcd_server), opened(etcd_server)]
    answers = await asyncio.gather(
        *(one.acquire(wish(f"p{number}-{n}", 10), 10) for number, one in enumerate(stores) for n in range(30))
    )
    granted = [answer for answer in answers if answer.outcome is Outcome.GRANTED]
    assert len(granted) == 10
    assert len({answer.token for answer in granted}) == 10
    assert all(answer.held == 10 for answer in answers if answer.outcome is Outcome.FULL)
    assert {holder.permit for holder in (await store.state(KEY)).holders} == {answer.permit for answer in granted}


async def test_churn_loses_no_permit_and_gives_none_twice(
    store: EtcdStore, etcd_server: EtcdServer, opened: Opener
) -> None:
    await create(store, 5)
    stores = [store, opened(etcd_server), opened(etcd_server)]
    holding: set[str] = set()
    most = grants = 0
    tokens: list[int] = []

    async def churn(one: EtcdStore, name: str) -> None:
        nonlocal most, grants
        for turn in range(12):
            permit = f"{name}-{turn}"
            answer = await one.acquire(wish(permit, 5), 10)
            if answer.outcome is not Outcome.GRANTED:
                continue
            holding.add(permit)
            tokens.append(answer.token)
            grants += 1
            most = max(most, len(holding))
            await asyncio.sleep(0.002)
            holding.remove(permit)
            assert await one.release(KEY, permit)

    await asyncio.gather(*(churn(one, f"p{number}-{n}") for number, one in enumerate(stores) for n in range(4)))
    assert most <= 5
    assert grants >= 12
    assert len(set(tokens)) == grants
    assert (await store.state(KEY)).free == 5
    refilled = [await store.acquire(wish(f"last-{n}", 5)) for n in range(6)]
    assert [answer.outcome for answer in refilled] == [Outcome.GRANTED] * 5 + [Outcome.FULL]


async def test_more_than_are_counted_are_exact_at_the_bound(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("at_least_semaphore_pod_hook.etcd_permits.EXACT", 4)
    monkeypatch.setattr("at_least_semaphore_pod_hook.stores.etcd.acquiring.EXACT", 4)
    await create(store, 8)
    for n in range(8):
        assert (await store.acquire(wish(f"p{n}", 8))).outcome is Outcome.GRANTED
    assert (await store.acquire(wish("late", 8))).outcome is Outcome.FULL
    for n in range(3):
        assert await store.release(KEY, f"p{n}")
    # Whose lease ends lowers no bound: only a count tells.
    client = Client([address_of(store)])
    (kv,) = (await client.range(Range(b"inflight/default/resource-name/p3"))).kvs
    await client.revoke(kv.lease)
    await client.close()
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


async def test_of_many_holders_it_is_known_what_is_left_at_least(etcd_server: EtcdServer) -> None:
    subject = EtcdSubject([etcd_server.port])
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


def address_of(store: EtcdStore) -> Address:
    return store._client._endpoints[0]


class Cut(Client):
    """Loses the answers to what is written, or the requests themselves, as often as it is told."""

    lose_answers = lose_requests = 0

    async def _post(self, endpoint: Address, path: str, body: bytes, token: str) -> bytes:
        if path.endswith("/txn") and b'"compare":[{' in body:
            if self.lose_requests:
                self.lose_requests -= 1
                raise UnansweredError("lost on the way")
            if self.lose_answers:
                self.lose_answers -= 1
                await super()._post(endpoint, path, body, token)
                raise UnansweredError("its answer was lost")
        return await super()._post(endpoint, path, body, token)


@pytest.mark.parametrize("lost", ["lose_answers", "lose_requests"])
async def test_what_gets_no_answer_is_done_once(store: EtcdStore, etcd_server: EtcdServer, lost: str) -> None:
    await create(store, 2)
    client = Cut([address(etcd_server)], patience=2)
    cut = EtcdStore(client)
    setattr(client, lost, 1)
    granted = await cut.acquire(wish("a", 2))
    assert (granted.outcome, granted.held) == (Outcome.GRANTED, 1)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    setattr(client, lost, 1)
    step = await cut.begin(KEY, REDLOCK)
    setattr(client, lost, 1)
    assert await cut.adopt(KEY, [Adoptee("b", "pod-b", "uid-b", 1, 60), Adoptee("a", "", "", 1, 60)], step.fence) == 1
    assert (await store.state(KEY)).permits == {"a", "b"}
    setattr(client, lost, 1)
    # Nobody can tell who has deleted it where the answer was lost.
    assert await cut.release(KEY, "a", "pod-a") is (lost == "lose_requests")
    assert (await store.state(KEY)).permits == {"b"}
    await cut.close()


async def test_a_grant_in_doubt_is_not_applied_later(store: EtcdStore, etcd_server: EtcdServer) -> None:
    await create(store, 1)
    client = Cut([address(etcd_server)])
    cut = EtcdStore(client)
    client.lose_answers = 1_000
    with pytest.raises(StoreUnavailableError, match="its answer was lost"):
        await cut.acquire(wish("a", 1))

    async def is_free() -> bool:
        return (await store.state(KEY)).held == 0

    await until(is_free)
    await cut.close()


async def test_callers_that_give_up_leave_nothing(store: EtcdStore) -> None:
    await create(store, 100)
    tasks = [asyncio.create_task(store.acquire(wish(f"p{n}", 100))) for n in range(40)]
    await asyncio.sleep(0.03)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    granted = {answer.permit for answer in answers if not isinstance(answer, BaseException)}
    assert len(granted) >= 20

    async def rest_is_free() -> bool:
        return (await store.state(KEY)).permits == granted

    await until(rest_is_free)


async def test_an_older_copy_of_the_data_begins_an_epoch(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    store = opened(mortal_etcd_server)
    await create(store)
    await store.acquire(wish("a"))
    mortal_etcd_server.stop()
    data = mortal_etcd_server.process.log.parent / "data"
    copy = data.with_name("copy")
    copy_tree(data, copy)
    mortal_etcd_server.start()
    for _ in range(5):
        await store.acquire(wish("b"))
        await store.release(KEY, "b")
    await store.acquire(wish("b"))
    mortal_etcd_server.stop()
    remove_tree(data)
    copy_tree(copy, data)
    mortal_etcd_server.start()
    answer = await store.acquire(wish("c"))
    assert (answer.outcome, answer.held) == (Outcome.INCOMPLETE, 1)
    assert not (await store.state(KEY)).complete
    step = await store.begin(KEY, REDLOCK)
    assert not step.complete
    await store.adopt(KEY, [Adoptee("b", "pod-b", "uid-b", 0, 60)], step.fence)
    await store.set_length(KEY, 3, step.fence)
    assert (await store.acquire(wish("c"))).outcome is Outcome.GRANTED
    assert (await store.acquire(wish("d"))).outcome is Outcome.FULL


def copy_tree(source: Path, target: Path) -> None:
    import shutil  # noqa: PLC0415

    shutil.copytree(source, target)


def remove_tree(path: Path) -> None:
    import shutil  # noqa: PLC0415

    shutil.rmtree(path)


async def test_a_server_that_was_killed_has_kept_everything(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    store = opened(mortal_etcd_server)
    await create(store)
    await store.acquire(wish("a"))
    await store.renew(KEY, "a", "pod-a")
    mortal_etcd_server.kill()
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        await store.acquire(wish("b"))
    assert time.monotonic() - began < 0.5
    mortal_etcd_server.start()
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    answer = await store.acquire(wish("b"))
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 2)


async def test_a_watch_survives_compaction_and_a_restart(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    store = opened(mortal_etcd_server)
    await create(store)
    await store.acquire(wish("a"))
    client = Client([address(mortal_etcd_server)])
    revision = (await client.range(Range(b"epoch"))).header.revision
    await client.put(Put(b"other", b"1"))
    await client.put(Put(b"other", b"2"))
    await client.exchange("/v3/kv/compaction", {"revision": str(revision + 2)})

    def outdated(key: bytes, end: bytes, start_revision: int, filters: list[Any]) -> Watch:
        return Watch(key, end, start_revision or 1, filters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "Watch", outdated)
        changes = store.changes()
        async with asyncio.timeout(5):
            # Nobody knows what happened before: whoever has holders is named.
            assert await anext(changes) == KEY
            heard = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0.3)
            await store.release(KEY, "a")
            assert await heard == KEY
    await changes.aclose()  # type: ignore[attr-defined]
    await client.close()


async def test_a_full_database_stops_grants_and_no_release(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    store = opened(mortal_etcd_server)
    await create(store)
    for permit in "ab":
        await store.acquire(wish(permit))
    await store.renew(KEY, "a", "pod-a")
    client = Client([address(mortal_etcd_server)])
    member = (await client.exchange("/v3/maintenance/status", {}))["header"]["member_id"]
    await client.exchange("/v3/maintenance/alarm", {"action": "ACTIVATE", "memberID": member, "alarm": "NOSPACE"})
    with pytest.raises(StoreUnavailableError, match="database space exceeded"):
        await store.acquire(wish("c"))
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    assert await store.release(KEY, "a", "pod-a") is True
    await client.exchange("/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE"})
    assert (await store.acquire(wish("c"))).held == 2
    await client.close()


async def test_the_lock_of_the_same_cluster_guards_first_use_and_resize(
    store: EtcdStore, etcd_server: EtcdServer
) -> None:
    lock = EtcdLock([address(etcd_server)])
    service = SemaphoreService(store, lock)
    answers = await asyncio.gather(*(service.acquire(wish(f"p{n}", 2), 9) for n in range(6)))
    outcomes = [answer.acquired.outcome for answer in answers]
    assert (outcomes.count(Outcome.GRANTED), outcomes.count(Outcome.FULL)) == (2, 4)
    resized = await service.acquire(wish("late", 3), 9)
    assert (resized.acquired.outcome, resized.acquired.held, resized.replaced_length) == (Outcome.GRANTED, 3, 2)
    await service.close()


async def test_a_group_goes_on_without_its_leader(group: EtcdGroup, opened: Opener) -> None:
    store = opened(*group.members)
    await create(store, 10)
    await store.acquire(wish("a", 10))
    leader = group.leader()
    leader.kill()
    answer = await store.acquire(wish("b", 10), 5)
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 2)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    group.start(leader)
    rejoined = opened(leader)
    assert (await rejoined.acquire(wish("c", 10), 5)).held == 3


async def test_a_frozen_leader_costs_a_second(group: EtcdGroup, opened: Opener) -> None:
    leader = group.leader()
    store = opened(leader, *group.followers())
    await create(store, 10)
    changes = store.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.2)
    leader.pause()
    try:
        began = time.monotonic()
        assert (await store.acquire(wish("a", 10), 8)).outcome is Outcome.GRANTED
        assert time.monotonic() - began < 4
        assert await store.renew(KEY, "a", "pod-a") == 60_000
        assert await store.release(KEY, "a", "pod-a") is True
        # The watch was at the frozen member: that is noticed, and what was missed is heard all the same.
        async with asyncio.timeout(10):
            assert await heard == KEY
    finally:
        leader.resume()
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_member_that_is_cut_off_is_passed_over(group: EtcdGroup, opened: Opener) -> None:
    first, second, third = group.members
    store = opened(*group.members)
    await create(store, 10)
    alone = opened(first)
    second.pause()
    third.pause()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=first.address):
            await alone.acquire(wish("x", 10), 1.5)
        assert time.monotonic() - began < 2
    finally:
        second.resume()
        third.resume()
    answer = await store.acquire(wish("a", 10), 8)
    assert (answer.outcome, answer.held) == (Outcome.GRANTED, 1)


async def test_exclusion_holds_while_leaders_come_and_go(group: EtcdGroup, opened: Opener) -> None:
    stores = [opened(*group.members[n:], *group.members[:n]) for n in range(3)]
    await create(stores[0], 4)
    over = time.monotonic() + 6
    holding: dict[str, int] = {}
    most = grants = 0

    async def churn(number: int) -> None:
        nonlocal most, grants
        store, turn = stores[number % 3], 0
        while time.monotonic() < over:
            turn += 1
            permit = f"p{number}-{turn}"
            try:
                answer = await store.acquire(wish(permit, 4), 3)
            except StoreUnavailableError:
                continue
            if answer.outcome is not Outcome.GRANTED:
                await asyncio.sleep(0.01)
                continue
            holding[permit] = answer.token
            grants += 1
            most = max(most, len(holding))
            await asyncio.sleep(0.01)
            del holding[permit]
            with contextlib.suppress(StoreUnavailableError):
                await store.release(KEY, permit)

    async def disturb() -> None:
        for n in range(3):
            await asyncio.sleep(0.8)
            leader = await asyncio.to_thread(group.leader)
            if n % 2:
                leader.pause()
                await asyncio.sleep(0.8)
                leader.resume()
            else:
                await asyncio.to_thread(leader.kill)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(group.start, leader)

    await asyncio.gather(disturb(), *(churn(number) for number in range(9)))
    assert most <= 4
    assert grants > 20

    async def nothing_is_lost() -> bool:
        state = await stores[0].state(KEY)
        for permit in state.permits:
            await stores[0].release(KEY, permit)
        return state.held == 0

    await until(nothing_is_lost, 10)


async def _enable_authentication(store_client: Client) -> None:
    steps: list[tuple[str, dict[str, Any]]] = [
        ("user/add", {"name": "root", "password": PASSWORD}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": "semaphore", "password": PASSWORD}),
        ("role/add", {"name": "semaphore"}),
        ("user/grant", {"user": "semaphore", "role": "semaphore"}),
        *(
            ("role/grant", {"name": "semaphore", "perm": {"permType": "READWRITE", "key": key, "range_end": end}})
            for key, end in map(_permission, ("queue/", "inflight/", "denied/", "ended/", "lock/", "epoch"))
        ),
        ("enable", {}),
    ]
    for path, body in steps:
        await store_client.exchange(f"/v3/auth/{path}", body)


async def forget_tokens(server: EtcdServer, user: str, password: str) -> None:
    """Have etcd refuse the tokens of a user, as it does when they have expired: it does so to a new password's user."""
    client = Client([address(server)._replace(username="root", password=PASSWORD)])
    await client.exchange("/v3/auth/user/changepw", {"name": user, "password": password})
    await client.close()


def _permission(name: str) -> tuple[str, str]:
    from at_least_semaphore_pod_hook.etcd_permits import encoded  # noqa: PLC0415

    return encoded(name), encoded(prefix_end(name.encode()).decode()) if name.endswith("/") else ""


async def test_a_user_with_the_documented_role_logs_in_again(mortal_etcd_server: EtcdServer, tmp_path: Path) -> None:
    client = Client([address(mortal_etcd_server)])
    await _enable_authentication(client)
    await client.close()
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    store = open_store(parse_store_url(f"etcd://semaphore@127.0.0.1:{mortal_etcd_server.port}?password-file={file}"))
    changes = store.changes()
    step = await store.begin(KEY, REDLOCK)
    await store.set_length(KEY, 2, step.fence)
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    assert (await store.acquire(wish("a", 2, owner="Job/a"))).outcome is Outcome.GRANTED
    await store.keep(KEY, "a", "pod-a", "uid-a")
    await forget_tokens(mortal_etcd_server, "semaphore", PASSWORD)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    assert (await store.acquire(wish("b", 2))).outcome is Outcome.GRANTED
    assert (await store.acquire(wish("c", 2, owner="Job/c"))).outcome is Outcome.FULL
    assert (await store.state(KEY)).denied == ("Job/c",)
    await store.forget_denied(KEY, "Job/c")
    assert await store.release(KEY, "a", ended=True) is True
    async with asyncio.timeout(8):
        assert await heard == KEY
    assert await store.renew(KEY, "a", "pod-a") == -1
    assert [key async for key in store.semaphores()] == [KEY]
    await forget_tokens(mortal_etcd_server, "semaphore", "other-word")
    with pytest.raises(StoreUnavailableError, match="invalid user ID or password"):
        await store.renew(KEY, "b")
    file.write_text("other-word\n")
    assert await store.renew(KEY, "b") == 60_000
    file.write_text("wrong-word")
    await forget_tokens(mortal_etcd_server, "semaphore", "other-word")
    with pytest.raises(StoreUnavailableError, match="invalid user ID or password") as caught:
        await store.renew(KEY, "b")
    assert "wrong-word" not in str(caught.value)
    file.unlink()
    with pytest.raises(StoreUnavailableError, match="No such file"):
        await store.renew(KEY, "b")
    await changes.aclose()  # type: ignore[attr-defined]
    await store.close()


async def test_who_only_listens_logs_in_again(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    client = Client([address(mortal_etcd_server)])
    await _enable_authentication(client)
    await client.close()
    user = address(mortal_etcd_server)._replace(username="semaphore", password=PASSWORD)
    listener, other = opened(user), opened(user)
    await create(other)
    await other.acquire(wish("a"))
    changes = listener.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.2)
    old = listener._client._token
    await forget_tokens(mortal_etcd_server, "semaphore", PASSWORD)
    mortal_etcd_server.restart()
    assert await other.release(KEY, "a") is True
    async with asyncio.timeout(8):
        assert await heard == KEY
    assert listener._client._token != old
    await changes.aclose()  # type: ignore[attr-defined]


async def test_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server("etcd.test", ["etcd.test"], also_client=True)
    client_certificate, client_key = authority.issue_client("client", "nobody", [])
    # etcd's own gateway is a client of it, and shows the server's certificate.
    server = EtcdServer(
        tmp_path,
        fsync=False,
        tls=(certificate, key),
        arguments=["--client-cert-auth", f"--trusted-ca-file={authority.ca_file}"],
    )
    server.process.start()
    try:
        options = f"ca-file={authority.ca_file}&server-name=etcd.test"
        own = f"cert-file={client_certificate}&key-file={client_key}"
        store = open_store(parse_store_url(f"etcds://127.0.0.1:{server.port}?{options}&{own}"))

        async def works() -> bool:
            try:
                await store.state(KEY)
            except StoreUnavailableError:
                return False
            return True

        await until(works, 10)
        step = await store.begin(KEY, REDLOCK)
        await store.set_length(KEY, 2, step.fence)
        assert (await store.acquire(wish("a", 2))).outcome is Outcome.GRANTED
        # Files that change are read again.
        fresh = authority.issue_client("fresh", "nobody", [])
        fresh[0].replace(client_certificate)
        fresh[1].replace(client_key)
        assert await store.renew(KEY, "a") == 60_000
        client_key.write_text("no key")
        with pytest.raises(StoreUnavailableError, match=r"client\.key"):
            await store.renew(KEY, "a")
        await store.close()
        for wrong, reason in (
            (options, "certificate|closed|reset|alert|disconnected"),
            (f"{own}&server-name=other.test&ca-file={authority.ca_file}", "client.key|mismatch"),
        ):
            stranger = open_store(parse_store_url(f"etcds://127.0.0.1:{server.port}?{wrong}"))
            with pytest.raises(StoreUnavailableError, match=f"(?i){reason}"):
                await stranger.state(KEY)
            await stranger.close()
    finally:
        server.process.kill()
