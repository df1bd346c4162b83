"""A real Redis or Valkey for a test, and sidecars as real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import at_least_semaphore_pod_hook
from devcluster.stores import redis_binary

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(at_least_semaphore_pod_hook.__file__).parent
ACQUIRE = (PACKAGE / "stores/redis/scripts/acquire.lua").read_text()
RELEASE = (PACKAGE / "stores/redis/scripts/release.lua").read_text()
SEMAPHORE = "ns/key"
QUEUE, INFLIGHT, HOLDERS = "queue/{ns/key}", "inflight/{ns/key}", "inflight/{ns/key}/holders"
DENIED, ENDED = "queue/{ns/key}/denied", "inflight/{ns/key}/ended"
KEYS = (QUEUE, INFLIGHT, HOLDERS, DENIED, ENDED)


def until(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """Return what `condition` returns once it is true."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


class NotStartedError(Exception):
    """The server has ended: it was built without what its flags ask for."""


class Server:
    """A store on a loopback port, that can be stopped, paused and started again."""

    def __init__(self, directory: Path, *flags: str, password: str = "") -> None:
        self.directory, self.flags, self.password = directory, flags, password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.client = redis.Redis(
            port=self.port, password=password or None, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0)
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        flags += ["--appendonly", "yes", "--appendfsync", "always", *self.flags]
        process = self.process = subprocess.Popen([redis_binary("redis")[1], *flags], stdout=subprocess.DEVNULL)

        def answers() -> bool:
            if process.poll() is not None:
                raise NotStartedError
            try:
                return bool(self.client.ping())
            except redis.exceptions.RedisError:
                return False

        until(answers)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        self.client.close()

    def acquire(self, permit: str = "p1", lease_ms: int = 60_000, length: int = 2) -> None:
        self.client.hset(QUEUE, "length", str(length))
        reply = self.client.eval(
            ACQUIRE, 5, *KEYS, permit, "", "identity", "pod-", 0, lease_ms, 30000, 0, 0, "", "", ""
        )
        assert reply[0] == "granted"

    def end(self, permit: str = "p1") -> None:
        """Give a permit back as the controller does where the pod's other containers have ended."""
        self.client.eval(RELEASE, 5, *KEYS, permit, "", 1)

    def holder(self, permit: str = "p1") -> dict[str, Any] | None:
        stored = self.client.hget(HOLDERS, permit)
        return None if stored is None else json.loads(stored)

    def confirmed(self, permit: str = "p1") -> bool:
        holder = self.holder(permit)
        return bool(holder and holder["confirmed"])

    def lease_end(self, permit: str = "p1") -> float:
        return float(self.client.zscore(INFLIGHT, permit) or 0)


class Process:
    """A sidecar."""

    def __init__(self, log: Path, address: str, *flags: str, permit: str = "p1", redirections: str = "") -> None:
        self.log_path = log
        command = [sys.executable, "-m", "at_least_semaphore_pod_hook", "sidecar"]
        command += ["--queue-redis-address", address, *flags, SEMAPHORE, permit]
        if redirections:
            command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=file, env={**environment, "POD_NAME": "pod-1"}
            )

    def log(self) -> str:
        return self.log_path.read_text()

    def lines(self, level: str = "") -> list[dict[str, str]]:
        documents = [json.loads(line) for line in self.log().splitlines()]
        return [document for document in documents if level in ("", document["level"])]

    def says(self, text: str) -> None:
        until(lambda: text in self.log())

    def rss_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def end(self, number: int = signal.SIGTERM, timeout: float = 5.0) -> tuple[int, float]:
        """Send a signal; returns the exit code and how many seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout), time.monotonic() - start

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
