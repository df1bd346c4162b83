"""What a semaphore costs when it is large: each operation at 100,000 holders beside the same at 10, in turns.

The length is 1,000,000, save where a full semaphore is wanted. Exits 1 where an operation takes more than three times
as long. Reading a whole semaphore grows with its holders by its nature; it is shown for each holder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import redis

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Adoptee, Fence, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.stores import EtcdServer, RedisServer

LENGTH = 1_000_000
FACTOR = 3.0
AT_ONCE = 500
FENCE = Fence("redlock", 0)
POD = "crawler-7c9d8b6f54-x2v9q"
"""A name as long as those of a Deployment's pods."""


class Size(NamedTuple):
    """Two semaphores with so many holders: one with room, one that is full."""

    holders: int
    roomy: SemaphoreKey
    full: SemaphoreKey


def wish(key: SemaphoreKey, permit: str, **other: Any) -> AcquireRequest:
    """Return a request that takes the length as it is."""
    return AcquireRequest(key, 0, 3600, permit, identity=f"id-{permit}", pod=POD)._replace(**other)


async def create(store: Store, key: SemaphoreKey, length: int) -> None:
    """Give a semaphore its length."""
    step = await store.begin(key, FENCE)
    await store.set_length(key, length, step.fence)


async def fill(store: Store, key: SemaphoreKey, holders: int, length: int) -> None:
    """Take so many permits of a new semaphore, as a rebuild does."""
    await create(store, key, length)
    step = await store.begin(key, FENCE)
    for start in range(0, holders, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, holders))
        lost = [Adoptee(f"{number:016x}", POD, f"{number:036x}", number + 1, 3600) for number in numbers]
        if await store.adopt(key, lost, step.fence) != len(lost):
            raise SystemExit(f"{key}: not filled")
        if start % 10_000 == 0:
            print(f"  {key}: {start} of {holders}", file=sys.stderr, flush=True)


def operations(store: Store, size: Size) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the operations, each to be called again and again: what one takes, another gives back."""
    key, held = size.roomy, f"{0:016x}"
    adoptee = Adoptee("adopted", POD, "uid", 1, 3600)

    async def adopt() -> None:
        step = await store.begin(key, FENCE)
        await store.adopt(key, [adoptee], step.fence)

    async def resize() -> None:
        step = await store.begin(key, FENCE)
        await store.set_length(key, LENGTH, step.fence)

    return {
        "acquire, granted": lambda: store.acquire(wish(key, "new")),
        "acquire, repeated": lambda: store.acquire(wish(key, "new")),
        "renew": lambda: store.renew(key, held, POD),
        "keep": lambda: store.keep(key, held, POD, "uid"),
        "release": lambda: store.release(key, "new"),
        "acquire, dry run": lambda: store.acquire(wish(key, "dry", dry_run=True)),
        "acquire, full": lambda: store.acquire(wish(size.full, "late")),
        "adopt": adopt,
        "release, adopted": lambda: store.release(key, "adopted"),
        "reclaim": lambda: store.reclaim(key),
        "resize": resize,
        "forget denied": lambda: store.forget_denied(key, "Job/a"),
    }


async def measure(store: Store, holders: int, samples: int) -> bool:
    """Print a table of one store; returns whether each operation kept its floor."""
    sizes = [Size(n, SemaphoreKey(f"n{n}", "roomy"), SemaphoreKey(f"n{n}", "full")) for n in (10, holders)]
    for size in sizes:
        await fill(store, size.roomy, size.holders, LENGTH)
        await fill(store, size.full, size.holders, size.holders)
    taken: dict[tuple[str, int], list[float]] = {}
    for number in range(samples):
        for size in sizes if number % 2 else reversed(sizes):
            for name, operation in operations(store, size).items():
                began = time.perf_counter()
                await operation()
                taken.setdefault((name, size.holders), []).append(time.perf_counter() - began)
    print(f"{'operation':20}{'at 10, µs':>12}{f'at {holders:,}, µs':>18}{'ratio':>8}")
    kept = True
    for name in operations(store, sizes[0]):
        small, large = (statistics.median(taken[name, size.holders]) * 1e6 for size in sizes)
        kept &= large <= FACTOR * small
        print(f"{name:20}{small:12.0f}{large:18.0f}{large / small:8.2f}{'' if large <= FACTOR * small else '  missed'}")
    for size in sizes:
        began = time.perf_counter()
        state = await store.state(size.roomy)
        seconds = time.perf_counter() - began
        each = seconds / state.held * 1e6
        print(f"read a whole semaphore of {state.held:,}: {seconds * 1e3:.1f} ms, {each:.1f} µs each")
    return kept


def redis_bytes(port: int) -> int:
    """Return what a Redis keeps."""
    return int(redis.Redis(port=port).info("memory")["used_memory_dataset"])


def main() -> int:
    """Measure the stores that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--holders", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--stores", default="redis,etcd", help="redis and etcd, or one of them")
    flags = parser.parse_args()
    kept = True
    for kind in flags.stores.split(","):
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            print(f"\n{kind}", flush=True)
            if kind == "redis":
                server: Any = stack.enter_context(RedisServer(Path(scratch)))
                before = redis_bytes(server.port)
                kept &= asyncio.run(_run(f"redis://{server.address}", flags.holders, flags.samples))
                each = (redis_bytes(server.port) - before) / (2 * flags.holders)
            else:
                server = stack.enter_context(EtcdServer(Path(scratch), fsync=False))
                kept &= asyncio.run(_run(f"etcd://{server.address}", flags.holders, flags.samples))
                each = (Path(scratch) / "data/member/snap/db").stat().st_size / (2 * flags.holders)
            print(f"in the store: {each:.0f} bytes for each holder", flush=True)
    return 0 if kept else 1


async def _run(url: str, holders: int, samples: int) -> bool:
    store = open_store(parse_store_url(url))
    try:
        return await measure(store, holders, samples)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
