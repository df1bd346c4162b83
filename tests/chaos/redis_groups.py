"""Stores of several Redis servers: a primary with replicas and Sentinels, a Redis Cluster.

All that any of them says to another goes through links. A server announces its peers' link, by which replicas and
Sentinels come to it. Each client has links of its own to every server, and what servers and Sentinels say of where
others are is rewritten on them. So each of them records whose calls go by it, and each can be troubled by itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import redis

from devcluster.polling import until
from devcluster.stores import RedisServer
from devcluster.topologies import SERVICE, RedisCluster, SentinelGroup, client
from tests.chaos.history import Recorder
from tests.chaos.linked import LinkedGroup
from tests.chaos.proxy import NONE, Loop, Tap, Trouble
from tests.chaos.tap import RespTap
from tests.chaos.topology import Held, held_in_redis

_HEAL_SECONDS = 15.0
_PRIMARY_SHARE = 0.7
_place = re.compile(rb"(127\.0\.0\.1(?:\r\n:|\r\n\$5\r\n|:| ))(\d{5})(?!\d)")
"""Host and port in CLUSTER SLOTS, in what a Sentinel names, in MOVED and ASK, and in a Sentinel's message."""


class _OfRedis(LinkedGroup):
    locks = False
    group: Any

    def __init__(self, loop: Loop, wait_replicas: int = 0) -> None:
        super().__init__(loop)
        self._wait_replicas = wait_replicas

    def stops(self, data: bytes) -> bool:
        """Say whether it is a client that speaks, which has links of its own."""
        return b"EVAL" in data

    @property
    def ports(self) -> list[int]:
        return [server.port for server in self.group.servers]

    def rewritten(self, links: Mapping[int, int]) -> Callable[[bytes], bytes]:
        return partial(_place.sub, partial(self._named, links))

    def _named(self, links: Mapping[int, int], found: re.Match[bytes]) -> bytes:
        ports = {reached: links[port] for port, reached in self.group.reached.items() if port in links}
        port = int(found[2])
        return found[1] + str(ports.get(port, port)).encode()

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap]:
        return lambda: RespTap(recorder, process, self._wait_replicas)


class Sentinel(_OfRedis):
    """A primary, two replicas, three Sentinels.

    Args:
        directory: Their data.
        loop: Where links between them run.
        wait_replicas: How many replicas must have a grant before it counts.
    """

    group: SentinelGroup

    def __init__(self, directory: Path, loop: Loop, wait_replicas: int) -> None:
        super().__init__(loop, wait_replicas)
        self.name = f"sentinel/{wait_replicas}"
        self.group = SentinelGroup(directory, down_after_ms=700, advertised=self.link)

    @property
    def ports(self) -> list[int]:
        return [*(sentinel.port for sentinel in self.group.sentinels), *super().ports]

    def flags(self, addresses: Sequence[str]) -> list[str]:
        url = self.group.url
        for sentinel, address in zip(self.group.sentinels, addresses, strict=False):
            url = url.replace(sentinel.address, address)
        return [f"--queue-url={url}{f'?wait-replicas={self._wait_replicas}' if self._wait_replicas else ''}"]

    def struck(self, rng: random.Random) -> int:
        """Draw one of `ports`: most often the primary's."""
        return self.group.primary().port if rng.random() < _PRIMARY_SHARE else rng.choice(self.ports)

    def leading(self, rng: random.Random) -> RedisServer:
        """Return the server that others follow."""
        return self.group.primary()

    def isolate(self, server: RedisServer) -> None:
        """Cut a server off from the others and from the Sentinels; its clients still reach it."""
        self.peers[server.port].trouble(Trouble(refused=True))

    def rejoin(self, server: RedisServer) -> None:
        """Let it be reached by the others again."""
        self.peers[server.port].trouble(NONE)

    def settle(self) -> None:
        """Wait until Sentinels are content with a primary, and have whoever else takes itself for one follow it."""
        until(self._calm, "the Sentinels are content", _HEAL_SECONDS)
        primary = self.group.primary()
        for server in self.group.servers:
            with self.group.client(server) as asked:
                if server is not primary and asked.execute_command("ROLE")[0] == "master":
                    self.follow(server)
        self.whole()

    def _calm(self) -> bool:
        for sentinel in self.group.sentinels:
            with client(sentinel.port) as asked:
                if asked.sentinel_master(SERVICE)["flags"] != "master":
                    return False
        return True

    def held(self) -> Held:
        with self.group.client(self.group.primary()) as asked:
            return held_in_redis([asked])

    def follow(self, server: RedisServer) -> None:
        """Have a server follow the primary."""
        with self.group.client(server) as asked:
            asked.execute_command("REPLICAOF", "127.0.0.1", self.group.reached[self.group.primary().port])

    def whole(self) -> None:
        """Wait until one is the primary, and the others follow it."""

        def follow() -> bool:
            roles = []
            for server in self.group.servers:
                try:
                    with self.group.client(server) as asked:
                        roles.append(asked.execute_command("ROLE"))
                except (redis.exceptions.RedisError, OSError):
                    return False
            primary = self.group.reached[self.group.primary().port]
            following = [role for role in roles if role[0] == "slave" and int(role[2]) == primary]
            return len(following) == len(roles) - 1 and all(role[3] == "connected" for role in following)

        until(follow, "replicas follow the primary", _HEAL_SECONDS)


class Cluster(_OfRedis):
    """Three masters with a replica each; what nodes say to each other on their bus goes by no link.

    Args:
        directory: Their data.
        loop: Where links between them run.
    """

    name = "cluster"
    group: RedisCluster

    def __init__(self, directory: Path, loop: Loop) -> None:
        super().__init__(loop)
        self.group = RedisCluster(directory, replicas=1, advertised=self.link)

    def flags(self, addresses: Sequence[str]) -> list[str]:
        return [f"--queue-url=redis+cluster://{','.join(addresses)}"]

    def struck(self, rng: random.Random) -> int:
        """Draw one of `ports`: a master's."""
        return self.leading(rng).port

    def leading(self, rng: random.Random) -> RedisServer:
        """Draw a server that others follow."""
        return rng.choice(self.masters())

    def masters(self) -> list[RedisServer]:
        """Return the servers that are masters in their own eyes."""
        found = []
        for server in self.group.servers:
            try:
                with client(server.port) as asked:
                    if asked.execute_command("ROLE")[0] == "master":
                        found.append(server)
            except (redis.exceptions.RedisError, OSError):
                continue
        return found

    def held(self) -> Held:
        with ExitStack() as stack:
            return held_in_redis([stack.enter_context(client(server.port)) for server in self.masters()])

    def whole(self) -> None:
        """Wait until there are three masters, and every server says that all is well."""

        def well() -> bool:
            if len(self.masters()) != 3:
                return False
            states = []
            for server in self.group.servers:
                try:
                    with client(server.port) as asked:
                        states.append(asked.execute_command("CLUSTER", "INFO"))
                except (redis.exceptions.RedisError, OSError):
                    return False
            return all(_state(state) == "ok" for state in states)

        until(well, "the cluster is whole", _HEAL_SECONDS)


def _state(answer: Any) -> str:
    if isinstance(answer, dict):
        return str(answer["cluster_state"])
    return str(answer).partition("cluster_state:")[2].split()[0]
