"""Servers and stores that the tests of the etcd store share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.etcd import Client, Delete
from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore, open_etcd_store
from devcluster.stores import EtcdServer
from devcluster.topologies_etcd import EtcdGroup
from tests.contract.lock_backends import address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.contract.etcd.stores import Opener


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Open stores over servers, or over addresses, and close them at the end of the test."""
    stores: list[EtcdStore] = []

    def make(*servers: Any) -> EtcdStore:
        addresses = [one if isinstance(one, Address) else address(one) for one in servers]
        stores.append(open_etcd_store(addresses))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(etcd_server: EtcdServer, opened: Opener) -> EtcdStore:
    client = Client([address(etcd_server)])
    await client.delete(Delete(b"\0", b"\0"))
    await client.close()
    return opened(etcd_server)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[EtcdGroup]:
    with EtcdGroup(tmp_path) as members:
        yield members
