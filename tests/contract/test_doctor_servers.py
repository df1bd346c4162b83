"""What doctor sees of real servers, of every kind of store, and as whom the documents say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.console.doctor.asking import look_at_data, look_at_store
from at_least_semaphore_pod_hook.semaphore.versions import DATA_VERSION
from tests.contract.accounts import PASSWORD, WEBHOOK, let_in

if TYPE_CHECKING:
    from devcluster.topologies import RedisCluster, SentinelGroup
    from devcluster.topologies_etcd import EtcdGroup
    from tests.sidecar_harness import Server


@pytest.fixture(params=["sentinel", "cluster", "etcd"])
def url(request: pytest.FixtureRequest) -> tuple[str, int]:
    """A store's URL, and how many servers have its data."""
    if request.param == "sentinel":
        sentinels: SentinelGroup = request.getfixturevalue("sentinel_group")
        return sentinels.url, 1
    if request.param == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        return cluster.url, len(cluster.servers)
    group: EtcdGroup = request.getfixturevalue("etcd_group")
    hosts = ",".join(f"127.0.0.1:{member.port}" for member in group.members)
    return f"etcd://{WEBHOOK}:{PASSWORD}@{hosts}", len(group.members)


async def test_every_server_that_has_data_is_looked_at(url: tuple[str, int]) -> None:
    text, count = url
    seen = await look_at_store(parse_store_url(text))
    assert len(seen) == count
    for each in seen:
        assert (each.trouble, each.open, each.tls, each.alarms) == ("", "@" not in text, False, ())
        assert each.version.split()[0] in {"Redis", "Valkey", "Etcd", "etcd"}
        assert each.ahead in {0.0, None}
    assert (await look_at_data(parse_store_url(text))).trouble == ""


async def test_the_documented_rights_are_enough(server: Server) -> None:
    let_in(server.client, "users.acl")
    client: Any = server.client
    client.execute_command("ACL", "SETUSER", "default", "resetkeys", "-@all", "+ping")
    url = parse_store_url(f"redis://{WEBHOOK}:{PASSWORD}@{server.address}")
    (seen,) = await look_at_store(url)
    assert (seen.trouble, seen.open) == ("", False)
    assert seen.info[b"aof_enabled"] == b"1"
    data = await look_at_data(url)
    assert (data.trouble, data.version, data.refused) == ("", 0, "")
    assert (await look_at_data(url)).version == DATA_VERSION
