"""Stores and locks that crash, hang or go away under a real API server's admissions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from devcluster.stores import EtcdServer, RedisServer
from tests.cluster.e2e import (
    Caller,
    Namespace,
    Object,
    Semaphore,
    admit,
    client_of,
    eventually,
    flags,
    opted_in,
    permit_of,
    pod,
    review,
    together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that keeps what it was told."""
    with RedisServer(tmp_path / "durable", appendonly=True) as server:
        yield server


@pytest.fixture
def locks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[RedisServer] | list[EtcdServer]]:
    """What a lock mode locks with, apart from the store: one etcd, or three Redis."""
    if request.param == "etcd":
        with EtcdServer(tmp_path / "locks", fsync=False) as etcd:
            yield [etcd]
        return
    nodes = [RedisServer(tmp_path / f"node-{number}") for number in range(3)]
    try:
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def lock_flags(nodes: list[RedisServer] | list[EtcdServer], store: RedisServer) -> list[str]:
    """Point a webhook at a store and at locks that have nothing to do with it."""
    mode = "etcd" if isinstance(nodes[0], EtcdServer) else "redlock"
    where = "--etcd-addresses" if mode == "etcd" else "--redis-addresses"
    addresses = ",".join(node.address for node in nodes)
    return [f"--lock-mode={mode}", f"--queue-redis-address={store.address}", f"{where}={addresses}"]


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("crash", [False, True], ids=["restarted", "killed"])
def test_a_restart_of_the_store_with_persistence_loses_nothing(
    namespace: Namespace,
    durable: RedisServer,
    new_webhook: Callable[..., WebhookProcess],
    registration: Registration,
    crash: bool,
) -> None:
    registration.use(new_webhook(*flags("redlock", durable, durable)))
    semaphore = Semaphore(durable, namespace.name, "kept")
    for name in ("one", "two"):
        namespace.create(pod(name, opted_in("kept", 3, 6)))
    eventually(lambda: semaphore.confirmed() == 2, "both sidecars run")
    before = semaphore.leases
    tokens = {permit: semaphore.holder(permit)["token"] for permit in before}

    (durable.kill if crash else durable.stop)()
    refused = namespace.try_create(pod("refused", opted_in("kept", 3, 6)))
    assert refused.status == 503, refused.body
    durable.start()

    semaphore = Semaphore(durable, namespace.name, "kept")
    assert semaphore.length == 3
    assert set(semaphore.leases) == set(before)
    assert {permit: semaphore.holder(permit)["token"] for permit in before} == tokens
    third = namespace.create(pod("three", opted_in("kept", 3, 6)))
    assert int(semaphore.holder(permit_of(third))["token"]) > max(map(int, tokens.values()))
    assert namespace.try_create(pod("four", opted_in("kept", 3, 6))).status == 403
    eventually(
        lambda: all(semaphore.leases[permit] > end + 2 for permit, end in before.items()), "the sidecars renew again"
    )
    assert set(semaphore.leases) == {*before, permit_of(third)}


def settled(store: RedisServer) -> None:
    """Return once a store that went on has worked off all that was sent to it meanwhile."""
    for _ in range(5):
        client_of(store).ping()


@pytest.mark.parametrize("lock_mode", ["redlock", "etcd"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "first-use"])
def test_a_store_that_hangs_fails_admissions_in_time_and_is_left_with_nothing_half_taken(
    namespace: Namespace,
    durable: RedisServer,
    lock_etcd: EtcdServer,
    new_webhook: Callable[..., WebhookProcess],
    registration: Registration,
    lock_mode: str,
    known: bool,
) -> None:
    locks = lock_etcd if lock_mode == "etcd" else durable
    webhook = new_webhook(*flags(lock_mode, durable, locks))
    registration.use(webhook, timeoutSeconds=2)
    semaphore = Semaphore(durable, namespace.name, "hang")
    held = [permit_of(namespace.create(pod("before", opted_in("hang", 9, 600))))] if known else []
    durable.pause()
    try:
        started = time.monotonic()
        through_the_api_server = namespace.try_create(pod("refused", opted_in("hang", 9, 600)))
        assert time.monotonic() - started < 2.5
        assert through_the_api_server.status == 503, through_the_api_server.body
        assert "no answer in time" in through_the_api_server.message

        bodies = [review(pod(f"direct-{number}", opted_in("hang", 9, 600)), namespace.name) for number in range(8)]
        answers = together([lambda body=body: admit(webhook, body, "1s") for body in bodies])  # type: ignore[misc]
        assert {answer["status"]["code"] for answer in answers} == {503}
        assert webhook.get(webhook.probe_port, "/healthz")[0] == 200
    finally:
        durable.resume()

    settled(durable)
    eventually(lambda: sorted(semaphore.leases) == held, "only what was held before is held")
    after = namespace.create(pod("after", opted_in("hang", 9, 600)))
    assert sorted(semaphore.leases) == sorted([*held, permit_of(after)])
    assert semaphore.length == 9
    webhook.process.terminate()  # what it gives back in the background is given back by now
    assert webhook.process.exit_code == 0
    assert sorted(semaphore.leases) == sorted([*held, permit_of(after)])


@pytest.mark.parametrize("locks", ["redlock", "etcd"], indirect=True)
def test_without_its_lock_a_key_that_exists_goes_on_and_a_new_one_is_refused(
    namespace: Namespace,
    durable: RedisServer,
    locks: list[RedisServer] | list[EtcdServer],
    new_webhook: Callable[..., WebhookProcess],
    registration: Registration,
) -> None:
    webhook = new_webhook(*lock_flags(locks, durable))
    registration.use(webhook, timeoutSeconds=2)
    existing, fresh = (Semaphore(durable, namespace.name, key) for key in ("existing", "fresh"))
    namespace.create(pod("one", opted_in("existing", 3, 600)))
    for node in locks[:2]:  # a majority
        node.kill()

    refused = namespace.try_create(pod("refused", opted_in("fresh", 3, 600)))

    assert refused.status == 503, refused.body
    assert namespace.try_create(pod("resized", opted_in("existing", 4, 600))).status == 503
    namespace.create(pod("two", opted_in("existing", 3, 600)))
    assert (existing.length, existing.held) == (3, 2)
    assert (fresh.length, fresh.held) == (0, 0)

    for node in locks[:2]:
        node.start()
    eventually(lambda: namespace.try_create(pod("later", opted_in("fresh", 3, 600))).status == 201, "it is back")
    assert (fresh.length, fresh.held) == (3, 1)


@pytest.mark.parametrize("locks", ["redlock", "etcd"], indirect=True)
def test_a_lock_that_hangs_fails_the_first_use_of_a_key_in_time(
    durable: RedisServer,
    locks: list[RedisServer] | list[EtcdServer],
    new_webhook: Callable[..., WebhookProcess],
) -> None:
    webhook = new_webhook(*lock_flags(locks, durable))
    with Caller(webhook.port, webhook.client_context()) as caller:

        def ask(key: str) -> Object:
            return caller.admit(review(pod("one", opted_in(key, 3, 600)), "team"), "2s")

        assert ask("existing")["allowed"]
        for node in locks[:2]:
            node.pause()
        try:
            started = time.monotonic()
            assert ask("fresh")["status"]["code"] == 503
            assert time.monotonic() - started < 2.5
            assert ask("existing")["allowed"]
        finally:
            for node in locks[:2]:
                node.resume()
