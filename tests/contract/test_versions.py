"""What the data is marked with, in every store; and what a program does whose data is of a later version."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import DataVersionError
from at_least_semaphore_pod_hook.semaphore.model import Outcome
from at_least_semaphore_pod_hook.semaphore.versions import DATA_VERSION, VersionedStore
from at_least_semaphore_pod_hook.stores.redis.store import MARK_KEY, open_redis_store
from devcluster.webhook import WebhookProcess
from tests.contract.wishes import KEY, create, wish
from tests.sidecar_harness import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.subjects import Subject
    from tests.sidecar_harness import Server

LATER = DATA_VERSION + 1


async def test_a_new_store_has_no_mark_and_keeps_the_latest_that_it_gets(subject: Subject) -> None:
    one, other = subject.stores
    assert await one.version() == 0
    assert max(await asyncio.gather(one.mark(3), other.mark(2), one.mark(3))) == 3
    assert [await one.version(), await other.version()] == [3, 3]
    assert await other.mark(1) == 3
    assert await other.mark(4) == 4
    assert await one.version() == 4


async def test_the_mark_is_no_semaphore(subject: Subject) -> None:
    await subject.store.mark(DATA_VERSION)
    assert [key async for key in subject.store.semaphores()] == []


async def test_a_first_use_marks_the_data_and_a_look_does_not(subject: Subject) -> None:
    looking = VersionedStore(subject.store, marks=False)
    assert (await looking.store.state(KEY)).length == 0
    assert await subject.store.version() == 0
    await VersionedStore(subject.store).store.state(KEY)
    assert await subject.store.version() == DATA_VERSION


async def test_data_without_a_mark_is_understood(subject: Subject) -> None:
    await create(subject)
    assert (await subject.store.acquire(wish("a"))).outcome is Outcome.GRANTED
    store = VersionedStore(subject.stores[1]).store
    assert [holder.permit for holder in (await store.state(KEY)).holders] == ["a"]
    assert [key async for key in store.semaphores()] == [KEY]


async def test_data_of_a_later_version_is_left_as_it_is(subject: Subject) -> None:
    await create(subject)
    versioned = VersionedStore(subject.stores[1])
    await versioned.check()
    await subject.store.mark(LATER)
    before = subject.dump()
    with pytest.raises(DataVersionError, match=f"is of version {LATER}, and this program knows"):
        await versioned.check()
    for call in (versioned.store.acquire(wish("a")), versioned.store.release(KEY, "a"), versioned.store.state(KEY)):
        with pytest.raises(DataVersionError):
            await call
    with pytest.raises(DataVersionError):
        _ = [key async for key in versioned.store.semaphores()]
    assert subject.dump() == before


async def test_a_mark_that_is_no_version_is_refused_and_kept(server: Server) -> None:
    server.client.set(MARK_KEY, "none")
    store = open_redis_store(Address("127.0.0.1", server.port))
    try:
        for call in (store.version, lambda: store.mark(1)):
            with pytest.raises(DataVersionError, match="marked with 'none', which is no version"):
                await call()
    finally:
        await store.close()
    assert server.client.get(MARK_KEY) == "none"


def refused(webhook: WebhookProcess) -> bool:
    return f"is of version {LATER}, and this program knows versions up to {DATA_VERSION}" in webhook.log()


def test_a_webhook_does_not_start_on_data_of_a_later_version(server: Server, tmp_path: Path) -> None:
    server.client.set(MARK_KEY, LATER)
    webhook = WebhookProcess(tmp_path, flags=[f"--queue-redis-address={server.address}"])
    webhook.process.start()
    try:
        until(lambda: webhook.process.exit_code is not None, 20)
        assert webhook.process.exit_code == 1
        assert refused(webhook)
        assert "webhook serves" not in webhook.log()
        assert server.client.keys() == [MARK_KEY]
    finally:
        webhook.process.kill()


def test_a_webhook_marks_the_store_and_ends_when_another_raises_the_mark(server: Server, tmp_path: Path) -> None:
    with WebhookProcess(tmp_path, flags=[f"--queue-redis-address={server.address}"]) as webhook:
        assert server.client.get(MARK_KEY) == str(DATA_VERSION)
        server.client.set(MARK_KEY, LATER)
        until(lambda: webhook.process.exit_code is not None, 20)
        assert webhook.process.exit_code == 1
        assert refused(webhook)
    assert server.client.get(MARK_KEY) == str(LATER)
