"""The stores that the contract suite runs over: each with two store objects, and a hand on its time and its data."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from at_least_semaphore_pod_hook.stores.opening import open_store
from at_least_semaphore_pod_hook.stores.redis.batcher import Script
from devcluster.topologies import SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

START_SECONDS = 1_800_000_000
TIME = "redis.call('TIME')"
GIVEN_TIME = "GIVEN_TIME"


class Clock:
    """Time that passes when it is told to, in whole microseconds since 1970."""

    def __init__(self) -> None:
        self.us = START_SECONDS * 1_000_000

    def advance(self, seconds: float) -> None:
        self.us += round(seconds * 1_000_000)

    def seconds(self) -> float:
        # Half a microsecond more, so that no rounding of the fraction takes the whole microseconds back by one.
        return (self.us + 0.5) / 1_000_000


class Subject(ABC):
    """A store under test, with a hand on its clock.

    Attributes:
        clock: The store's time.
        stores: Two store objects, as two replicas of the webhook have them.
        tick: The shortest time that the store tells apart, in seconds.
        reclaims: Whether the store takes expired permits back by itself.
    """

    tick = 0.001
    reclaims = False
    clock: Clock
    stores: Sequence[Store]

    @property
    def store(self) -> Store:
        return self.stores[0]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    @abstractmethod
    def open(self) -> Store:
        """Open a store object as it ships: its time is the server's own."""

    @abstractmethod
    def dump(self) -> object:
        """Everything that is stored, to be compared."""

    @abstractmethod
    def begin_epoch(self) -> None:
        """Do what happens to a store that may lose data by it."""

    @abstractmethod
    def lose(self, key: SemaphoreKey, permit: str) -> None:
        """Lose a holder."""

    @abstractmethod
    def forget(self, key: SemaphoreKey) -> None:
        """Remove all that is stored of a semaphore."""

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


class MemorySubject(Subject):
    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = MemoryStore(self.clock.seconds)
        # It lives within one process, where all share one object.
        self.stores: Sequence[Store] = (self.memory, self.memory)

    def open(self) -> Store:
        return MemoryStore()

    def dump(self) -> object:
        return repr(self.memory._semaphores)

    def begin_epoch(self) -> None:
        self.memory.epoch += 1

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        del self.memory._semaphores[key].permits[permit]

    def forget(self, key: SemaphoreKey) -> None:
        self.memory._semaphores.pop(key, None)


@functools.cache
def on_given_time(script: Script) -> Script:
    """Have a script read the time from its first two arguments, which it takes away, instead of the server's clock."""
    if TIME not in script.text:
        return script
    taking = f"local {GIVEN_TIME} = {{ARGV[1], ARGV[2]}} table.remove(ARGV, 1) table.remove(ARGV, 1)"
    lines = script.text.replace(TIME, GIVEN_TIME).split("\n")
    lines.insert(1 if lines[0].startswith("#!") else 0, taking)
    return Script.of(script.name, "\n".join(lines), epoch=script.epoch)


def give_time(store: Any, clock: Clock) -> None:
    """Have a Redis store's scripts run in the real server, at the time of `clock`."""
    call: Callable[..., Any] = store._caller.call

    async def call_at(
        script: Script, keys: Sequence[str], args: Sequence[str | int], timeout: float | None = None
    ) -> Any:
        given = divmod(clock.us, 1_000_000) if TIME in script.text else ()
        return await call(on_given_time(script), keys, (*given, *args), timeout)

    store._caller.call = call_at


class RedisSubject(Subject):
    """The shipped scripts in real servers; only what they call the time is the subject's.

    Args:
        url: As `--queue-url` has it.
        clients: One for each server that holds data.
    """

    def __init__(self, url: str, clients: Sequence[Any]) -> None:
        self.clock = Clock()
        self.url = url
        self.clients = clients
        for client in clients:
            client.flushall()
        self.stores: Sequence[Store] = [self.open() for _ in range(2)]
        for store in self.stores:
            give_time(store, self.clock)

    def open(self) -> Store:
        return open_store(parse_store_url(self.url))

    def dump(self) -> object:
        return {name: client.dump(name) for client in self.clients for name in sorted(client.scan_iter(count=1000))}

    def begin_epoch(self) -> None:
        # What a replica does that is made a primary; the servers need `--enable-debug-command local` for it.
        for client in self.clients:
            client.execute_command("DEBUG", "CHANGE-REPL-ID")
            client.client_kill_filter(_type="normal", skipme=True)

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        client = self.client_of(key)
        client.zrem(f"inflight/{{{key}}}", permit)
        client.hdel(f"inflight/{{{key}}}/holders", permit)

    def forget(self, key: SemaphoreKey) -> None:
        names = [f"queue/{{{key}}}{more}" for more in ("", "/denied")]
        names += [f"inflight/{{{key}}}{more}" for more in ("", "/holders", "/ended")]
        self.client_of(key).delete(*names)

    def client_of(self, key: SemaphoreKey) -> Any:
        """Return a client of the server that holds a semaphore: each has an equal share of the slots, in order."""
        return self.clients[key_slot(str(key).encode()) * len(self.clients) // SLOTS]

    async def close(self) -> None:
        await super().close()
        for client in self.clients:
            client.close()
