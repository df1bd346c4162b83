"""A process of its own that uses a lock: `lock_worker.py <kind> <ports> count|hold <name> …`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.addresses import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from at_least_semaphore_pod_hook.semaphore.contracts import Lock

REDLOCK_TTL = 1.0
ETCD_TTL = 2


def open_lock(kind: str, ports: Iterable[int]) -> Lock:
    addresses = [Address("127.0.0.1", port) for port in ports]
    if kind == "etcd":
        from at_least_semaphore_pod_hook.locks.etcd import EtcdLock  # noqa: PLC0415 - each worker needs only one of them

        return EtcdLock(addresses, lease_seconds=ETCD_TTL)
    from at_least_semaphore_pod_hook.locks.redlock import Redlock  # noqa: PLC0415 - the same

    return Redlock(addresses, ttl=REDLOCK_TTL, node_timeout=0.4)


async def increment(lock: Lock, name: str, counter: Path) -> None:
    """Read, sleep, write: what two at once would get wrong."""
    async with lock.hold(name, 20):
        count = int(counter.read_text(encoding="ascii"))  # noqa: ASYNC240 - one byte, in a test
        await asyncio.sleep(0.002)
        counter.write_text(str(count + 1), encoding="ascii")  # noqa: ASYNC240 - the same


async def main(kind: str, ports: str, command: str, name: str, *arguments: str) -> None:
    lock = open_lock(kind, map(int, ports.split(",")))
    try:
        if command == "count":
            counter, times = Path(arguments[0]), int(arguments[1])
            await asyncio.gather(*(increment(lock, name, counter) for _ in range(times)))
        else:
            async with lock.hold(name, 5):
                sys.stdout.write("held\n")
                sys.stdout.flush()
                await asyncio.sleep(60)
    finally:
        await lock.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
