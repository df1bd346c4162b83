"""Calls scripts at whichever server is in charge, and follows when that is another one.

What a server has refused was not done, so it may be sent elsewhere as often as time allows. A call whose answer was
lost may have been done: it is sent once more, since every script may be repeated, and then given up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing
from enum import Enum
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.redis_client import NotSentError
from at_least_semaphore_pod_hook.stores.redis.server import Server
from at_least_semaphore_pod_hook.stores.redis.topology import LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from at_least_semaphore_pod_hook.addresses import StoreUrl
    from at_least_semaphore_pod_hook.stores.redis.batcher import Script
    from at_least_semaphore_pod_hook.stores.redis.topology import Lookup, Place, Topology

logger = logging.getLogger(__name__)

FIRST_PAUSE, MAX_PAUSE = 0.02, 0.32


class Verdict(Enum):
    """What a failed call means for what comes next."""

    MOVED = "moved"
    ASK = "ask"
    REFUSED = "refused"
    LOST = "lost"
    FINAL = "final"


_VERDICTS: tuple[tuple[type[BaseException], Verdict], ...] = (
    (MovedError, Verdict.MOVED),
    (AskError, Verdict.ASK),
    (NotSentError, Verdict.REFUSED),
    (ReadOnlyError, Verdict.REFUSED),
    (BusyLoadingError, Verdict.REFUSED),
    (ClusterDownError, Verdict.REFUSED),
    (TryAgainError, Verdict.REFUSED),
    (AuthenticationError, Verdict.FINAL),
    (AuthorizationError, Verdict.FINAL),
    (RedisConnectionError, Verdict.LOST),
    (TimeoutError, Verdict.LOST),
)
"""The first that fits counts: some are special cases of later ones."""


def verdict(cause: BaseException | None) -> Verdict:
    """Say what the cause of a failed call means. Who is not let in at one server is not let in at others."""
    if isinstance(cause, NotSentError) and isinstance(cause.__cause__, (AuthenticationError, AuthorizationError)):
        return Verdict.FINAL
    return next((meaning for kind, meaning in _VERDICTS if isinstance(cause, kind)), Verdict.FINAL)


class Router:
    """A `Caller` over several servers.

    Args:
        lookup: Whom to ask who is in charge.
        url: The store, and how to talk to its servers.
        timeout: Seconds after which a call is given up that has no timeout of its own.
    """

    def __init__(self, lookup: Lookup, url: StoreUrl, timeout: float) -> None:
        self._lookup = lookup
        self._url = url
        self._timeout = timeout
        self._topology: Topology | None = None
        self._moved: dict[int, Place] = {}
        self._servers: dict[Place, Server] = {}
        self._looking: asyncio.Task[StoreUnavailableError | None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[None]] = set()

    async def call(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int], timeout: float | None = None
    ) -> Any:
        """See `Caller.call`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        slot = self._lookup.slot(keys[0])
        asking: Server | None = None
        lost = False
        pause = FIRST_PAUSE
        while True:
            server = asking or self._in_charge(slot) or await self._find(script, slot, deadline)
            left = deadline - loop.time()
            try:
                return await server.call(script, keys, args, left, asking=asking is not None)
            except StoreUnavailableError as failure:
                asking = None
                cause: Any = failure.__cause__
                meaning = verdict(cause)
                if meaning is Verdict.FINAL or (meaning is Verdict.LOST and lost) or loop.time() + pause >= deadline:
                    raise
                lost = lost or meaning is Verdict.LOST
            if meaning is Verdict.ASK:
                asking = self._server((cause.host or server.address.host, cause.port))
            elif meaning is Verdict.MOVED:
                self._moved[slot] = (cause.host or server.address.host, cause.port)
                self._look()
            else:
                await self._look_within(deadline)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    async def channels(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Caller.channels`. Any server of a cluster hears what is published at any other."""
        topology = await self._known()
        server = self._server(random.choice(sorted(topology.places)))  # noqa: S311 - spreads listeners
        async with aclosing(server.channels(pattern)) as channels:
            async for channel in channels:
                yield channel

    async def sorted_sets(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Caller.sorted_sets`."""
        topology = await self._known()
        try:
            for place in sorted(topology.places):
                async with aclosing(self._server(place).sorted_sets(pattern)) as names:
                    async for name in names:
                        yield name
        except StoreUnavailableError:
            self._look()
            raise

    async def close(self) -> None:
        """See `Caller.close`."""
        tasks = [task for task in (self._watching, self._looking) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._abandoned, return_exceptions=True)
        for server in self._servers.values():
            await server.close()
        await self._lookup.close()

    def _in_charge(self, slot: int) -> Server | None:
        place = self._moved.get(slot) or (self._topology.owner(slot) if self._topology else None)
        return self._server(place) if place else None

    async def _find(self, script: Script, slot: int, deadline: float) -> Server:
        failure = await self._look_within(deadline)
        server = self._in_charge(slot)
        if server is None:
            why = str(failure) if failure else f"nobody has slot {slot}"
            raise StoreUnavailableError(f"the store at {self._url} did not {script.name}: {why}")
        return server

    async def _known(self) -> Topology:
        if self._topology is None:
            failure = await self._look_within(asyncio.get_running_loop().time() + self._timeout)
            if self._topology is None:
                raise failure or StoreUnavailableError(f"the store at {self._url}: nobody is in charge")
        return self._topology

    def _server(self, place: Place) -> Server:
        server = self._servers.get(place)
        if server is None:
            server = self._servers[place] = Server(
                self._url.server._replace(host=place[0], port=place[1]),
                self._timeout,
                connect_timeout=LOOK_SECONDS,
                wait_replicas=self._url.wait_replicas,
                alone=False,
                learned=self._lookup.learned,
            )
        return server

    async def _look_within(self, deadline: float) -> StoreUnavailableError | None:
        """Look who is in charge; returns why that failed."""
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._look())
        except TimeoutError:
            return StoreUnavailableError("nobody said in time who is in charge")

    def _look(self) -> asyncio.Task[StoreUnavailableError | None]:
        """Look who is in charge, once for all who want to know."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_once())
        return self._looking

    async def _look_once(self) -> StoreUnavailableError | None:
        try:
            topology = await self._lookup.look()
        except StoreUnavailableError as failure:
            return failure
        before = self._topology.places if self._topology else None
        self._topology = topology
        self._moved.clear()
        if before is not None and before != topology.places:
            logger.info("other servers are in charge of the store", extra={"servers": _names(topology.places)})
        # Nobody may be told yet that its time is over: it answers, and what it grants is lost.
        for place in self._servers.keys() - topology.places:
            task = asyncio.create_task(self._servers.pop(place).abandon())
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
        return None

    async def _watch(self) -> None:
        while True:
            await self._lookup.news()
            await asyncio.shield(self._look())


def _names(places: frozenset[Place]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in sorted(places))
