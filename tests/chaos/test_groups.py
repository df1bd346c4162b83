"""The stores of several servers: what is read of them, how one is cut off, and what callers write down themselves."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.polling import until
from devcluster.process import Process
from devcluster.stores import RedisServer
from tests.chaos import crash, journal
from tests.chaos.groups import Etcd
from tests.chaos.history import FAIL, OK, UNKNOWN, Recorder
from tests.chaos.journal import Journal
from tests.chaos.proxy import Loop, Trouble
from tests.chaos.redis_groups import Cluster, Sentinel
from tests.chaos.topology import Single, Topology, store_links
from tests.sidecar_harness import ACQUIRE, KEYS, QUEUE

LENGTH = 3
KEY = SemaphoreKey("ns", "some/key")
WANTED = AcquireRequest(KEY, LENGTH, 60, "p1", "identity", pod="pod")


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture(params=["single", "etcd", "sentinel", "cluster"])
def started(request: pytest.FixtureRequest, tmp_path: Path, loop: Loop) -> Iterator[Topology]:
    made: dict[str, Callable[[], Topology]] = {
        "single": lambda: Single(tmp_path, "no"),
        "etcd": lambda: Etcd(tmp_path, loop, peers=False),
        "sentinel": lambda: Sentinel(tmp_path, loop, 1),
        "cluster": lambda: Cluster(tmp_path, loop),
    }
    topology = made[request.param]()
    try:
        topology.start()
        yield topology
    finally:
        topology.close()


class Client:
    """Somebody who comes to a store by links of its own."""

    def __init__(self, topology: Topology, loop: Loop, process: str) -> None:
        self.recorder = Recorder()
        self.links = store_links(topology, loop, self.recorder, process, random.Random(0))
        flags = dict(flag.split("=", 1) for flag in topology.flags([link.address for link in self.links]))
        url = flags.get("--queue-url") or f"redis://{flags['--queue-redis-address']}"
        self.open = partial(open_store, parse_store_url(url))

    def close(self) -> None:
        for link in self.links:
            link.close()


@pytest.fixture
def webhook(started: Topology, loop: Loop) -> Iterator[Client]:
    client = Client(started, loop, "webhook-1")
    yield client
    client.close()


async def acquire_once(client: Client) -> None:
    store = client.open()
    step = await store.begin(KEY, Fence("test", 0))  # the store counts where a lock does not
    await store.set_length(KEY, LENGTH, step.fence)
    assert (await store.acquire(WANTED)).outcome is Outcome.GRANTED
    await store.close()


def test_what_is_held_is_read_wherever_it_is_and_was_read_along_on_the_way(started: Topology, webhook: Client) -> None:
    asyncio.run(acquire_once(webhook))
    held = started.held()
    assert held.permits == {"some/key": {"p1"}}
    assert held.lengths == {"some/key": LENGTH}
    done = [(one.process, one.kind, one.outcome) for one in webhook.recorder.operations() if one.outcome != FAIL]
    expected = [("webhook-1", kind, OK) for kind in ("begin", "set_length", "acquire")]
    assert done == ([] if isinstance(started, Etcd) else expected)  # its callers record it themselves


@pytest.mark.parametrize("started", ["sentinel", "cluster"], indirect=True)
def test_each_client_comes_by_its_own_links_alone(started: Topology, webhook: Client, loop: Loop) -> None:
    assert isinstance(started, Sentinel | Cluster)
    other = Client(started, loop, "webhook-2")
    try:
        for link in other.links:
            link.trouble(Trouble(refused=True))
        asyncio.run(acquire_once(webhook))
        with pytest.raises(StoreUnavailableError):
            asyncio.run(acquire_once(other))
    finally:
        other.close()
    for link in started.peers.values():
        with redis.Redis(port=link.port, retry=Retry(NoBackoff(), 0)) as lost, pytest.raises(redis.ConnectionError):
            lost.eval("return 1", 0)


@pytest.mark.parametrize("started", ["sentinel"], indirect=True)
def test_a_primary_that_is_cut_off_from_its_peers_still_answers_its_clients(started: Topology) -> None:
    assert isinstance(started, Sentinel)
    old = started.group.primary()
    started.isolate(old)
    assert started.group.wait_for_another(old) is not old
    with started.group.client(old) as asked:
        role, _, replicas = asked.execute_command("ROLE")
        assert (role, replicas) == ("master", [])
    started.rejoin(old)
    started.settle()
    with started.group.client(old) as asked:
        until(lambda: asked.execute_command("ROLE")[0] == "slave", "it follows")


def test_a_leader_that_is_cut_off_still_answers_its_clients_and_another_is_elected(tmp_path: Path, loop: Loop) -> None:
    etcd = Etcd(tmp_path, loop, peers=True)
    try:
        etcd.start()
        old = etcd.leader()
        others = [member for member in etcd.group.members if member is not old]
        etcd.isolate(old)
        asked = "/v3/maintenance/status"
        until(lambda: int(others[0].post(asked, {}).get("leader", 0)) not in (0, etcd.cut_off), "another is elected")
        assert int(old.post(asked, {}).get("leader", 0)) in (0, etcd.cut_off)
        cut_off = etcd.cut_off
        etcd.rejoin()
        until(lambda: int(old.post(asked, {}).get("leader", 0)) not in (0, cut_off), "it follows")
    finally:
        etcd.close()


def test_a_call_without_an_answer_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = Journal(path), Journal(path)
    first.invoke("a", "renew", "ns/key", "p1", pod="pod").ok(lease_ms=5)
    first.invoke("a", "renew", "ns/key", "p2", pod="pod").unknown()
    second.invoke("b", "acquire", "ns/key", "p3")
    answered, gave_up, pending = journal.read(path)
    assert (answered.process, answered.outcome, answered.result) == ("a", OK, {"lease_ms": 5})
    assert answered.invoked <= answered.completed < math.inf
    assert (gave_up.outcome, gave_up.completed, list(gave_up.result)) == (UNKNOWN, math.inf, ["gave_up"])
    assert (pending.process, pending.outcome, pending.result) == ("b", UNKNOWN, {})


@pytest.mark.parametrize("point", ["sidecar:connection.receive:before", "sidecar:holding.renew_once:after"])
def test_a_sidecar_writes_down_what_it_asks_and_is_killed_in_the_midst_of_it(tmp_path: Path, point: str) -> None:
    order, path = tmp_path / "crash", tmp_path / "journal"
    order.write_text(f"{point} 1")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {crash.VARIABLE: str(order), "POD_NAME": "pod-1", "PYTHONPATH": root}
    with RedisServer(tmp_path / "redis") as server, redis.Redis(port=server.port) as client:
        client.hset(QUEUE, "length", "1")
        client.eval(ACQUIRE, len(KEYS), *KEYS, "p1", "", "identity", "pod", 0, 60_000, 30_000, 0, 0, "", "", "")
        argv = [sys.executable, crash.__file__, "-m", "at_least_semaphore_pod_hook", "sidecar"]
        argv += [f"--queue-redis-address={server.address}", "ns/key", "p1"]
        with Process("sidecar", argv, tmp_path / "log", env=environment | {journal.VARIABLE: str(path)}) as process:
            until(lambda: not process.alive, "it is killed")
            assert process.exit_code == -signal.SIGKILL
    (only,) = journal.read(path)
    assert (only.process, only.kind, only.permit) == ("sidecar pod-1", "renew", "p1")
    assert only.outcome == (UNKNOWN if point.endswith("before") else OK)
    assert only.result == ({} if point.endswith("before") else {"lease_ms": 60_000})
