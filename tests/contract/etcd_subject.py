"""The etcd store under test, with a hand on the time that leases have."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import math
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.addresses import Address, parse_store_url
from at_least_semaphore_pod_hook.etcd import Client, prefix_end
from at_least_semaphore_pod_hook.etcd.wire import LeaseResponse, TimeToLiveResponse
from at_least_semaphore_pod_hook.etcd_permits import EPOCH, KEEP_ALIVE, LEASE_GRANT, head_key, holder_key
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from at_least_semaphore_pod_hook.stores.opening import open_store
from tests.contract.subjects import Clock, Subject

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
    from devcluster.stores import EtcdServer

MIN_TTL = 1


class VirtualLeases:
    """Leases whose time passes with `clock`: `sweep` revokes those that have come to their end, as etcd would."""

    def __init__(self, port: int, clock: Clock) -> None:
        self._clock = clock
        self._port = port
        self._leases: dict[int, tuple[float, int]] = {}

    @property
    def now(self) -> float:
        return self._clock.us / 1_000_000

    def granted(self, lease: int, ttl: int) -> None:
        ttl = max(ttl, MIN_TTL)
        self._leases.setdefault(lease, (self.now + ttl, ttl))

    def kept_alive(self, lease: int) -> int:
        if lease not in self._leases:
            return 0
        _, ttl = self._leases[lease]
        self._leases[lease] = self.now + ttl, ttl
        return ttl

    def left(self, lease: int) -> TimeToLiveResponse:
        if lease not in self._leases:
            return TimeToLiveResponse(id=lease, ttl=-1)
        end, ttl = self._leases[lease]
        return TimeToLiveResponse(id=lease, ttl=math.floor(end - self.now), granted_ttl=ttl)

    def revoked(self, lease: int) -> None:
        self._leases.pop(lease, None)

    def sweep(self) -> None:
        for lease in [lease for lease, (end, _) in self._leases.items() if end <= self.now]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        self.revoked(lease)
        self.post("/v3/lease/revoke", {"ID": str(lease)})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("POST", path, json.dumps(body))
            read: dict[str, Any] = json.load(connection.getresponse())
            return read
        finally:
            connection.close()


class VirtualClient(Client):
    """A client of a real etcd whose leases live in virtual time; etcd itself has them for long."""

    REAL_SECONDS = 100_000

    def __init__(self, address: Address, leases: VirtualLeases) -> None:
        super().__init__([address], timeout=5.0)
        self._virtual = leases

    async def grant(self, ttl: int, lease: int = 0) -> LeaseResponse:
        granted = await super().grant(self.REAL_SECONDS, lease)
        self._virtual.granted(granted.id, ttl)
        return granted

    async def keep_alive(self, lease: int) -> int:
        ttl = self._virtual.kept_alive(lease)
        assert bool(await super().keep_alive(lease)) == bool(ttl)
        return ttl

    async def time_to_live(self, lease: int) -> TimeToLiveResponse:
        return self._virtual.left(lease)

    async def revoke(self, lease: int) -> None:
        self._virtual.revoked(lease)
        await super().revoke(lease)

    async def exchange(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == KEEP_ALIVE:
            return {"result": {"TTL": str(await self.keep_alive(int(body["ID"])))}}
        if path == LEASE_GRANT:
            await self.grant(int(body["TTL"]), int(body["ID"]))
            return {}
        return await super().exchange(path, body)


class EtcdSubject(Subject):
    """The store over a real etcd, with leases that live in virtual time."""

    tick = 1.0
    reclaims = True

    def __init__(self, server: EtcdServer) -> None:
        self.clock = Clock()
        self.leases = VirtualLeases(server.port, self.clock)
        self._address = Address("127.0.0.1", server.port)
        self._values = itertools.count()
        self.leases.post("/v3/kv/deleterange", {"key": _encoded(b"\0"), "range_end": _encoded(b"\0")})
        self.stores = [self.another() for _ in range(2)]

    def another(self) -> EtcdStore:
        """Open one more store over the same cluster and clock."""
        client = VirtualClient(self._address, self.leases)
        return EtcdStore(client, clock=lambda: self.leases.now, now_us=lambda: self.clock.us)

    def open(self) -> Store:
        return open_store(parse_store_url(f"etcd://{self._address}"))

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.leases.sweep()

    def dump(self) -> object:
        answer = self.leases.post("/v3/kv/range", {"key": _encoded(b"\0"), "range_end": _encoded(b"\0")})
        return [
            (base64.b64decode(kv["key"]), base64.b64decode(kv.get("value", "")), kv["mod_revision"], kv.get("lease"))
            for kv in answer.get("kvs", [])
        ]

    def begin_epoch(self) -> None:
        value = f"epoch-{next(self._values)}".encode()
        self.leases.post("/v3/kv/put", {"key": _encoded(EPOCH.encode()), "value": _encoded(value)})

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        name = holder_key(str(key), permit).encode()
        (kv,) = self.leases.post("/v3/kv/range", {"key": _encoded(name)})["kvs"]
        self.leases.revoke(int(kv["lease"]))

    def forget(self, key: SemaphoreKey) -> None:
        self.leases.post("/v3/kv/deleterange", {"key": _encoded(head_key(str(key)).encode())})
        for kind in ("inflight", "denied", "ended"):
            prefix = f"{kind}/{key}/".encode()
            body = {"key": _encoded(prefix), "range_end": _encoded(prefix_end(prefix))}
            self.leases.post("/v3/kv/deleterange", body)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
