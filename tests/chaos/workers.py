"""A recorded load on real stores: clients that do what webhook, sidecars and controller do, and what they never should.

Each client has a store and a service of its own, as each replica has. What it does is drawn from the seed; how the
calls of several clients interleave is the store's and the machine's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.semaphore.contracts import Lock, Store
from at_least_semaphore_pod_hook.semaphore.model import (
    Acquired,
    AcquireRequest,
    Adoptee,
    Fence,
    Outcome,
    SemaphoreKey,
)
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.stores.redis.store import open_redis_store
from tests.chaos.checker import Final
from tests.chaos.history import Operation, Recorder
from tests.chaos.recorded import Faults, RecordedStore

ANSWER_SECONDS = 10.0
RETRY_SECONDS = 0.01


class Profile(NamedTuple):
    """What a load consists of. Shares are probabilities, of each permit that a client gets or of each turn.

    Attributes:
        seconds: How long clients go on; they end what they have begun.
        clients: How many.
        semaphores: How many.
        lengths: What semaphores are resized to; the first one is what they begin with.
        lease_seconds: The expiration of every permit.
        hold_seconds: How long a permit is held at most, before it is given back.
        vanish: Share of permits that are neither renewed nor given back any more.
        pause: Share of permits whose pod is silent for longer than the lease, and then renews.
        meddle: Share of turns that try what must be refused, with another's permit.
        carry: Share of permits that are carried into another acquire, before or after they were confirmed.
        resize: Share of turns that resize.
        sweep: Share of turns that reclaim what has expired.
        lose: Share of answers that are lost after the call was applied.
        delay_seconds: How long a call, or its answer, is held up at most.
        stay: Share of the last permits that are held when the load ends.
        ask_length: Whether acquires ask for the first length, and do not take what there is.
    """

    seconds: float = 0.5
    clients: int = 6
    semaphores: int = 1
    lengths: tuple[int, ...] = (3,)
    lease_seconds: int = 60
    hold_seconds: float = 0.02
    vanish: float = 0.0
    pause: float = 0.0
    meddle: float = 0.0
    carry: float = 0.0
    resize: float = 0.0
    sweep: float = 0.0
    lose: float = 0.0
    delay_seconds: float = 0.0
    stay: float = 0.0
    ask_length: bool = False


class LostLock:
    """A lock that everybody always has lost already: only the fence is left, as after a long pause of its holder."""

    @asynccontextmanager
    async def hold(self, name: str, timeout: float) -> AsyncIterator[Fence]:
        yield Fence("redlock", 0)

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass


MakeStore = Callable[[Address, int], Store]
Survey = Callable[[SemaphoreKey], Awaitable[Sequence[Adoptee]]]
MakeService = Callable[[Store, Lock, Survey], SemaphoreService]


class Fault(Protocol):
    """What happens to the server while a load runs."""

    async def prepare(self) -> None:
        """Do what has to be done when the semaphores are there, and nobody holds a permit."""
        ...

    async def happen(self) -> None:
        """Let it happen, while clients call."""
        ...


def surveying_service(store: Store, lock: Lock, survey: Survey) -> SemaphoreService:
    """Make the product's service."""
    return SemaphoreService(store, lock, survey=survey)


def _redis_store(address: Address, _number: int) -> Store:
    return open_redis_store(address)


@dataclass
class Load:
    """A load, and what it is made of: the product's own store and service unless others are named.

    Attributes:
        address: The Redis or Valkey server.
        name: The semaphores' namespace: loads of different names do not meet.
        profile: What is done.
        seed: Decides what is drawn.
        make_store: Makes each client's store from the address and the client's number.
        make_service: Makes each client's service from its recorded store, a lock, and what names the pods that live.
        fault: What happens to the server meanwhile.
    """

    address: Address
    name: str
    profile: Profile
    seed: int
    make_store: MakeStore = _redis_store
    make_service: MakeService = surveying_service
    fault: Fault | None = None
    recorder: Recorder = field(default_factory=Recorder)
    known: list[tuple[SemaphoreKey, str, str]] = field(default_factory=list)
    live: set[tuple[SemaphoreKey, str]] = field(default_factory=set)
    pods: dict[tuple[SemaphoreKey, str], Adoptee] = field(default_factory=dict)

    @property
    def keys(self) -> list[SemaphoreKey]:
        """The semaphores."""
        return [SemaphoreKey(self.name, f"key-{number}") for number in range(self.profile.semaphores)]

    async def survey(self, key: SemaphoreKey) -> Sequence[Adoptee]:
        """Name the pods that live and were let in, as an API server would."""
        return [pod for (semaphore, _), pod in self.pods.items() if semaphore == key]

    async def run(self) -> tuple[list[Operation], list[Final]]:
        """Return the history, and how each semaphore ended when everything had come to rest."""
        clients = [_Client(self, number) for number in range(self.profile.clients)]
        try:
            for key in self.keys:
                await clients[0].service.resize(key, self.profile.lengths[0], ANSWER_SECONDS)
            if self.fault:
                await self.fault.prepare()
            async with asyncio.TaskGroup() as group:
                if self.fault:
                    group.create_task(self.fault.happen())
                for client in clients:
                    group.create_task(client.run())
        finally:
            for client in clients:
                await client.service.close()
        return self.recorder.operations(), await self._final()

    async def _final(self) -> list[Final]:
        store = open_redis_store(self.address)
        try:
            states = [(key, await store.state(key)) for key in self.keys]
        finally:
            await store.close()
        return [
            Final(
                str(key),
                frozenset(state.permits),
                frozenset(permit for held_in, permit in self.live if held_in == key),
                length=state.length,
            )
            for key, state in states
        ]


class _Client:
    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._profile = load.profile
        self._name = f"client-{number}"
        self._chance = random.Random(f"{load.seed} {number}")
        faults = Faults(self._chance, load.profile.lose, load.profile.delay_seconds)
        inner = load.make_store(load.address, number)
        self._store = RecordedStore(inner, load.recorder, self._name, faults)
        self.service = load.make_service(self._store, LostLock(), load.survey)
        self._pods = 0

    def _chosen(self, share: float) -> bool:
        return self._chance.random() < share

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._profile.seconds
        while loop.time() < end:
            # A call whose answer is lost is over for this client, as for a pod that is created anew.
            with suppress(UnavailableError):
                await self._turn(self._chance.choice(self._load.keys))
            await asyncio.sleep(self._chance.uniform(0, self._profile.hold_seconds / 4))
        if self._chosen(self._profile.stay):
            await self._stay(self._chance.choice(self._load.keys))

    async def _turn(self, key: SemaphoreKey) -> None:
        profile = self._profile
        if self._chosen(profile.resize):
            await self.service.resize(key, self._chance.choice(profile.lengths), ANSWER_SECONDS)
        if self._chosen(profile.sweep):
            await self._store.reclaim(key)
        if self._chosen(profile.meddle) and self._load.known:
            await self._meddle(*self._chance.choice(self._load.known[-profile.clients :]))
        await self._pod(key)

    def _request(self, key: SemaphoreKey, permit: str = "", carried: str = "", identity: str = "") -> AcquireRequest:
        """A request of a new pod, with the name that this client is known by for its permit."""
        self._pods += 1
        pod = f"{self._name}-pod-{self._pods}"
        permit = permit or f"{self._name}-{self._pods}"
        seconds = self._profile.lease_seconds
        length = self._profile.lengths[0] if self._profile.ask_length else 0
        return AcquireRequest(key, length, seconds, permit, identity or self._name, carried, pod)

    async def _acquire(self, request: AcquireRequest) -> Acquired | None:
        acquired = (await self.service.acquire(request, ANSWER_SECONDS)).acquired
        return acquired if acquired.outcome in (Outcome.GRANTED, Outcome.RESUMED) else None

    async def _pod(self, key: SemaphoreKey) -> None:
        """One pod's life: admitted, carried or not, confirmed, renewed, and ended in one way or another."""
        request = self._request(key)
        acquired = await self._acquire(request)
        if acquired is None:
            return
        permit, pod = acquired.permit, request.pod
        uid = f"uid-of-{pod}"
        self._load.pods[key, permit] = Adoptee(permit, pod, uid, acquired.token, request.expiration_seconds)
        others: list[str] = []
        if self._chosen(self._profile.carry):
            others += await self._carry(key, permit)
        alive = await self._renewed(key, permit, pod)
        self._load.known.append((key, permit, pod))
        if self._chosen(self._profile.carry):
            others += await self._carry(key, permit)
        await asyncio.sleep(self._chance.uniform(0, self._profile.hold_seconds))
        if self._chosen(self._profile.vanish):
            return
        if self._chosen(self._profile.pause):
            await asyncio.sleep(self._profile.lease_seconds * self._chance.uniform(1.02, 1.3))
        for _ in range(self._chance.randrange(3) if alive else 0):
            await self._renewed(key, permit, pod)
            await asyncio.sleep(self._chance.uniform(0, self._profile.hold_seconds))
        del self._load.pods[key, permit]
        for other in others:
            await self._give_back(key, other, "")
        await self._give_back(key, permit, pod)
        if self._chosen(self._profile.meddle):
            await self._renewed(key, permit, pod)

    async def _carry(self, key: SemaphoreKey, permit: str) -> list[str]:
        """Ask with a permit that is carried along; what was granted besides is one more to give back."""
        with suppress(UnavailableError):
            acquired = await self._acquire(self._request(key, carried=permit))
            if acquired and acquired.permit != permit:
                return [acquired.permit]
        return []

    async def _renewed(self, key: SemaphoreKey, permit: str, pod: str) -> bool:
        with suppress(UnavailableError):
            return await self._store.renew(key, permit, pod) > 0
        return True

    async def _give_back(self, key: SemaphoreKey, permit: str, pod: str) -> None:
        """Try until there is an answer, as a sidecar does."""
        while True:
            with suppress(UnavailableError):
                await self._store.release(key, permit, pod)
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _meddle(self, key: SemaphoreKey, permit: str, pod: str) -> None:
        """What must be refused where it is another's: renew it, give it back, be granted it under its name."""
        stranger = f"{self._name}-stranger"
        choice = self._chance.randrange(3)
        if choice == 0:
            await self._store.renew(key, permit, stranger)
        elif choice == 1:
            await self._store.release(key, permit, stranger)
        else:
            # Not through the service: it would give the other's permit back where the answer is lost.
            acquired = await self._store.acquire(self._request(key, permit, identity=stranger))
            if acquired.outcome in (Outcome.GRANTED, Outcome.RESUMED):
                await self._give_back(key, permit, "")

    async def _stay(self, key: SemaphoreKey) -> None:
        """Get a permit, and hold it when the load ends; a pod is created until one has been admitted or refused."""
        while True:
            request = self._request(key)
            with suppress(UnavailableError):
                if acquired := await self._acquire(request):
                    self._load.live.add((key, acquired.permit))
                return
