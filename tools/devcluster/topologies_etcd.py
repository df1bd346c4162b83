"""A group of etcd members on 127.0.0.1 that can lose one of them, or its leader."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devcluster.binaries import find_or_build, program_version
from devcluster.errors import DevClusterError
from devcluster.process import Process, free_port

_READY_SECONDS = 20.0
_PROBE_SECONDS = 1.0


class EtcdMember:
    """One member of a group; `address` is "127.0.0.1:port" and `url` its client URL; peers come to `peer_port`."""

    def __init__(self, process: Process, port: int, scheme: str, peer_port: int) -> None:
        self.process = process
        self.port = port
        self.peer_port = peer_port
        self.address = f"127.0.0.1:{port}"
        self.url = f"{scheme}://{self.address}"

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nobody answers, and the others lose touch with it."""
        self.process.stop()

    def resume(self) -> None:
        """Let a frozen member go on."""
        self.process.cont()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the member over plain HTTP; raises OSError or ValueError where it doesn't answer with JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PROBE_SECONDS)
        try:
            connection.request("POST", path, json.dumps(body))
            answer: dict[str, Any] = json.load(connection.getresponse())
            return answer
        finally:
            connection.close()


class EtcdGroup:
    """Members of one etcd cluster, each with a data directory and ports that stay over a restart.

    Heartbeat and election are set to 20 and 200 ms, so that a lost leader is soon replaced. Without `fsync` writes are
    faster and survive a SIGKILL of the process, but not a power cut. `arguments` are further flags of each member. The
    members talk to each other and to clients without TLS. `advertised` says at which port of 127.0.0.1 the others reach
    a peer port, where something is in between.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 3,
        *,
        fsync: bool = False,
        arguments: Sequence[str] = (),
        advertised: Callable[[int], int] | None = None,
    ) -> None:
        binary = find_or_build(["etcd"])["etcd"]
        peers = {f"m{number}": free_port() for number in range(count)}
        reached = {name: f"http://127.0.0.1:{advertised(port) if advertised else port}" for name, port in peers.items()}
        cluster = ",".join(f"{name}={url}" for name, url in reached.items())
        self.members: list[EtcdMember] = []
        for name, peer in peers.items():
            home = directory / name
            home.mkdir(parents=True, exist_ok=True)
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            argv = [str(binary), f"--name={name}", f"--data-dir={home / 'data'}", "--log-level=warn"]
            argv += [f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]
            argv += [f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls={reached[name]}"]
            argv += [f"--initial-cluster={cluster}", "--heartbeat-interval=20", "--election-timeout=200"]
            if not fsync and (program_version(binary) or (0, 0, 0)) >= (3, 5, 0):
                argv.append("--unsafe-no-fsync")
            process = Process(f"etcd-{name}", [*argv, *arguments], home / "etcd.log")
            self.members.append(EtcdMember(process, port, "http", peer))

    def start(self, *which: EtcdMember) -> None:
        """Start the members, all of them where none is named, and return once each of them serves."""
        members = which or tuple(self.members)
        for member in members:
            member.process.start()
        for member in members:
            member.process.wait_until(lambda member=member: _serves(member), _READY_SECONDS)  # type: ignore[misc]

    def leader(self) -> EtcdMember:
        """Return the member that leads, as those that answer know it; DevClusterError where none knows."""
        for member in self.members:
            try:
                status = member.post("/v3/maintenance/status", {})
            except (OSError, ValueError):
                continue
            leading = status.get("leader", "0")
            if leading != "0" and status["header"]["member_id"] == leading:
                return member
        raise DevClusterError("no member of the group says that it leads")

    def followers(self) -> list[EtcdMember]:
        """Return the members that do not lead."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def stop(self) -> None:
        """End all as a crash would."""
        for member in self.members:
            member.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _serves(member: EtcdMember) -> bool:
    """Say whether a member answers a linearizable read, for which it needs a leader."""
    try:
        return "header" in member.post("/v3/kv/range", {"key": "AA=="})
    except (OSError, ValueError):
        return False
