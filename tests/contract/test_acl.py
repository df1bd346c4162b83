"""The rights in docs/security.md are all that store and sidecar need."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore
from tests.sidecar_harness import Server, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sidecar_harness import Process

SECURITY = Path(__file__).resolve().parents[2] / "docs/security.md"
KEY = SemaphoreKey("ns", "key")
PASSWORD = "s3cret"


def let_in(server: Server) -> None:
    """Make the user that the document describes."""
    found = re.search(r"ACL SETUSER semaphores on >PASSWORD ([^`]+)```", SECURITY.read_text())
    assert found
    client: Any = server.client
    client.execute_command("ACL", "SETUSER", "semaphores", "on", f">{PASSWORD}", *found[1].split())


async def test_every_operation_of_the_store(server: Server) -> None:
    let_in(server)
    store = RedisStore(Address("127.0.0.1", server.port, username="semaphores", password=PASSWORD))
    changes = store.changes()
    try:
        step = await store.begin(KEY, Fence("redlock", 0))
        await store.set_length(KEY, 1, step.fence)
        wish = AcquireRequest(KEY, 1, 60, "a", "identity", owner="Job/b")
        heard = asyncio.ensure_future(anext(changes))
        async with asyncio.timeout(5):
            while not heard.done():
                assert (await store.acquire(wish)).outcome is Outcome.GRANTED
                assert (await store.acquire(wish._replace(permit="b", identity="b"))).outcome is Outcome.FULL
                assert await store.renew(KEY, "a", "pod") == 60_000
                assert await store.keep(KEY, "a", "pod", "uid") == 60_000
                assert (await store.state(KEY)).denied == ("Job/b",)
                assert [key async for key in store.semaphores()] == [KEY]
                assert await store.release(KEY, "a", "pod", ended=True)
                assert await store.renew(KEY, "a", "pod") == -1
                await asyncio.sleep(0.01)
        assert heard.result() == KEY
        await store.forget_denied(KEY, "Job/b")
        assert await store.reclaim(KEY) == 0
    finally:
        await changes.aclose()  # type: ignore[attr-defined]
        await store.close()


def test_a_sidecar(server: Server, new_sidecar: Callable[..., Process]) -> None:
    let_in(server)
    server.acquire(lease_ms=900)
    sidecar = new_sidecar(f"redis://semaphores:{PASSWORD}@{server.address}")
    until(server.confirmed)
    before = server.lease_end()
    until(lambda: server.lease_end() > before)
    assert sidecar.end()[0] == 0
    assert [line["level"] for line in sidecar.lines()] == ["info", "info"]
