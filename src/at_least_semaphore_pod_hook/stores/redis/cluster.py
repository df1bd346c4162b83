"""Which master of a Redis Cluster has which slots (Redis documentation, "Redis cluster specification")."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot
from redis.exceptions import ResponseError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.redis_client import Asker
from at_least_semaphore_pod_hook.stores.redis.advice import Advisor
from at_least_semaphore_pod_hook.stores.redis.topology import LOOK_SECONDS, Place, Topology, answers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from at_least_semaphore_pod_hook.addresses import StoreUrl

ASKED = 3
"""How many nodes are asked at a time: one of them may be cut off, or dead."""


class Nodes:
    """A `Lookup` among the nodes of a cluster: those of the URL, and those that they have told of."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._seeds = [(address.host, address.port) for address in url.addresses]
        self._places: set[Place] = set(self._seeds)
        self._askers: dict[Place, Asker] = {}
        self._advise = Advisor(str(url), fails_over=True, wait_replicas=url.wait_replicas)

    def slot(self, key: str) -> int:
        """See `Lookup.slot`."""
        return int(key_slot(key.encode()))

    def learned(self, info: Mapping[bytes, bytes]) -> None:
        """See `Lookup.learned`."""
        self._advise(info)

    async def look(self) -> Topology:
        """See `Lookup.look`. The first nodes that are asked may all be down: then others are."""
        failures: list[str] = []
        untried = random.sample(sorted(self._places), len(self._places))
        while untried:
            asked, untried = untried[:ASKED], untried[ASKED:]
            given, failed = await answers([self._ask(place) for place in asked], 1)
            failures += failed
            if given:
                _, topology, places = max(given, key=lambda answer: (answer[0], answer[1].epoch))
                await self._remember(places)
                return topology
        raise StoreUnavailableError(f"no node of the cluster tells who has which slots: {'; '.join(failures)}")

    async def news(self) -> None:
        """See `Lookup.news`."""
        await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """See `Lookup.close`."""
        for asker in self._askers.values():
            await asker.close()

    async def _remember(self, places: set[Place]) -> None:
        self._places = places | set(self._seeds)
        for place in self._askers.keys() - self._places:
            await self._askers.pop(place).close()

    async def _ask(self, place: Place) -> tuple[bool, Topology, set[Place]]:
        """Return whether the node sees the cluster whole, who has which slots, and all nodes that it names."""
        asker = self._askers.get(place)
        if asker is None:
            asker = Asker(self._url.server._replace(host=place[0], port=place[1]), LOOK_SECONDS)
            self._askers[place] = asker
        info, slots = await asker.ask(("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
        if isinstance(slots, ResponseError):
            raise UnavailableError(f"{asker.address}: {slots}")
        if not slots:
            raise UnavailableError(f"{asker.address}: it has no slots")
        fields = {} if isinstance(info, ResponseError) else _fields(bytes(info))
        whole = fields.get(b"cluster_state", b"ok") == b"ok"
        ranges, places = read_slots(slots, place[0])
        return whole, Topology.of(int(fields.get(b"cluster_current_epoch", b"0")), ranges), places


def _fields(info: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in info.splitlines())
    return {name: value for name, _, value in lines}


def read_slots(slots: list[Any], asked: str) -> tuple[list[tuple[int, int, Place]], set[Place]]:
    """Read the reply to CLUSTER SLOTS: who has which slots, and every node that it names.

    A node without a host is at the host that was `asked`; one called ? is at an unknown one.
    """
    ranges: list[tuple[int, int, Place]] = []
    places: set[Place] = set()
    for first, last, *nodes in slots:
        for index, (host, port, *_) in enumerate(nodes):
            if host == b"?":
                continue
            place = ((host or asked.encode()).decode(), int(port))
            places.add(place)
            if index == 0:
                ranges.append((first, last, place))
    return ranges, places
