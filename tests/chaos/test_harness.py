"""The harness itself: what its links do, what they record, and where processes are killed."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from devcluster.polling import until
from devcluster.process import Process
from devcluster.stores import RedisServer
from tests.chaos import crash, topology
from tests.chaos.checking import in_flight
from tests.chaos.fault import TOPOLOGIES, Verdict, verdict_of
from tests.chaos.faults import first_kinds, ground, plan
from tests.chaos.group_faults import StoreFlushed
from tests.chaos.history import Operation, Recorder
from tests.chaos.objects import ConflictError, patched
from tests.chaos.process_faults import SidecarsStopped, WebhookStopped
from tests.chaos.proxy import NONE, Link, Loop, Trouble, Way
from tests.chaos.tap import RespTap
from tests.sidecar_harness import ACQUIRE, INFLIGHT, KEYS, QUEUE

WANTED = ("p1", "", "identity", "pod", 0, 60_000, 30_000, 0, 0, "", "", "")


class Wired:
    """A Redis behind a link that records."""

    def __init__(self, directory: Path, loop: Loop) -> None:
        self.server = RedisServer(directory)
        self.server.start()
        self.recorder = Recorder()
        self.link = Link(loop, [self.server.port], tap=lambda: RespTap(self.recorder, "webhook"))
        self.direct = redis.Redis(port=self.server.port, decode_responses=True)
        self.direct.hset(QUEUE, "length", "1")
        self.client = redis.Redis(port=self.link.port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
        self.client.ping()

    def acquire(self) -> Any:
        return self.client.eval(ACQUIRE, len(KEYS), *KEYS, *WANTED)

    def only(self) -> Operation:
        (operation,) = self.recorder.operations()
        return operation

    def close(self) -> None:
        self.client.close()
        self.direct.close()
        self.link.close()
        self.server.kill()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as loop:
        yield loop


@pytest.fixture
def wired(tmp_path: Path, loop: Loop) -> Iterator[Wired]:
    wired = Wired(tmp_path / "redis", loop)
    yield wired
    wired.close()


def ended(wired: Wired) -> Callable[[], bool]:
    return lambda: not wired.recorder._pending


def test_a_call_is_recorded_with_its_answer(wired: Wired) -> None:
    before = time.monotonic()
    wired.acquire()
    operation = wired.only()
    assert (operation.process, operation.kind, operation.semaphore) == ("webhook", "acquire", "ns/key")
    assert operation.outcome == "ok"
    assert before < operation.invoked < operation.completed < time.monotonic()
    assert operation.result["outcome"] == "granted"
    assert operation.result["token"] == int(wired.direct.hget(QUEUE, "token") or 0)


def test_a_grant_is_answered_once_enough_replicas_have_it(wired: Wired, loop: Loop) -> None:
    link = Link(loop, [wired.server.port], tap=lambda: RespTap(wired.recorder, "webhook", 1))
    with redis.Redis(port=link.port, retry=Retry(NoBackoff(), 0)) as client, client.pipeline(transaction=False) as sent:
        sent.eval(ACQUIRE, len(KEYS), *KEYS, *WANTED)
        sent.execute_command("WAIT", 1, 10)
        granted, replicas = sent.execute()
    link.close()
    assert (granted[0], replicas) == (b"granted", 0)
    assert wired.only().outcome == "unknown"


def test_a_link_that_is_closed_while_clients_come_leaves_nothing_open(loop: Loop) -> None:
    for _ in range(30):
        with contextlib.ExitStack() as clients:
            link = Link(loop, [1])
            for _ in range(3):
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", link.port))
            link.close()
    # What is left open is told of when it is thrown away, and fails this test.
    gc.collect()


def test_a_lost_reply_is_unknown_and_applied(wired: Wired) -> None:
    wired.link.trouble(Trouble(replies_lost=True))
    with pytest.raises(redis.ConnectionError):
        wired.acquire()
    until(ended(wired), "it is recorded")
    assert wired.only().outcome == "unknown"
    assert wired.direct.zcard(INFLIGHT) == 1


def test_what_is_held_and_then_lost_has_failed_for_certain(wired: Wired) -> None:
    wired.link.trouble(Trouble(held=frozenset({Way.REQUESTS})))
    with pytest.raises(redis.TimeoutError):
        wired.acquire()
    wired.link.reset()
    wired.link.trouble(NONE)
    assert wired.only().outcome == "fail"
    assert wired.direct.zcard(INFLIGHT) == 0


def test_what_is_held_arrives_late_though_its_caller_has_gone(wired: Wired) -> None:
    wired.link.trouble(Trouble(held=frozenset({Way.REQUESTS})))
    with pytest.raises(redis.TimeoutError):
        wired.acquire()
    assert wired.direct.zcard(INFLIGHT) == 0
    wired.link.trouble(NONE)
    until(lambda: wired.direct.zcard(INFLIGHT) == 1, "it is applied")
    until(ended(wired), "it is recorded")
    assert wired.only().outcome in {"ok", "unknown"}


def test_a_half_open_link_lets_the_request_through(wired: Wired) -> None:
    wired.link.trouble(Trouble(held=frozenset({Way.REPLIES})))
    with pytest.raises(redis.TimeoutError):
        wired.acquire()
    until(ended(wired), "it is recorded")
    assert wired.only().outcome == "unknown"
    assert wired.direct.zcard(INFLIGHT) == 1


def test_a_delay_is_as_long_as_it_says(wired: Wired) -> None:
    wired.link.trouble(Trouble(delay=0.1))
    wired.acquire()
    operation = wired.only()
    assert 0.2 <= operation.completed - operation.invoked < 2


def test_a_script_that_the_server_does_not_know_has_failed_for_certain(wired: Wired) -> None:
    digest = wired.direct.script_load(ACQUIRE)
    wired.direct.script_flush()
    with pytest.raises(redis.exceptions.NoScriptError):
        wired.client.evalsha(digest, len(KEYS), *KEYS, *map(str, WANTED))
    assert wired.only().outcome == "fail"


def test_connections_are_refused_and_taken_again_on_the_same_port(wired: Wired) -> None:
    wired.link.trouble(Trouble(refused=True))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", wired.link.port)).close()
    wired.link.trouble(NONE)
    assert wired.acquire()[0] == b"granted"


def test_a_reset_ends_connections_with_a_reset(wired: Wired) -> None:
    with socket.create_connection(("127.0.0.1", wired.link.port), timeout=5) as connection:
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        assert connection.recv(16) == b"+PONG\r\n"
        wired.link.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(16)


@pytest.mark.parametrize("point", ["sidecar:connection.open:before", "sidecar:holding.renew_once:after"])
def test_a_process_is_killed_at_its_point(tmp_path: Path, wired: Wired, point: str) -> None:
    wired.acquire()
    order = tmp_path / "crash"
    order.write_text(f"{point} 1")
    argv = [sys.executable, crash.__file__, "-m", "at_least_semaphore_pod_hook", "sidecar"]
    argv += [f"--queue-redis-address={wired.link.address}", "ns/key", "p1"]
    environment = os.environ | {crash.VARIABLE: str(order), "POD_NAME": "pod-1"}
    with Process("sidecar", argv, tmp_path / "log", env=environment) as process:
        until(lambda: not process.alive, "it is killed")
        assert process.exit_code == -signal.SIGKILL
    assert not order.exists()
    renewed = [one for one in wired.recorder.operations() if one.kind == "renew" and one.outcome == "ok"]
    assert len(renewed) == (0 if point.endswith("before") else 1)


def test_there_are_many_points_and_each_once() -> None:
    points = [*crash.WEBHOOK_POINTS, *crash.SIDECAR_POINTS]
    assert len(points) == len(set(points)) >= 40


def test_a_patch_that_does_not_fit_changes_nothing() -> None:
    document = {"spec": {"gates": [{"name": "a"}, {"name": "b"}]}}
    operations = [{"op": "remove", "path": "/spec/gates/0"}, {"op": "test", "path": "/spec/gates/0/name", "value": "a"}]
    with pytest.raises(ConflictError):
        patched(document, operations)
    assert document == {"spec": {"gates": [{"name": "a"}, {"name": "b"}]}}
    assert patched(document, operations[:1]) == {"spec": {"gates": [{"name": "b"}]}}


def test_faults_that_silence_all_who_renew_may_cost_leases() -> None:
    rng = random.Random(0)
    sidecars, webhook = SidecarsStopped(rng), WebhookStopped(rng)
    assert verdict_of([sidecars]) is verdict_of([webhook]) is Verdict.NONE
    assert verdict_of([sidecars, webhook]) is Verdict.LEASES


def test_only_what_a_rebuild_puts_back_is_bounded_by_what_was_in_flight() -> None:
    rng = random.Random(0)
    flushed, sidecars, webhook = StoreFlushed(rng), SidecarsStopped(rng), WebhookStopped(rng)
    flushed.lost = (1.0, 2.0)
    assert in_flight([], [flushed]) == {}
    assert in_flight([], [flushed, sidecars]) == {}
    assert in_flight([], [sidecars, webhook]) is None
    assert in_flight([], [flushed, sidecars, webhook]) is None


def test_a_seed_draws_the_same_faults_again() -> None:
    for seed in range(200):
        drawn = [[fault.name for fault in plan(random.Random(seed), ground(seed))] for _ in range(2)]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("real", [False, True])
def test_every_kind_has_its_turn(topology: str, real: bool) -> None:
    kinds = {kind.name for kind in first_kinds(topology, real=real)}
    grounds = [on for on in map(ground, range(4000)) if (on.topology, on.real) == (topology, real)]
    drawn = [plan(random.Random(0), on)[0].name for on in grounds[: len(kinds)]]
    assert set(drawn) == kinds


def test_any_forty_seeds_have_every_topology() -> None:
    for first in range(100):
        counts = Counter(ground(seed).topology for seed in range(first, first + 40))
        assert 16 <= counts["single"] <= 24
        assert all(counts[topology] >= 3 for topology in TOPOLOGIES)


@pytest.mark.parametrize(("sync", "kept"), [("always", {"old", "new"}), ("everysec", {"old"}), ("no", {"old"})])
def test_a_power_cut_takes_along_what_was_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, kept: set[str]
) -> None:
    monkeypatch.setattr(topology, "FLUSH_SECONDS", dict.fromkeys(topology.FLUSH_SECONDS, 0.2))
    store = topology.Single(tmp_path, sync)
    try:
        store.start()
        with store.client() as client:
            client.set("old", 1)
            store.note()
            time.sleep(0.3)
            client.set("new", 1)
        store.cut_power()
        store.revive()
        with store.client() as client:
            assert set(client.keys()) == kept
    finally:
        store.close()


def test_a_killed_store_keeps_all_it_has_answered(tmp_path: Path) -> None:
    store = topology.Single(tmp_path, "no")
    try:
        store.start()
        with store.client() as client:
            client.set("new", 1)
        store.kill()
        store.revive()
        with store.client() as client:
            assert client.get("new") == "1"
    finally:
        store.close()
