"""The kinds of locks that the contract suite goes through."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.addresses import Address
from tests.contract.lock_worker import open_lock

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.contracts import Lock
    from devcluster.stores import EtcdServer, RedisServer

WORKER = Path(__file__).with_name("lock_worker.py")


@dataclass(frozen=True)
class LockBackend:
    """A kind of lock and its servers. `ttl` is in seconds."""

    kind: str
    ports: tuple[int, ...]
    ttl: float

    def open(self) -> Lock:
        return open_lock(self.kind, self.ports)

    def worker(self, *arguments: str) -> list[str]:
        return [sys.executable, str(WORKER), self.kind, ",".join(map(str, self.ports)), *arguments]


def address(server: RedisServer | EtcdServer) -> Address:
    return Address("127.0.0.1", server.port)
