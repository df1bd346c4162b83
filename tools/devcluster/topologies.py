"""Several Redis or Valkey servers that make up one store, on 127.0.0.1: with Sentinels, as a cluster, with TLS."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from devcluster.errors import DevClusterError
from devcluster.process import Process, free_port
from devcluster.stores import RedisServer, redis_binary

SERVICE = "semaphores"
SLOTS = 16_384
_READY_SECONDS = 20.0
_CLIENT_SECONDS = 2.0
_INTERNAL = "internal"
"""The user, and the password, by which servers and Sentinels know each other."""
_QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
_PASSWORD = "clients"  # noqa: S105 - of servers on the loopback interface
_USER = ("--requirepass", _PASSWORD, "--user", _INTERNAL, "on", f">{_INTERNAL}", "~*", "&*", "+@all")
_FOLLOW = ("--masteruser", _INTERNAL, "--masterauth", _INTERNAL)


def client(port: int, password: str | None = None) -> Any:
    """Return a client of one server, that neither retries nor waits for long; Any, as redis-py's types are none."""
    return redis.Redis(
        port=port,
        password=password,
        decode_responses=True,
        protocol=2,
        socket_timeout=_CLIENT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def until(condition: Callable[[], Any], what: str, timeout: float = _READY_SECONDS) -> Any:
    """Return what `condition` returns once it is true; a server that does not answer counts as not yet.

    DevClusterError where that takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = condition()
        except (redis.exceptions.RedisError, OSError):
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise DevClusterError(f"not {what} after {timeout:g} s")
        time.sleep(0.02)


class _Group:
    """Servers that are started together, and ended together.

    Args:
        advertised: Says at which port of 127.0.0.1 a server's port is reached, where something is in between: there the
            others go, and clients are sent there.
    """

    def __init__(self, advertised: Callable[[int], int] | None) -> None:
        self.servers: list[RedisServer] = []
        self.reached: dict[int, int] = {}
        self._advertised = advertised

    def _new_port(self) -> int:
        port = free_port()
        self.reached[port] = self._advertised(port) if self._advertised else port
        return port

    def server(self, port: int) -> RedisServer:
        """Return the server at a port, its own or the one at which it is reached."""
        return next(server for server in self.servers if port in (server.port, self.reached[server.port]))

    def start(self) -> None:
        """Start all and return once they work together."""
        raise NotImplementedError

    def stop(self) -> None:
        """End all as a crash would."""
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class SentinelGroup(_Group):
    """A primary, replicas, and three Sentinels that watch them.

    `url` is what `--queue-url` takes. A primary is ended by `kill`, frozen by `pause`, or, by `isolate`, cut off from
    replicas and Sentinels while its clients still reach it.

    Args:
        directory: Where servers and Sentinels keep their files.
        down_after_ms: After how many milliseconds without an answer a Sentinel calls a server down.
        replicas: How many replicas there are.
        prefer: Which server to run.
        arguments: Further options of the servers.
        advertised: Says at which port of 127.0.0.1 a server's port is reached, where something is in between.
    """

    def __init__(
        self,
        directory: Path,
        *,
        down_after_ms: int = 1000,
        replicas: int = 2,
        prefer: Literal["redis", "valkey"] = "redis",
        arguments: Sequence[str] = (),
        advertised: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(advertised)
        self._down_after_ms = down_after_ms
        options = (*_QUICK, *_USER, *_FOLLOW, *arguments)
        for number in range(1 + replicas):
            port = self._new_port()
            given = (*options, "--replica-announce-ip", "127.0.0.1")
            given += ("--replica-announce-port", str(self.reached[port]))
            if number:
                given += ("--replicaof", "127.0.0.1", str(self.reached[self.servers[0].port]))
            self.servers.append(RedisServer(directory / str(number), prefer=prefer, port=port, arguments=given))
        self.sentinels = [_Sentinel(directory / f"sentinel-{number}", prefer) for number in range(3)]
        self.url = (
            f"redis+sentinel://:{_PASSWORD}@{','.join(sentinel.address for sentinel in self.sentinels)}/{SERVICE}"
        )

    def start(self) -> None:
        """Start all and return once replicas follow, and Sentinels know of replicas and of each other."""
        for server in self.servers:
            server.process.start()
        for server in self.servers:
            server.process.wait_until(server.ready, _READY_SECONDS)
        first, *replicas = self.servers
        until(lambda: followers(first, _PASSWORD) == len(replicas), "replicated")
        for sentinel in self.sentinels:
            others = [other for other in self.sentinels if other is not sentinel]
            sentinel.start(self.reached[first.port], self._down_after_ms, others)
        for sentinel in self.sentinels:
            sentinel.wait(len(replicas), len(self.sentinels) - 1)

    def stop(self) -> None:
        """End all as a crash would."""
        for sentinel in self.sentinels:
            sentinel.process.kill()
        super().stop()

    @staticmethod
    def client(server: RedisServer) -> Any:
        """Return a client of one of the servers."""
        return client(server.port, _PASSWORD)

    def primary(self) -> RedisServer:
        """Return whom most of the Sentinels call the primary."""
        named = []
        for sentinel in self.sentinels:
            with client(sentinel.port) as asked:
                host_port = asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                named.append(int(host_port[1]))
        return self.server(max(named, key=named.count))

    def replicas(self) -> list[RedisServer]:
        """Return the servers that are not the primary."""
        primary = self.primary()
        return [server for server in self.servers if server is not primary]

    def wait_for_another(self, than: RedisServer, timeout: float = 15.0) -> RedisServer:
        """Return the primary once it is another one, and says so itself."""

        def switched() -> RedisServer | None:
            primary = self.primary()
            if primary is than:
                return None
            with self.client(primary) as asked:
                return primary if asked.execute_command("ROLE")[0] == "master" else None

        found: RedisServer = until(switched, "failed over", timeout)
        return found

    def isolate(self, server: RedisServer) -> None:
        """Cut a server off from the others and from the Sentinels, whose user it does not know any more.

        Its clients still reach it, and where it is the primary, it still believes so.
        """
        with self.client(server) as asked:
            asked.acl_setuser(_INTERNAL, enabled=False)
            asked.execute_command("CLIENT", "KILL", "USER", _INTERNAL)

    def rejoin(self, server: RedisServer) -> None:
        """Let a server be reached by the others again."""
        with self.client(server) as asked:
            asked.acl_setuser(_INTERNAL, enabled=True)


class _Sentinel:
    def __init__(self, directory: Path, prefer: Literal["redis", "valkey"]) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.id = secrets.token_hex(20)
        self._directory = directory
        kind, binary = redis_binary(prefer)
        argv = [str(binary), str(directory / "sentinel.conf"), "--sentinel"]
        self.process = Process(f"{kind}-sentinel", argv, directory / "sentinel.log")

    def start(self, primary: int, down_after_ms: int, others: Sequence[_Sentinel]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self._directory}",
            f"sentinel myid {self.id}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 3000",
            f"sentinel auth-user {SERVICE} {_INTERNAL}",
            f"sentinel auth-pass {SERVICE} {_INTERNAL}",
            # Else they need seconds to hear of each other.
            *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other.port} {other.id}" for other in others),
        ]
        (self._directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self.process.start()

    def wait(self, replicas: int, others: int) -> None:
        def knows() -> bool:
            with client(self.port) as asked:
                known = asked.sentinel_master(SERVICE)
                quorum = asked.execute_command("SENTINEL", "CKQUORUM", SERVICE)
            return known["num-slaves"] == replicas and known["num-other-sentinels"] == others and bool(quorum)

        until(knows, "watched by its Sentinels")


class RedisCluster(_Group):
    """A Redis Cluster of masters with or without replicas; `url` is what `--queue-url` takes.

    Args:
        directory: Where the nodes keep their files.
        masters: How many masters share the slots.
        replicas: How many replicas each master has.
        node_timeout_ms: After how many milliseconds without an answer a node counts as failed.
        prefer: Which server to run.
        arguments: Further options of the nodes.
        advertised: Says at which port of 127.0.0.1 a node's port is reached, where something is in between.
    """

    def __init__(
        self,
        directory: Path,
        *,
        masters: int = 3,
        replicas: int = 0,
        node_timeout_ms: int = 1000,
        prefer: Literal["redis", "valkey"] = "redis",
        arguments: Sequence[str] = (),
        advertised: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(advertised)
        self._masters = masters
        self._replicas = replicas
        self._bus = {}
        for number in range(masters * (1 + replicas)):
            port, bus = self._new_port(), free_port()
            options: tuple[str, ...] = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
            options += ("--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(self.reached[port]))
            options += ("--cluster-node-timeout", str(node_timeout_ms), "--cluster-config-file", "nodes.conf")
            options += (*_QUICK, *arguments)
            self.servers.append(RedisServer(directory / str(number), prefer=prefer, port=port, arguments=options))
            self._bus[port] = bus
        self.url = f"redis+cluster://{','.join(server.address for server in self.servers)}"

    def start(self) -> None:
        """Start all and return once every node sees the whole cluster."""
        for server in self.servers:
            server.process.start()
        for server in self.servers:
            server.process.wait_until(server.ready, _READY_SECONDS)
        masters = self.servers[: self._masters]
        for number, server in enumerate(self.servers):
            with client(server.port) as asked:
                asked.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < len(masters):
                    first, last = (SLOTS * step // len(masters) for step in (number, number + 1))
                    asked.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
                for other in self.servers[:number]:
                    asked.execute_command(
                        "CLUSTER", "MEET", "127.0.0.1", self.reached[other.port], self._bus[other.port]
                    )
        until(lambda: all(self._sees(server) == len(self.servers) for server in self.servers), "met by all")
        for number, server in enumerate(self.servers[self._masters :]):
            with client(server.port) as asked:
                asked.execute_command("CLUSTER", "REPLICATE", self.node_id(masters[number % len(masters)]))
        until(lambda: all(map(self._whole, self.servers)), "a whole cluster")
        until(lambda: all(followers(master) == self._replicas for master in masters), "replicated")

    def node_id(self, server: RedisServer) -> str:
        """Return what the cluster calls a node."""
        with client(server.port) as asked:
            return str(asked.execute_command("CLUSTER", "MYID"))

    def owner(self, slot: int, *, asked: RedisServer | None = None) -> RedisServer:
        """Return the master that has a slot, as a node that is up sees it."""
        for server in [asked] if asked else self.servers:
            try:
                with client(server.port) as node:
                    ranges = node.execute_command("CLUSTER", "SLOTS")
            except (redis.exceptions.RedisError, OSError):
                continue
            for first, last, primary, *_ in ranges:
                if first <= slot <= last:
                    return self.server(primary[1])
        raise DevClusterError(f"no node knows who has slot {slot}")

    def move(self, slot: int, to: RedisServer, *, finish: bool = True) -> None:
        """Move a slot with its keys to another master; without `finish`, leave it half-way, keys not moved yet."""
        source = self.owner(slot)
        ids = {server: self.node_id(server) for server in (source, to)}
        with client(source.port) as giving, client(to.port) as taking:
            taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
            if finish:
                self.finish_move(slot, source, to)

    def finish_move(self, slot: int, source: RedisServer, to: RedisServer) -> None:
        """Move the keys of a slot, and say so to all masters, the receiving one first."""
        with client(source.port) as giving:
            while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                giving.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 2000, "KEYS", *keys)
        identity = self.node_id(to)
        for server in (to, source):
            with client(server.port) as asked:
                asked.execute_command("CLUSTER", "SETSLOT", slot, "NODE", identity)

    def wait_for_another(self, slot: int, than: RedisServer, timeout: float = 15.0) -> RedisServer:
        """Return the master that has a slot once it is another one."""
        others = [server for server in self.servers if server is not than]

        def switched() -> RedisServer | None:
            found = self.owner(slot, asked=others[0])
            return found if found is not than else None

        found: RedisServer = until(switched, "failed over", timeout)
        return found

    @staticmethod
    def _sees(server: RedisServer) -> int:
        with client(server.port) as asked:
            nodes = asked.execute_command("CLUSTER", "NODES")
        return sum("handshake" not in line for line in nodes.splitlines())

    def _whole(self, server: RedisServer) -> bool:
        with client(server.port) as asked:
            info = asked.execute_command("CLUSTER", "INFO")
            ranges = asked.execute_command("CLUSTER", "SLOTS")
        return "cluster_state:ok" in info and all(len(nodes) == 1 + self._replicas for _, _, *nodes in ranges)


class TlsServer(RedisServer):
    """A Redis that talks TLS on `tls_port`, and lets in only who shows a certificate of its authority.

    `ca_file`, `cert_file` and `key_file` are what a client needs; the server's certificate is for `server_name` alone.
    """

    server_name = "redis.test"

    def __init__(self, directory: Path, *, arguments: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        own = self.authority.issue_cert(self.server_name)
        self.ca_file, self.cert_file, self.key_file = (directory / name for name in ("ca.pem", "tls.crt", "tls.key"))
        server_cert, server_key = directory / "server.crt", directory / "server.key"
        self.authority.cert_pem.write_to_path(self.ca_file)
        own.cert_chain_pems[0].write_to_path(server_cert)
        own.private_key_pem.write_to_path(server_key)
        self.issue()
        self.tls_port = free_port()
        options = ["--tls-port", str(self.tls_port), "--tls-cert-file", str(server_cert)]
        options += ["--tls-key-file", str(server_key), "--tls-ca-cert-file", str(self.ca_file)]
        super().__init__(directory, arguments=(*options, "--tls-auth-clients", "yes", *arguments))

    def issue(self) -> None:
        """Write a client's certificate and key, in place of those that are there."""
        issued = self.authority.issue_cert("client.test")
        issued.cert_chain_pems[0].write_to_path(self.cert_file)
        issued.private_key_pem.write_to_path(self.key_file)

    @property
    def options(self) -> str:
        """The options of a URL by which a client is let in, without the question mark."""
        files = f"ca-file={self.ca_file}&cert-file={self.cert_file}&key-file={self.key_file}"
        return f"{files}&server-name={self.server_name}"


def followers(server: RedisServer, password: str | None = None) -> int:
    """Say how many replicas are up to date with a server."""
    with client(server.port, password) as asked:
        info = asked.info("replication")
    return sum(
        isinstance(value, dict) and value.get("state") == "online"
        for name, value in info.items()
        if name.startswith("slave")
    )
