"""The stores of several servers: what is read of them, how one is cut off, and what callers write down themselves."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.polling import until
from devcluster.process import Process
from devcluster.stores import RedisServer
from tests.chaos import crash, journal
from tests.chaos.groups import Cluster, Etcd, Sentinel
from tests.chaos.history import OK, UNKNOWN
from tests.chaos.journal import Journal
from tests.chaos.proxy import Loop
from tests.chaos.topology import Single, Topology
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
    made: dict[str, Topology] = {
        "single": Single(tmp_path, "no"),
        "etcd": Etcd(tmp_path, loop, peers=False),
        "sentinel": Sentinel(tmp_path, 1),
        "cluster": Cluster(tmp_path),
    }
    topology = made[request.param]
    try:
        topology.start()
        yield topology
    finally:
        topology.close()


def url_of(topology: Topology) -> str:
    flags = dict(flag.split("=", 1) for flag in topology.flags([f"127.0.0.1:{port}" for port in topology.ports]))
    return flags.get("--queue-url") or f"redis://{flags['--queue-redis-address']}"


def test_what_is_held_is_read_wherever_it_is(started: Topology) -> None:
    async def use() -> None:
        store = open_store(parse_store_url(url_of(started)))
        step = await store.begin(KEY, Fence("test", 0))  # the store counts where a lock does not
        await store.set_length(KEY, LENGTH, step.fence)
        assert (await store.acquire(WANTED)).outcome is Outcome.GRANTED
        await store.close()

    asyncio.run(use())
    held = started.held()
    assert held.permits == {"some/key": {"p1"}}
    assert held.lengths == {"some/key": LENGTH}


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
