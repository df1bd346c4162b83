"""Stores of several servers: three members of etcd, a primary with replicas and Sentinels, a Redis Cluster."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis

from devcluster.errors import DevClusterError
from devcluster.polling import until
from devcluster.stores import RedisServer
from devcluster.topologies import RedisCluster, SentinelGroup, client
from devcluster.topologies_etcd import EtcdGroup, EtcdMember
from tests.chaos.history import Recorder
from tests.chaos.proxy import NONE, Link, Loop, Tap, Trouble
from tests.chaos.topology import Held, held_in_redis, start_again

_HEAL_SECONDS = 15.0
_ELECTION = ("--heartbeat-interval=50", "--election-timeout=500")
"""Longer than a busy machine keeps a member waiting."""
_from = re.compile(rb"x-server-from: ([0-9a-f]+)", re.IGNORECASE)


class _OfGroup:
    """What the callers of these stores do is recorded by themselves: they go to several servers, whatever is asked."""

    group: Any

    @property
    def ports(self) -> list[int]:
        return []

    def start(self) -> None:
        start_again(self._begin)

    def _begin(self) -> None:
        try:
            self.group.start()
        except DevClusterError:
            self.close()
            raise

    def close(self) -> None:
        self.group.stop()

    def tap(self, recorder: Recorder, process: str) -> Callable[[], Tap] | None:
        return None

    def note(self) -> None:
        """Nothing is lost of what they have written."""


class _PeerTap:
    """Ends the connections of a member that is cut off from its peers."""

    def __init__(self, group: Etcd) -> None:
        self._group = group

    def asked(self, data: bytes) -> None:
        found = _from.search(data)
        if found and int(found[1], 16) == self._group.cut_off:
            raise ConnectionAbortedError

    def forwarded(self) -> None:
        pass

    def answered(self, data: bytes) -> None:
        pass

    def ended(self) -> None:
        pass


class Etcd(_OfGroup):
    """Three members, in which the lock is, too.

    Args:
        directory: Their data.
        loop: Where links between them run.
        peers: Whether there are such links.
    """

    name = "etcd"
    locks = True
    group: EtcdGroup

    def __init__(self, directory: Path, loop: Loop, *, peers: bool) -> None:
        self.cut_off = 0
        self._loop = loop
        self._peers: dict[int, Link] = {}
        self.group = EtcdGroup(directory, arguments=_ELECTION, advertised=self._link if peers else None)

    def _link(self, port: int) -> int:
        self._peers[port] = Link(self._loop, [port], tap=lambda: _PeerTap(self))
        return self._peers[port].port

    def start(self) -> None:
        start_again(self._begin)

    def _begin(self) -> None:
        try:
            self.group.start()
        except DevClusterError:
            self.group.close()
            raise

    def close(self) -> None:
        self.group.close()
        for link in self._peers.values():
            link.close()

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self.group.members]

    def flags(self, addresses: Sequence[str]) -> list[str]:
        members = ",".join(addresses)
        return ["--lock-mode=etcd", f"--etcd-addresses={members}", f"--queue-url=etcd://{members}"]

    def held(self) -> Held:
        held = Held({}, {})
        for name, _ in self._range("inflight/"):
            key, _, permit = name.split("/", 2)[2].rpartition("/")
            held.permits.setdefault(key, set()).add(permit)
        for name, value in self._range("queue/"):
            if value:  # what is empty is a mark beside it
                held.lengths[name.split("/", 2)[2]] = int(json.loads(value)["length"])
        return held

    def _range(self, prefix: str) -> list[tuple[str, bytes]]:
        # What follows a slash among the characters is a zero.
        first, end = (base64.b64encode(text.encode()).decode() for text in (prefix, f"{prefix[:-1]}0"))
        answer = self.post("/v3/kv/range", {"key": first, "range_end": end})
        return [
            (base64.b64decode(kv["key"]).decode(), base64.b64decode(kv.get("value", "")))
            for kv in answer.get("kvs", ())
        ]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask whichever member answers."""

        def asked() -> dict[str, Any] | None:
            for member in self.group.members:
                try:
                    answer = member.post(path, body)
                except (OSError, ValueError):
                    continue
                if "header" in answer:
                    return answer
            return None

        answer: dict[str, Any] = until(asked, f"a member answers {path}", _HEAL_SECONDS)
        return answer

    def leader(self) -> EtcdMember:
        """Return the member that leads, once one does."""
        found: EtcdMember = until(self._leader, "a member leads", _HEAL_SECONDS)
        return found

    def _leader(self) -> EtcdMember | None:
        for member in self.group.members:
            try:
                status = member.post("/v3/maintenance/status", {})
            except (OSError, ValueError):
                continue
            if status.get("leader", "0") == status.get("header", {}).get("member_id", "none"):
                return member
        return None

    def isolate(self, member: EtcdMember) -> None:
        """Cut a member off from its peers; clients still reach it."""
        status = member.post("/v3/maintenance/status", {})
        self.cut_off = int(status["header"]["member_id"])
        for port, link in self._peers.items():
            if port == member.peer_port:
                link.trouble(Trouble(refused=True))
            else:
                link.reset()

    def rejoin(self) -> None:
        """Let it be reached again."""
        self.cut_off = 0
        for link in self._peers.values():
            link.trouble(NONE)

    def restart(self, member: EtcdMember) -> None:
        """Start what was ended."""
        start_again(lambda: self.group.start(member))


class Sentinel(_OfGroup):
    """A primary, two replicas, three Sentinels.

    Args:
        directory: Their data.
        wait_replicas: How many replicas must have a grant before it counts.
    """

    locks = False
    group: SentinelGroup

    def __init__(self, directory: Path, wait_replicas: int) -> None:
        self.name = f"sentinel/{wait_replicas}"
        self.group = SentinelGroup(directory, down_after_ms=700)
        self._wait_replicas = wait_replicas

    def flags(self, addresses: Sequence[str]) -> list[str]:
        option = f"?wait-replicas={self._wait_replicas}" if self._wait_replicas else ""
        return [f"--queue-url={self.group.url}{option}"]

    def held(self) -> Held:
        with self.group.client(self.group.primary()) as asked:
            return held_in_redis([asked])

    def follow(self, server: RedisServer) -> None:
        """Have a server follow the primary."""
        with self.group.client(server) as asked:
            asked.execute_command("REPLICAOF", "127.0.0.1", self.group.primary().port)

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
            primary = self.group.primary().port
            following = [role for role in roles if role[0] == "slave" and int(role[2]) == primary]
            return len(following) == len(roles) - 1 and all(role[3] == "connected" for role in following)

        until(follow, "replicas follow the primary", _HEAL_SECONDS)


class Cluster(_OfGroup):
    """Three masters with a replica each."""

    name = "cluster"
    locks = False
    group: RedisCluster

    def __init__(self, directory: Path) -> None:
        self.group = RedisCluster(directory, replicas=1)

    def flags(self, addresses: Sequence[str]) -> list[str]:
        return [f"--queue-url={self.group.url}"]

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
