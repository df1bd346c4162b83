"""The shipped users of Redis and Valkey (`deploy/store/*.acl`): each right is used, and nothing else is allowed.

That the rights are enough is shown by the whole contract suite, whose stores have them.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
from collections import Counter
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.locks.redlock import Redlock
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.topologies import RedisCluster, SentinelGroup, client
from tests.contract import accounts, operations
from tests.contract.accounts import PASSWORD, SIDECAR, WEBHOOK
from tests.contract.subjects import RedisSubject
from tests.sidecar_harness import INFLIGHT, Server, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from tests.sidecar_harness import Process

KEY = SemaphoreKey("ns", "key")
NEW = SemaphoreKey("ns", "new")
REDLOCK = Fence("redlock", 0)
FILES = ("users.acl", "users-lock.acl", "users-sentinel.acl", "users-cluster.acl")
CALLS = 3000
ANYWAY = {"auth", "hello", "quit", "reset"}
"""What whoever connects may do, as it says who he is."""


@contextmanager
def only(granted: list[str], *admins: Any) -> Iterator[None]:
    """Expect that servers are asked for all that is granted, and for nothing that is not."""
    for admin in admins:
        admin.execute_command("ACL", "LOG", "RESET")
    before = calls(admins)
    # What has counted was asked for as well.
    before["info"] += len(admins)
    yield
    used = {name for name, count in calls(admins).items() if count > before[name]}
    assert accounts.commands(granted) - used == set()
    for admin in admins:
        assert [one["object"] for one in admin.acl_log()] == []


def calls(admins: Sequence[Any]) -> Counter[str]:
    """Count how often servers have performed each command, on its own or in a script."""
    counted = Counter[str]()
    for admin in admins:
        for name, about in admin.info("commandstats").items():
            counted[name.removeprefix("cmdstat_")] += about["calls"]
    return counted


async def exercise(subject: RedisSubject) -> None:
    """Do all that webhooks do in a store, at the subject's time."""
    store, clock = subject.store, subject.clock
    chosen = random.Random(1)  # noqa: S311 - for calls that are the same each time
    kinds = [getattr(operations, name) for name in ("ACQUIRES", "PLAIN_ACQUIRES", "RENEWALS", "KEEPS", "RELEASES")]
    kinds += [operations.RECLAIMS, operations.STATES, operations.FORGETTINGS, operations.BEGINNINGS]
    kinds += [operations.RESIZES, operations.ADOPTIONS]
    fences = [REDLOCK]
    for _ in range(CALLS // 50):
        calls = [chosen.choice(chosen.choice(kinds)) for _ in range(50)]
        answers = await asyncio.gather(*(operations.performed(store, call, fences) for call in calls))
        fences += [answer.fence for call, answer in zip(calls, answers, strict=True) if hasattr(answer, "fence")]
        clock.advance(chosen.choice((0, 1, 10, 100)))
    # More owners are denied than are noted.
    step = await store.begin(NEW, REDLOCK)
    await store.set_length(NEW, 1, step.fence)
    for number in range(150):
        await store.acquire(AcquireRequest(NEW, 1, 60, f"{number}", f"{number}", owner=f"Job/{number}"))
    # Its own time, a note of the pod's end, and who listens.
    shipped = subject.open()
    try:
        await works(shipped)
    finally:
        await shipped.close()


async def works(store: Store) -> None:
    """Mark the data, take a permit and give it back, by the server's own clock, and hear of it."""
    await store.version()
    assert await store.mark(1) == 1
    step = await store.begin(KEY, REDLOCK)
    await store.set_length(KEY, 1, step.fence)
    wish = AcquireRequest(KEY, 1, 60, "a", "identity")
    async with aclosing(store.changes()) as changes:  # type: ignore[type-var]
        heard = asyncio.ensure_future(anext(changes))
        async with asyncio.timeout(5):
            while not heard.done():
                assert (await store.acquire(wish)).outcome is Outcome.GRANTED
                assert await store.release(KEY, "a", "pod", ended=True)
                await asyncio.sleep(0.01)
        assert heard.result() == KEY
    assert (await store.acquire(wish)).outcome is Outcome.GRANTED
    assert KEY in [key async for key in store.semaphores()]
    assert await store.release(KEY, "a")


async def lock_works(url: str) -> None:
    lock = Redlock(parse_store_url(url).addresses)
    try:
        await lock.ping()
        async with lock.hold("ns/key", 5):
            pass
    finally:
        await lock.close()


async def held(url: str) -> None:
    """Have a permit for a sidecar."""
    store = open_store(parse_store_url(url))
    try:
        step = await store.begin(KEY, REDLOCK)
        await store.set_length(KEY, 1, step.fence)
        assert (await store.acquire(AcquireRequest(KEY, 1, 3, "p1", "identity"))).outcome is Outcome.GRANTED
    finally:
        await store.close()


def lives(sidecar: Process, expire: Callable[[], object]) -> None:
    """Let a sidecar confirm its permit, renew it though its lease has just ended, and give it back."""
    sidecar.says("confirmed the permit")
    expire()
    assert sidecar.end()[0] == 0
    assert [line["level"] for line in sidecar.lines()] == ["info", "info"]


class TestOneServer:
    async def test_webhook(self, server: Server) -> None:
        granted = accounts.rights("users.acl")[WEBHOOK]
        accounts.let_in(server.client, "users.acl")
        url = f"redis://{WEBHOOK}:{PASSWORD}@{server.address}"
        subject = RedisSubject(f"{url}/1", [server.client])
        try:
            with only(granted, server.client):
                await exercise(subject)
                await lock_works(url)
        finally:
            await subject.close()

    async def test_sidecar(self, server: Server, new_sidecar: Callable[..., Process]) -> None:
        accounts.let_in(server.client, "users.acl")
        await held(f"redis://{WEBHOOK}:{PASSWORD}@{server.address}/1")
        with redis.Redis(port=server.port, db=1) as admin:

            def end() -> float:
                ((_, at),) = admin.zrange(INFLIGHT, 0, -1, withscores=True)
                return float(at)

            def expire() -> None:
                admin.zincrby(INFLIGHT, -1_000_000, "p1")
                before = end()
                until(lambda: end() > before)

            with only(accounts.rights("users.acl")[SIDECAR], server.client):
                own = new_sidecar(f"redis://{SIDECAR}:{PASSWORD}@{server.address}/1")
                await asyncio.to_thread(lives, own, expire)

    async def test_lock_alone(self, server: Server) -> None:
        accounts.let_in(server.client, "users-lock.acl")
        with only(accounts.rights("users-lock.acl")[WEBHOOK], server.client):
            await lock_works(f"redis://{WEBHOOK}:{PASSWORD}@{server.address}/1")


class TestSentinels:
    @pytest.fixture
    def group(self, tmp_path: Path) -> Iterator[SentinelGroup]:
        with SentinelGroup(tmp_path / "group", replicas=1) as group:
            yield group

    async def test_webhook_and_sidecar(self, group: SentinelGroup, new_sidecar: Callable[..., Process]) -> None:
        url = accounts.into_sentinels(group).replace("/semaphores", "/semaphores/1")
        own = url.replace(f"{WEBHOOK}:", f"{SIDECAR}:").replace(f"={WEBHOOK}", f"={SIDECAR}")
        primary = group.client(group.primary())
        sentinels = [client(sentinel.port) for sentinel in group.sentinels]
        data = accounts.rights("users-sentinel.acl")
        subject = RedisSubject(f"{url}&wait-replicas=1", [primary])
        try:
            for each in sentinels:
                each.execute_command("ACL", "LOG", "RESET")
            with only(data[WEBHOOK], primary):
                await exercise(subject)
                await asyncio.to_thread(until, lambda: all(map(heard_by_webhook, sentinels)))
            await held(url)
            needed = [right for right in data[SIDECAR] if right != "+zcount"]  # as with one server
            with only(needed, primary):
                await asyncio.to_thread(lives, new_sidecar("127.0.0.1:1", "--queue-url", own), lambda: None)
            assert [one for each in sentinels for one in each.acl_log()] == []
        finally:
            await subject.close()
            for each in sentinels:
                each.close()

    @pytest.mark.parametrize("right", sorted(accounts.commands(accounts.rights("sentinels.acl")[WEBHOOK])))
    async def test_sentinels_are_asked_for_each_right_of_the_webhook(self, group: SentinelGroup, right: str) -> None:
        # They do not count commands, but note what they refuse.
        store = open_store(parse_store_url(accounts.into_sentinels(group)))
        with client(group.sentinels[0].port) as admin:
            admin.execute_command("ACL", "SETUSER", WEBHOOK, f"-{right}")
            with suppress(StoreUnavailableError):
                await store.state(KEY)
            await asyncio.to_thread(until, lambda: right in [one["object"] for one in admin.acl_log()])
        await store.close()


def heard_by_webhook(sentinel: Any) -> bool:
    return any(one["user"] == WEBHOOK and one["sub"] == "1" for one in sentinel.client_list())


class TestACluster:
    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[RedisCluster]:
        with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
            yield cluster

    async def test_webhook_and_sidecar(self, cluster: RedisCluster, new_sidecar: Callable[..., Process]) -> None:
        url = accounts.into_cluster(cluster)
        own = url.replace(f"{WEBHOOK}:", f"{SIDECAR}:")
        masters = [client(server.port) for server in cluster.servers[:3]]
        granted = accounts.rights("users-cluster.acl")
        slot = key_slot(str(KEY).encode())
        source = cluster.owner(slot)
        to = next(server for server in cluster.servers[:3] if server is not source)
        subject = RedisSubject(f"{url}?wait-replicas=1", masters)
        try:
            with only(granted[WEBHOOK], *masters):
                await exercise(subject)
                subject.forget(KEY)
                cluster.move(slot, to, finish=False)
                # Sent to where it goes, which says to try again until all of it is there.
                step = asyncio.ensure_future(subject.store.begin(KEY, REDLOCK))
                await asyncio.to_thread(until, lambda: calls(masters)["asking"])
                await asyncio.to_thread(cluster.finish_move, slot, source, to)
                await step
            await held(url)
            moving = [right for right in granted[SIDECAR] if right != "+zcount"]  # as with one server
            with only(moving, *masters):
                await asyncio.to_thread(self._moved, cluster, slot, new_sidecar("127.0.0.1:1", "--queue-url", own))
        finally:
            await subject.close()

    @staticmethod
    def _moved(cluster: RedisCluster, slot: int, sidecar: Process) -> None:
        sidecar.says("confirmed the permit")
        source = cluster.owner(slot)
        to = next(server for server in cluster.servers[:3] if server is not source)
        cluster.move(slot, to, finish=False)
        with client(source.port) as giving, client(to.port) as taking:
            keys = giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            giving.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 2000, "KEYS", *keys)
            asked = calls([taking])["asking"]
            until(lambda: calls([taking])["asking"] > asked)
        cluster.finish_move(slot, source, to)
        assert sidecar.end()[0] == 0


@pytest.mark.parametrize("file", FILES)
def test_every_other_command_is_refused(server: Server, file: str) -> None:
    admin = server.client
    accounts.let_in(admin, file)
    known = everything(admin)
    assert len(known) > 200
    for user, given in accounts.rights(file).items():
        allowed = accounts.commands(given)
        assert allowed <= known
        for name in known - allowed - ANYWAY:
            words = name.split("|")
            fill = ["queue/x"] * 8
            said = next(
                answer
                for count in range(len(fill))
                if "wrong number of arguments" not in (answer := dry_run(admin, user, [*words, *fill[:count]]))
            )
            assert "no permissions to run" in said, (user, name, said)


def dry_run(admin: Any, user: str, command: list[str]) -> str:
    try:
        return str(admin.execute_command("ACL", "DRYRUN", user, *command))
    except redis.exceptions.ResponseError as error:
        return str(error)


def everything(admin: Any) -> set[str]:
    """Return all commands of a server; what has subcommands is there by those."""
    found = set()
    # In one word, as redis-py would make something else of the answer.
    for name, *about in admin.execute_command("COMMAND INFO"):
        below = {str(row[0]).lower() for row in (about[8] if len(about) > 8 else [])}
        found |= below or {str(name).lower()}
    return found


def run_script(asked: Any, admin: Any, text: str, *keys: str, by_text: bool) -> Any:
    """Run a script as a user; where it may only run what is loaded, an administrator loads it."""
    if by_text:
        return asked.eval(text, len(keys), *keys)
    return asked.evalsha(admin.script_load(text), len(keys), *keys)


@pytest.mark.parametrize("file", FILES)
def test_other_keys_and_channels_are_refused(server: Server, file: str) -> None:
    server.client.set("other", "secret")
    accounts.let_in(server.client, file)
    for user, given in accounts.rights(file).items():
        own = next(right[1:-1] for right in given if right[0] == "~")
        with redis.Redis(port=server.port, username=user, password=PASSWORD, decode_responses=True) as asked:
            run = functools.partial(run_script, asked, server.client, by_text="+eval" in given)
            assert run("return 1") == 1
            for script, keys in (
                ("return redis.call('GET', KEYS[1])", ["other"]),
                # A name that it does not say beforehand, too.
                ("return redis.call('HGET', 'other', 'a')", []),
                ("return redis.call('SET', KEYS[1], 'x')", ["other"]),
                ("return redis.call('FLUSHALL')", []),
                ("return redis.call('HGETALL', KEYS[1])", [f"{own}x"]),
                ("return redis.call('PUBLISH', 'other', 'x')", []),
            ):
                with pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.ResponseError)) as refused:
                    run(script, *keys)
                assert re.search("permission|can't (access|run|publish)", str(refused.value)), (user, script)
            for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST"), ("SCRIPT", "FLUSH")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    asked.execute_command(*command)
    assert server.client.get("other") == "secret"
