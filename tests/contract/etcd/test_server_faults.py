"""The etcd store over a server that is killed, restored from an older copy, compacted or full."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Client, Put, Range, Watch
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, Outcome
from at_least_semaphore_pod_hook.stores.etcd import listening
from devcluster.stores import EtcdServer
from tests.contract.etcd.stores import create, wish
from tests.contract.lock_backends import address
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.etcd.stores import Opener


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
