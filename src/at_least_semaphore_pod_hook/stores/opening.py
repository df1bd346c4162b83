"""From a store's URL to the store. Only the client that the URL names is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.addresses import StoreUrl
    from at_least_semaphore_pod_hook.semaphore.contracts import Store


def _redis(url: StoreUrl) -> Store:
    from at_least_semaphore_pod_hook.stores.redis.store import open_redis_store  # noqa: PLC0415

    return open_redis_store(url.server, wait_replicas=url.wait_replicas)


def _sentinel(url: StoreUrl) -> Store:
    from at_least_semaphore_pod_hook.stores.redis.router import Router  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.redis.sentinel import Sentinels  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.redis.store import TIMEOUT_SECONDS, RedisStore  # noqa: PLC0415

    return RedisStore(Router(Sentinels(url), url, TIMEOUT_SECONDS))


def _cluster(url: StoreUrl) -> Store:
    from at_least_semaphore_pod_hook.stores.redis.cluster import Nodes  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.redis.router import Router  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.redis.store import TIMEOUT_SECONDS, RedisStore  # noqa: PLC0415

    return RedisStore(Router(Nodes(url), url, TIMEOUT_SECONDS))


def _etcd(url: StoreUrl) -> Store:
    from at_least_semaphore_pod_hook.stores.etcd.store import open_etcd_store  # noqa: PLC0415

    return open_etcd_store(url.addresses)


def _memory(_url: StoreUrl) -> Store:
    from at_least_semaphore_pod_hook.stores.memory import MemoryStore  # noqa: PLC0415

    return MemoryStore()


_OPENERS: dict[str, Callable[[StoreUrl], Store]] = {
    "redis": _redis,
    "sentinel": _sentinel,
    "cluster": _cluster,
    "etcd": _etcd,
    "memory": _memory,
}
"""How each kind of store is opened, by `StoreUrl.kind`."""


def open_store(url: StoreUrl) -> Store:
    """Open the store that a URL names; it connects when it is first used.

    Raises:
        InvalidInputError: There is no such kind of store.
    """
    if url.kind not in _OPENERS:
        raise InvalidInputError(f"--queue-url: there is no store of kind {url.kind} yet")
    return _OPENERS[url.kind](url)
