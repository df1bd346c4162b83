"""The primary that Sentinels name.

A failover raises the configuration's epoch (Redis documentation, "Sentinel, Configuration propagation"): of several
answers the one with the highest epoch is the newest, whatever a Sentinel that was cut off still believes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.redis_client import Asker, connect
from at_least_semaphore_pod_hook.stores.redis.advice import Advisor
from at_least_semaphore_pod_hook.stores.redis.topology import LOOK_SECONDS, SLOTS, Place, Topology, answers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl

SWITCHED = "+switch-master"


class Sentinels:
    """A `Lookup` among Sentinels."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._askers = [Asker(address, LOOK_SECONDS) for address in url.addresses]
        self._advise = Advisor(str(url), fails_over=True, wait_replicas=url.wait_replicas)
        self._newest = -1
        self._switched = asyncio.Event()
        self._listening: list[asyncio.Task[NoReturn]] = []

    def slot(self, key: str) -> int:  # noqa: ARG002 - one server has all keys
        """See `Lookup.slot`."""
        return 0

    def learned(self, info: Mapping[bytes, bytes]) -> None:
        """Refuse a connection to what is not the primary."""
        if info.get(b"role") != b"master":
            raise ReadOnlyError("the Sentinels call it the primary, and it is not")
        self._advise(info)

    async def look(self) -> Topology:
        """See `Lookup.look`."""
        given, failures = await answers([self._ask(asker) for asker in self._askers], len(self._askers) // 2 + 1)
        if not given:
            raise StoreUnavailableError(f"no Sentinel names the primary of {self._url.service}: {'; '.join(failures)}")
        epoch, place = max(given)
        # Sentinels that were set up anew count from 0 again; those that were only cut off are not alone.
        if epoch < self._newest and len(given) < len(self._askers):
            raise StoreUnavailableError(f"the Sentinels that answer do not know the primary of {self._url.service} yet")
        self._newest = epoch
        return Topology.of(epoch, [(0, SLOTS - 1, place)])

    async def news(self) -> None:
        """See `Lookup.news`."""
        if not self._listening:
            self._listening = [asyncio.create_task(self._listen(address)) for address in self._url.addresses]
        with suppress(TimeoutError):
            await asyncio.wait_for(self._switched.wait(), LOOK_SECONDS)
        self._switched.clear()

    async def close(self) -> None:
        """See `Lookup.close`."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        for asker in self._askers:
            await asker.close()

    async def _ask(self, asker: Asker) -> tuple[int, Place]:
        service = self._url.service
        named, known = await asker.ask(
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)
        )
        if isinstance(named, ResponseError):
            raise UnavailableError(f"{asker.address}: {named}")
        if named is None:
            raise UnavailableError(f"{asker.address}: it knows no {service}")
        host, port = named
        return _epoch(known), (host.decode(), int(port))

    async def _listen(self, address: Address) -> NoReturn:
        redis = connect(address, timeout=LOOK_SECONDS, max_connections=1, bounded_by_caller=True, protocol=2)
        try:
            while True:
                with suppress(RedisError, OSError, TimeoutError):
                    async with redis.pubsub(ignore_subscribe_messages=True) as listener:
                        await listener.subscribe(SWITCHED)
                        async for _ in listener.listen():
                            self._switched.set()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await redis.aclose()


def _epoch(known: Any) -> int:
    """Return the configuration's epoch; 0 where one is not told it: its user may lack the right."""
    if isinstance(known, ResponseError):
        return 0
    return int(dict(zip(known[::2], known[1::2], strict=True)).get(b"config-epoch", 0))
