"""Admission by a real API server: dry runs, rejections after ours, what is asked at all, and what kubectl prints."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.errors import DevClusterError
from devcluster.stores import RedisServer
from tests.cluster.e2e import (
    DOMAIN,
    PREFIX,
    SIDECAR,
    Namespace,
    Semaphore,
    admissions,
    client_of,
    eventually,
    flags,
    metric,
    opted_in,
    permit_of,
    pod,
    sidecars,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import EtcdServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

WRITES = "set setex psetex setnx del unlink expire pexpire pexpireat hset hdel hincrby zadd zrem incr rename flushall"


def everything(store: RedisServer, locks: EtcdServer) -> tuple[Any, ...]:
    """Return all that both stores hold, with when it expires, and how often each writing command was called."""
    client = client_of(store)
    contents = {key: (client.pexpiretime(key), raw_dump(store, key)) for key in sorted(client.scan_iter())}
    stats = client.info("commandstats")
    calls = {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in WRITES.split()}
    connection = http.client.HTTPConnection("127.0.0.1", locks.port, timeout=10)
    connection.request("POST", "/v3/maintenance/status", "{}")
    revision = json.load(connection.getresponse())["header"]["revision"]
    connection.close()
    return contents, calls, revision


def at_rest(store: RedisServer, locks: EtcdServer) -> tuple[Any, ...]:
    """Return the same once it stays the same: what ended before may still be giving its lock back."""
    seen: list[tuple[Any, ...]] = []

    def unchanged() -> bool:
        seen.append(everything(store, locks))
        time.sleep(0.2)
        return everything(store, locks) == seen[-1]

    eventually(unchanged, "nothing is written any more")
    return seen[-1]


def raw_dump(store: RedisServer, key: str) -> bytes:
    """Return a key's value as DUMP gives it, which is no text."""
    client = client_of(store)
    client.connection_pool.connection_kwargs["decode_responses"] = False
    dumped: bytes = client.dump(key)
    return dumped


def dry_run(namespace: Namespace, made: dict[str, Any]) -> tuple[int, str]:
    """Create a pod by kubectl on the server, without it being stored."""
    return namespace.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=made)


@pytest.fixture
def quiet_store(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that no sidecar and no other webhook writes to."""
    with RedisServer(tmp_path / "quiet") as server:
        yield server


class TestDryRun:
    @pytest.fixture(params=["redlock", "etcd"])
    def own(
        self,
        request: pytest.FixtureRequest,
        quiet_store: RedisServer,
        lock_etcd: EtcdServer,
        new_webhook: Callable[..., WebhookProcess],
        registration: Registration,
    ) -> WebhookProcess:
        locks = lock_etcd if request.param == "etcd" else quiet_store
        native = ["--enable-sidecar-containers"] if request.param == "etcd" else []
        webhook = new_webhook(*flags(request.param, quiet_store, locks), *native)
        registration.use(webhook)
        return webhook

    @pytest.mark.usefixtures("own")
    def test_it_answers_as_the_real_one_would_and_writes_nothing(
        self, namespace: Namespace, quiet_store: RedisServer, lock_etcd: EtcdServer
    ) -> None:
        gate = [{"name": "example.com/hold"}]
        namespace.create(pod("holder", opted_in("used", 2, 600), schedulingGates=gate))
        before = at_rest(quiet_store, lock_etcd)
        assert len(before[0]) == 4  # the three of the semaphore, and the mark of the data

        for made in (
            pod("free", opted_in("used", 2)),
            pod("free-again", opted_in("used", 2)),
            pod("never-used", opted_in("never-used", 1)),
            pod("resized", opted_in("used", 5)),
        ):
            code, printed = dry_run(namespace, made)
            assert code == 0, printed
            answered, _ = json.JSONDecoder().raw_decode(printed, printed.index("{"))
            assert [one["name"] for one in sidecars(answered)] == [SIDECAR]
            assert ("disagree on its length" in printed) == (made["metadata"]["name"] == "resized")

        assert everything(quiet_store, lock_etcd) == before
        assert [one["metadata"]["name"] for one in namespace.pods()] == ["holder"]

    @pytest.mark.usefixtures("own")
    def test_it_is_denied_where_the_real_one_would_be(
        self, namespace: Namespace, quiet_store: RedisServer, lock_etcd: EtcdServer
    ) -> None:
        gate = [{"name": "example.com/hold"}]
        namespace.create(pod("holder", opted_in("full", 1, 600), schedulingGates=gate))
        before = at_rest(quiet_store, lock_etcd)

        code, printed = dry_run(namespace, pod("too-many", opted_in("full", 1)))

        assert code == 1
        assert "no semaphore available: 1 of 1 permits" in printed
        assert "holder" in printed
        assert everything(quiet_store, lock_etcd) == before


def test_a_pod_that_a_quota_rejects_leaves_its_permit_for_its_expiration_only(
    namespace: Namespace,
    quiet_store: RedisServer,
    new_webhook: Callable[..., WebhookProcess],
    registration: Registration,
) -> None:
    webhook = new_webhook(*flags("redlock", quiet_store, quiet_store))
    registration.use(webhook)
    semaphore = Semaphore(quiet_store, namespace.name, "quota")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    namespace.apply(quota)
    path = f"/api/v1/namespaces/{namespace.name}/resourcequotas/none"
    eventually(lambda: namespace.control_plane.request("GET", path)["status"].get("hard"), "the quota is in force")

    reply = namespace.try_create(pod("rejected", opted_in("quota", 1, 2)))

    assert reply.status == 403
    assert "exceeded quota" in reply.message
    assert namespace.pods() == []
    assert metric(webhook, "admissions_total", decision="patched") >= 1
    assert semaphore.held == 1
    eventually(lambda: semaphore.held == 0, "the permit is back with its expiration", timeout=2.5)
    # Reported by the sweep, which comes every five seconds.
    eventually(lambda: metric(webhook, "reclaimed_permits_total") == 1, "it is counted", timeout=10)
    assert "expired permits reclaimed" in webhook.log()
    namespace.control_plane.request("DELETE", path)
    eventually(lambda: namespace.try_create(pod("next", opted_in("quota", 1, 600))).status == 201, "it is free")


class TestWhatIsAsked:
    def test_unannotated_pods_reach_no_webhook(self, namespace: Namespace, webhook: WebhookProcess) -> None:
        before = admissions(webhook)
        others = {PREFIX + "key": "any", "example.com/at-least-semaphore-pod": "true"}

        for made in (pod("plain"), pod("annotated", others)):
            assert sidecars(namespace.create(made)) == []

        assert admissions(webhook) == before
        opted_out = opted_in("any", 1) | {PREFIX + "at-least-semaphore-pod": "false"}
        assert sidecars(namespace.create(pod("opted-out", opted_out))) == []
        assert admissions(webhook) == before + 1

    @pytest.mark.usefixtures("webhook")
    @pytest.mark.parametrize("webhook", ["redlock-ordinary"], indirect=True)
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("at-least-semaphore-pod", "yes"),
            ("key", None),
            ("key", ""),
            ("key", "no/slash"),
            ("length", "0"),
            ("length", "1000001"),
            ("length", "three"),
            ("expiration", "1.5"),
            ("expiration", "86401"),
            ("expiration", "6\n0"),
        ],
    )
    def test_a_bad_annotation_is_denied_by_name(self, namespace: Namespace, name: str, value: str | None) -> None:
        annotated = opted_in("bad", 3)
        if value is None:
            del annotated[PREFIX + name]
        else:
            annotated[PREFIX + name] = value

        reply = namespace.try_create(pod("bad", annotated))

        assert reply.status == 400, reply.body
        assert f"annotation {PREFIX}{name}" in reply.message
        assert (f": {value!a} is not accepted" if value is not None else " is missing") in reply.message
        assert namespace.pods() == []

    @pytest.mark.usefixtures("webhook")
    def test_kubectl_prints_why(self, namespace: Namespace) -> None:
        code, printed = namespace.kubectl("create", "-f", "-", stdin=pod("bad", opted_in("bad", "many")))

        assert code == 1
        wanted = f"annotation {PREFIX}length: 'many' is not accepted: it takes a whole number from 1 to 1000000"
        assert wanted in printed

    @pytest.mark.usefixtures("webhook")
    def test_kubectl_warns_where_pods_disagree_on_the_length(self, namespace: Namespace, store: RedisServer) -> None:
        namespace.create(pod("first", opted_in("length", 2, 600)))

        code, printed = namespace.kubectl("create", "-f", "-", stdin=pod("second", opted_in("length", 3, 600)))

        assert code == 0, printed
        warning = (
            f"Warning: pods of semaphore {namespace.name}/length disagree on its length: 2 so far, 3 by this pod's"
        )
        assert warning in printed
        assert Semaphore(store, namespace.name, "length").length == 3
        _, printed = namespace.kubectl("create", "-f", "-", stdin=pod("third", opted_in("length", 3, 600)))
        assert "Warning" not in printed


@pytest.fixture
def spared(control_plane: ControlPlane) -> list[Namespace]:
    """The namespaces that never wait for the webhook."""
    try:
        control_plane.request("GET", f"/api/v1/namespaces/{DOMAIN.partition('.')[0]}")
    except DevClusterError:
        control_plane.create_namespace(DOMAIN.partition(".")[0])
    return [Namespace(control_plane, name) for name in ("kube-system", DOMAIN.partition(".")[0])]


def test_with_the_webhook_down_only_opted_in_pods_are_refused(
    namespace: Namespace,
    spared: list[Namespace],
    quiet_store: RedisServer,
    new_webhook: Callable[..., WebhookProcess],
    registration: Registration,
) -> None:
    webhook = new_webhook(*flags("redlock", quiet_store, quiet_store))
    registration.use(webhook)
    namespace.create(pod("before", opted_in("down", 5, 600)))
    webhook.process.kill()

    refused = namespace.try_create(pod("refused", opted_in("down", 5, 600)))

    assert refused.status == 500
    assert "failed calling webhook" in refused.message
    assert f"mutate.{DOMAIN}" in refused.message
    namespace.create(pod("plain"))
    for other in spared:
        assert sidecars(other.create(pod("spared", opted_in("down", 5)))) == []
        other.delete("spared", grace=0)
    assert {one["metadata"]["name"] for one in namespace.pods()} == {"before", "plain"}

    webhook.start()

    eventually(lambda: namespace.try_create(pod("after", opted_in("down", 5, 600))).status == 201, "it works again")
    held = Semaphore(quiet_store, namespace.name, "down").leases
    assert set(held) == {permit_of(namespace.get(name)) for name in ("before", "after")}
