"""The etcd store under test, with a hand on the time that leases have."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.addresses import Address, parse_store_url
from at_least_semaphore_pod_hook.etcd import Client
from at_least_semaphore_pod_hook.etcd.wire import LeaseResponse, TimeToLiveResponse
from at_least_semaphore_pod_hook.etcd_permits import KEEP_ALIVE, LEASE_GRANT, holder_key
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore
from at_least_semaphore_pod_hook.stores.opening import open_store
from tests.contract.accounts import PASSWORD, WEBHOOK, etcd_admin
from tests.contract.subjects import Clock, Subject

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey

EPOCH_KEY = b"epoch"
MIN_TTL = 1


class VirtualLeases:
    """Leases whose time passes when `advance` says so: those that have come to their end are revoked, as etcd would."""

    def __init__(self, clock: Clock, port: int) -> None:
        self.clock = clock
        self.admin = etcd_admin(port)
        self.post = self.admin.post
        self._leases: dict[int, tuple[float, int]] = {}

    @property
    def now(self) -> float:
        return self.clock.us / 1_000_000

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

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for lease in [lease for lease, (end, _) in self._leases.items() if end <= self.now]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        self.revoked(lease)
        self.post("/v3/lease/revoke", {"ID": str(lease)})


class VirtualClient(Client):
    """A client of a real etcd whose leases live in virtual time; etcd itself has them for long."""

    REAL_SECONDS = 100_000

    def __init__(self, addresses: Sequence[Address], leases: VirtualLeases) -> None:
        super().__init__(addresses, timeout=5.0)
        self._virtual = leases
        # As after its first call: of two calls at once neither is to begin with a login.
        self._token = leases.admin.token_of(WEBHOOK)

    async def grant(self, ttl: int, lease: int = 0) -> LeaseResponse:
        granted = await super().grant(self.REAL_SECONDS, lease)
        self._virtual.granted(granted.id, ttl)
        return granted

    async def keep_alive(self, lease: int) -> int:
        ttl = self._virtual.kept_alive(lease)
        # Of two calls at once one may revoke it in between.
        return ttl if await super().keep_alive(lease) else 0

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
    """A real etcd; the time of its leases is the subject's, and so is the one that fencing tokens are made of.

    Its stores have the webhook's account.

    Args:
        ports: Those of the cluster's members, which know the shipped roles.
    """

    tick = 1.0
    reclaims = True

    def __init__(self, ports: Sequence[int]) -> None:
        self.clock = Clock()
        self.leases = VirtualLeases(self.clock, ports[0])
        self._addresses = [Address("127.0.0.1", port, username=WEBHOOK, password=PASSWORD) for port in ports]
        self._values = itertools.count()
        self.leases.post("/v3/kv/deleterange", {"key": _encoded(b"\0"), "range_end": _encoded(b"\0")})
        self.stores: Sequence[Store] = [self._open_in_virtual_time() for _ in range(2)]

    def _open_in_virtual_time(self) -> EtcdStore:
        client = VirtualClient(self._addresses, self.leases)
        return EtcdStore(client, clock=lambda: self.leases.now, now_us=lambda: self.clock.us)

    def open(self) -> Store:
        hosts = ",".join(f"127.0.0.1:{address.port}" for address in self._addresses)
        return open_store(parse_store_url(f"etcd://{WEBHOOK}:{PASSWORD}@{hosts}"))

    def advance(self, seconds: float) -> None:
        self.leases.advance(seconds)

    def forget(self, key: SemaphoreKey) -> None:
        name = str(key)
        prefixes = [f"{kind}/{name}/" for kind in ("queue", "inflight", "denied", "ended")]
        for first, end in [(f"queue/{name}", f"queue/{name}\0"), *((one, one[:-1] + "0") for one in prefixes)]:
            body = {"key": _encoded(first.encode()), "range_end": _encoded(end.encode()), "prev_kv": True}
            for kv in self.leases.post("/v3/kv/deleterange", body).get("prev_kvs", []):
                if "lease" in kv:
                    self.leases.revoke(int(kv["lease"]))

    def dump(self) -> object:
        answer = self.leases.post("/v3/kv/range", {"key": _encoded(b"\0"), "range_end": _encoded(b"\0")})
        return [
            (
                base64.b64decode(kv["key"]),
                base64.b64decode(kv.get("value", "")),
                kv["mod_revision"],
                kv.get("lease", "").zfill(19),
            )
            for kv in answer.get("kvs", [])
        ]

    def begin_epoch(self) -> None:
        value = f"epoch-{next(self._values)}".encode()
        self.leases.post("/v3/kv/put", {"key": _encoded(EPOCH_KEY), "value": _encoded(value)})

    def lose(self, key: SemaphoreKey, permit: str) -> None:
        name = holder_key(str(key), permit).encode()
        (kv,) = self.leases.post("/v3/kv/range", {"key": _encoded(name)})["kvs"]
        self.leases.revoke(int(kv["lease"]))


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
