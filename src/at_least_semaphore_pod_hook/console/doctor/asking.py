"""A look at the servers of store and lock, each by itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError, ResponseError

from at_least_semaphore_pod_hook.console.doctor.servers import Data, Seen
from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.etcd import Client, EtcdRefusedError, EtcdUnavailableError, Range
from at_least_semaphore_pod_hook.redis_client import Asker
from at_least_semaphore_pod_hook.semaphore.versions import DATA_VERSION, check_version
from at_least_semaphore_pod_hook.stores.opening import open_store
from at_least_semaphore_pod_hook.stores.redis.cluster import Nodes
from at_least_semaphore_pod_hook.stores.redis.sentinel import Sentinels
from at_least_semaphore_pod_hook.stores.redis.store import MARK_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl

LOOK_SECONDS = 2.0
MILLION = 1_000_000
SECTIONS = ("server", "replication", "persistence", "memory")


async def look_at_data(url: StoreUrl) -> Data:
    """Use the store as the webhook does: read the mark of its data, and write it."""
    store = open_store(url)
    try:
        try:
            version = await store.version()
            check_version(version)
        except UnavailableError as error:
            return Data(str(error))
        try:
            await store.mark(DATA_VERSION)
        except UnavailableError as error:
            return Data(version=version, refused=str(error))
        return Data(version=version)
    finally:
        await store.close()


async def look_at_store(url: StoreUrl) -> list[Seen]:
    """Look at each server of the store that has data."""
    if url.kind == "etcd":
        return await look_at_all_etcd(url.addresses)
    if url.kind not in {"sentinel", "cluster"}:
        return await look_at_all_redis([url.server])
    lookup = Sentinels(url) if url.kind == "sentinel" else Nodes(url)
    try:
        topology = await lookup.look()
    except UnavailableError as error:
        return [Seen(str(url), str(error))]
    finally:
        await lookup.close()
    return await look_at_all_redis(
        [url.server._replace(host=host, port=port) for host, port in sorted(topology.places)]
    )


async def look_at_all_redis(addresses: Sequence[Address]) -> list[Seen]:
    """Look at Redis or Valkey servers."""
    return list(await asyncio.gather(*map(_look_at_redis, addresses)))


async def look_at_all_etcd(addresses: Sequence[Address]) -> list[Seen]:
    """Look at members of an etcd cluster."""
    return list(await asyncio.gather(*map(_look_at_etcd, addresses)))


def _stranger(address: Address) -> Address:
    """Return the same place, for somebody who has nothing to show."""
    return address._replace(
        username="", password="", username_file="", password_file="", cert_file="", key_file="", database=0
    )


async def _look_at_redis(address: Address) -> Seen:
    where = str(address)
    async with _asking(address) as asker:
        began = time.time()
        try:
            # One after the other: the first opens the connection, which takes its time.
            (clock,) = await asker.ask(("TIME",))
            infos = await asker.ask(*(("INFO", section) for section in SECTIONS))
        except UnavailableError as error:
            return Seen(where, str(error))
        ended = time.time()
    if isinstance(clock, ResponseError):
        return Seen(where, f"{where}: TIME: {clock}")
    here = (began + ended) / 2
    theirs = int(clock[0]) + int(clock[1]) / MILLION
    # Within the time that the question took nobody can tell.
    ahead = 0.0 if began <= theirs <= ended else theirs - here
    info: dict[bytes, bytes] = {}
    for text in infos:
        if not isinstance(text, ResponseError):
            lines = (line.partition(b":") for line in bytes(text).splitlines())
            info |= {name: value for name, _, value in lines}
    name = info.get(b"server_name", b"redis").decode()
    version = info.get(f"{name}_version".encode(), info.get(b"redis_version", b"of unknown version")).decode()
    tls = None if address.path else address.tls
    return Seen(where, "", f"{name.capitalize()} {version}", ahead, await _redis_is_open(address), tls, info)


@asynccontextmanager
async def _asking(address: Address) -> AsyncGenerator[Asker]:
    asker = Asker(address, LOOK_SECONDS)
    try:
        yield asker
    finally:
        await asker.close()


async def _redis_is_open(address: Address) -> bool:
    async with _asking(_stranger(address)) as asker:
        try:
            (answer,) = await asker.ask(("GET", MARK_KEY))
        except UnavailableError:
            return False
    return not isinstance(answer, NoPermissionError)


async def _look_at_etcd(address: Address) -> Seen:
    where = str(address)
    async with _member(address) as client:
        try:
            status = await client.exchange("/v3/maintenance/status", {})
        except (EtcdUnavailableError, EtcdRefusedError) as error:
            return Seen(where, str(error))
    alarms = tuple(map(str, status.get("errors", ())))
    if not status.get("leader"):
        alarms = (*alarms, "it has no leader")
    version = f"etcd {status.get('version', 'of unknown version')}"
    return Seen(where, "", version, None, await _etcd_is_open(address), address.tls, {}, tuple(dict.fromkeys(alarms)))


@asynccontextmanager
async def _member(address: Address) -> AsyncGenerator[Client]:
    client = Client([address], timeout=LOOK_SECONDS)
    try:
        yield client
    finally:
        await client.close()


async def _etcd_is_open(address: Address) -> bool:
    async with _member(_stranger(address)) as client:
        try:
            await client.range(Range(MARK_KEY.encode()))
        except (EtcdUnavailableError, EtcdRefusedError):
            return False
    return True
