"""The controller on the real API server: permits follow what the API shows, not only the sidecars' word."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from devcluster.webhook import WebhookProcess
from tests.cluster.e2e import (
    NATIVE,
    Namespace,
    Object,
    Semaphore,
    client_of,
    eventually,
    flags,
    metric,
    opted_in,
    permit_of,
    pod,
)
from tests.cluster.test_e2e_reinvocation import copied, expect_own

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.podrunner import PodRunner
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def watching(
    account: Path, registration: Registration, store: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebhookProcess]:
    """A webhook whose controller may do what the manifests let it, and no more."""
    given = (*flags("redlock", store, store), *NATIVE, f"--kubeconfig={account}")
    with WebhookProcess(tmp_path_factory.mktemp("watching"), flags=given) as webhook:
        registration.use(webhook)
        eventually(lambda: "pods watched" in webhook.log(), "the controller works")
        assert metric(webhook, "leading") == 1
        yield webhook
        assert "seen to" not in webhook.log()


@pytest.fixture(autouse=True)
def registered(watching: WebhookProcess, registration: Registration) -> None:
    registration.use(watching)


def waiting_pod(name: str, key: str, length: int = 3, expiration: int = 600) -> Object:
    """A pod whose sidecar never starts: it waits for a gate of somebody else's."""
    return pod(name, opted_in(key, length, expiration), schedulingGates=[{"name": "example.com/hold"}])


def reclaims(webhook: WebhookProcess, reason: str) -> float:
    return metric(webhook, "reclaims_total", reason=reason)


def test_the_permit_of_a_deleted_pod_is_free_at_once(
    namespace: Namespace, store: RedisServer, watching: WebhookProcess
) -> None:
    semaphore = Semaphore(store, namespace.name, "deleted")
    before = reclaims(watching, "gone")
    namespace.create(waiting_pod("one", "deleted"))
    assert semaphore.held == 1
    namespace.delete("one", grace=0)
    assert eventually(lambda: semaphore.held == 0, "the permit is free") < 2
    assert reclaims(watching, "gone") == before + 1


def test_the_permit_of_a_pod_that_finished_is_free_though_its_sidecar_is_dead(
    namespace: Namespace, store: RedisServer, control_plane: ControlPlane
) -> None:
    semaphore = Semaphore(store, namespace.name, "finished")
    namespace.create(waiting_pod("one", "finished"))
    path = f"/api/v1/namespaces/{namespace.name}/pods/one/status"
    control_plane.request("PATCH", path, {"status": {"phase": "Failed"}}, "application/merge-patch+json")
    assert eventually(lambda: semaphore.held == 0, "the permit is free") < 2


def test_the_permits_of_a_deleted_namespace_are_free(
    namespace: Namespace, control_plane: ControlPlane, store: RedisServer
) -> None:
    semaphore = Semaphore(store, namespace.name, "many")
    for number in range(20):
        namespace.create(waiting_pod(f"pod-{number}", "many", length=20))
    assert semaphore.held == 20
    control_plane.request("DELETE", f"/api/v1/namespaces/{namespace.name}")
    eventually(lambda: not namespace.pods(), "the pods are gone")
    assert eventually(lambda: semaphore.held == 0, "all permits are free") < 2


def test_a_reservation_whose_pod_a_quota_rejected_is_free_after_its_bound(
    namespace: Namespace, store: RedisServer, control_plane: ControlPlane, watching: WebhookProcess
) -> None:
    semaphore = Semaphore(store, namespace.name, "rejected")
    before = reclaims(watching, "never_stored")
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    control_plane.request("POST", f"/api/v1/namespaces/{namespace.name}/resourcequotas", quota)

    def rejected() -> bool:
        return "exceeded quota" in namespace.try_create(pod("one", opted_in("rejected", 9, 600))).message

    eventually(rejected, "the quota holds")
    assert semaphore.held >= 1
    assert eventually(lambda: semaphore.held == 0, "the reservations are free", timeout=25) < 20
    assert reclaims(watching, "never_stored") > before


def test_a_pod_that_takes_longer_than_its_expiration_to_start_keeps_its_permit(
    namespace: Namespace, store: RedisServer
) -> None:
    semaphore = Semaphore(store, namespace.name, "slow")
    created = namespace.create(waiting_pod("one", "slow", length=1, expiration=2))
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert list(semaphore.leases) == [permit_of(created)]
        refused = namespace.try_create(waiting_pod("two", "slow", length=1, expiration=2), dryRun="All")
        assert refused.status == 403
        time.sleep(0.1)
    assert semaphore.confirmed() == 0
    assert semaphore.holder(permit_of(created))["uid"] == created["metadata"]["uid"]


def test_a_pod_whose_sidecar_is_killed_keeps_its_permit_while_it_runs(
    namespace: Namespace, store: RedisServer, runner: PodRunner, watching: WebhookProcess
) -> None:
    semaphore = Semaphore(store, namespace.name, "killed")
    namespace.create(pod("one", opted_in("killed", 1, 2)))
    eventually(lambda: semaphore.confirmed() == 1, "the sidecar renews")
    runner.kill_sidecar(namespace.name, "one", signal.SIGKILL)
    eventually(lambda: "sidecar is silent" in watching.log(), "it is reported")
    assert semaphore.held == 1
    assert namespace.try_create(pod("two", opted_in("killed", 1, 2)), dryRun="All").status == 403
    namespace.delete("one", grace=0)
    eventually(lambda: semaphore.held == 0, "the permit is free")


def test_a_permit_that_was_taken_back_too_early_is_given_again(
    namespace: Namespace, store: RedisServer, control_plane: ControlPlane
) -> None:
    semaphore = Semaphore(store, namespace.name, "early")
    created = namespace.create(waiting_pod("one", "early", length=1))
    assert client_of(store).zrem(f"inflight/{{{namespace.name}/early}}", permit_of(created)) == 1
    eventually(lambda: list(semaphore.leases) == [permit_of(created)], "the pod has its permit again", timeout=10)


def test_a_denied_replica_set_is_woken_when_a_permit_is_free(
    namespace: Namespace, store: RedisServer, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, "woken")
    namespace.create(pod("first", opted_in("woken", 1, 600)))
    eventually(lambda: semaphore.confirmed() == 1, "the first one runs")
    template = pod("x", opted_in("woken", 1, 600))
    labels = {"app": "second"}
    namespace.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "second"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": template["metadata"]["annotations"]},
                    "spec": template["spec"],
                },
            },
        }
    )
    client = client_of(store)
    denied = f"queue/{{{namespace.name}/woken}}/denied"
    eventually(lambda: client.zcard(denied) == 1, "the second one was denied")
    # After a few tries the ReplicaSet waits for seconds before the next.
    time.sleep(4)
    namespace.delete("first")
    took = eventually(lambda: namespace.pods("app=second"), "the second one is created")
    assert took < 2


@pytest.mark.parametrize("name", ["named", "generated-"])
def test_a_copy_of_a_pod_that_was_only_just_stored_never_shares_its_permit(
    namespace: Namespace, store: RedisServer, name: str
) -> None:
    semaphore = Semaphore(store, namespace.name, "copy")
    original = namespace.create(waiting_pod(name, "copy"))["metadata"]["name"]
    eventually(lambda: semaphore.holder(next(iter(semaphore.leases)))["uid"], "the pod was seen")
    copy = copied(namespace, original, "")
    del copy["metadata"]["name"]
    copy["metadata"]["generateName"] = "generated-"
    expect_own(namespace, semaphore, original, namespace.create(copy)["metadata"]["name"])
