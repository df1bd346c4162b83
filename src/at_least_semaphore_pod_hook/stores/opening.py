"""From a store's URL to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import InvalidInputError

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import StoreUrl
    from at_least_semaphore_pod_hook.semaphore.contracts import Store


def open_store(url: StoreUrl) -> Store:
    """Open the store that a URL names; it connects when it is first used. Only that kind's client is loaded.

    Raises:
        InvalidInputError: There is no such kind of store.
    """
    if url.kind == "redis":
        from at_least_semaphore_pod_hook.stores.redis.store import RedisStore  # noqa: PLC0415

        return RedisStore(url.server)
    if url.kind == "memory":
        from at_least_semaphore_pod_hook.stores.memory import MemoryStore  # noqa: PLC0415

        return MemoryStore()
    raise InvalidInputError(f"--queue-url: there is no store of kind {url.kind} yet")
