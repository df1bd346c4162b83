"""Whatever happens to a holder, its permit is free again soon after the API server shows it, and Events say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster.errors import DevClusterError
from devcluster.podspec import STOP_SECONDS
from tests.cluster.e2e import Namespace, Object, Semaphore, client_of, eventually, opted_in, permit_of, pod
from tests.cluster.gating import (
    AT_ONCE_SECONDS,
    WHEN_FULL,
    History,
    bind,
    events,
    reported,
    uid,
)
from tests.cluster.test_e2e_workloads import workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devcluster.controlplane import ControlPlane
    from devcluster.podrunner import PodRunner
    from devcluster.stores import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("registered")]

KEY = "seats"
NEVER_STORED_SECONDS = 15.0
"""How long a pod may take from admission to being stored."""


@pytest.fixture
def lost_node(control_plane: ControlPlane) -> Iterator[str]:
    """A node that the test deletes."""
    name = "node-lost"
    control_plane.request("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    control_plane.request("PATCH", f"/api/v1/nodes/{name}/status", ready, "application/strategic-merge-patch+json")
    yield name
    # Gone already, save where the test failed early.
    if any(node["metadata"]["name"] == name for node in control_plane.request("GET", "/api/v1/nodes")["items"]):
        control_plane.request("DELETE", f"/api/v1/nodes/{name}")


def removed(namespace: Namespace, name: str) -> bool:
    try:
        namespace.get(name)
    except DevClusterError:
        return True
    return False


def fail(namespace: Namespace, name: str, **status: object) -> None:
    body = {"status": {"phase": "Failed", **status}}
    namespace.control_plane.request(
        "PATCH", f"{namespace.path}/{name}/status", body, "application/strategic-merge-patch+json"
    )


def delete_by_force(namespace: Namespace, name: str) -> None:
    namespace.delete(name, grace=0)


def evict_as_a_kubelet_does(namespace: Namespace, name: str) -> None:
    fail(namespace, name, reason="Evicted", message="The node was low on resource: memory.")


def collect_after_the_loss_of_the_node(namespace: Namespace, name: str) -> None:
    """Do what pod garbage collection does to pods of a node that was deleted.

    It looks every 20 s and then waits for 40 s more, which no flag changes; so this takes its steps in its place.
    """
    namespace.control_plane.request("DELETE", "/api/v1/nodes/node-lost")
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
    fail(namespace, name, conditions=[condition])
    namespace.delete(name, grace=0)


@pytest.mark.usefixtures("lost_node")
@pytest.mark.parametrize(
    "lose",
    [delete_by_force, evict_as_a_kubelet_does, collect_after_the_loss_of_the_node],
    ids=lambda lose: lose.__name__,
)
def test_the_permits_of_lost_pods_are_free_and_the_next_are_served(
    namespace: Namespace, store: RedisServer, history: History, lose: Callable[[Namespace, str], None]
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    for name in ("one", "two", "next"):
        namespace.create(pod(name, opted_in(KEY, 2, 600)))
    history.until_served(2)
    for name in ("one", "two"):
        bind(namespace, name, "node-lost")
    lost = {name: uid(namespace.get(name)) for name in ("one", "two")}

    lose(namespace, "one")

    assert history.until_served(3, AT_ONCE_SECONDS) < AT_ONCE_SECONDS
    assert history.most_active == 2
    assert set(semaphore.leases) == {lost["two"], uid(namespace.get("next"))}
    eventually(lambda: reported(namespace, "PermitReclaimed") == {("Pod", "one")}, "it is reported", timeout=10)
    (event,) = events(namespace, "PermitReclaimed")
    assert event["regarding"]["uid"] == lost["one"]
    assert KEY in event["note"]
    for name in ("two", "next"):
        namespace.delete(name, grace=0)
    assert eventually(lambda: semaphore.held == 0, "all permits are free") < AT_ONCE_SECONDS
    assert semaphore.length == 2


def denied(store: RedisServer, namespace: Namespace) -> int:
    found: int = client_of(store).zcard(f"queue/{{{namespace.name}/{KEY}}}/denied")
    return found


def deployment(name: str) -> Object:
    return workload("Deployment", name, 1, {**opted_in(KEY, 1, 600), WHEN_FULL: "deny"})


def test_the_owner_of_a_denied_pod_is_woken_and_told(namespace: Namespace, store: RedisServer) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    holder = namespace.create(pod("holder", {**opted_in(KEY, 1, 600), WHEN_FULL: "deny"}))
    namespace.apply(deployment("second"))
    eventually(lambda: denied(store, namespace) == 1, "the second is denied")

    namespace.delete("holder", grace=0)
    took = eventually(lambda: namespace.pods("app=second"), "the second is created")

    assert took < AT_ONCE_SECONDS
    assert list(semaphore.leases) == [permit_of(namespace.pods("app=second")[0])]
    eventually(lambda: reported(namespace, "Woken"), "the owner is told", timeout=10)
    ((kind, name),) = reported(namespace, "Woken")
    assert kind == "ReplicaSet"
    assert name.startswith("second-")
    eventually(lambda: reported(namespace, "PermitReclaimed") == {("Pod", "holder")}, "it is reported", timeout=10)
    assert events(namespace, "PermitReclaimed")[0]["regarding"]["uid"] == uid(holder)


def test_a_reservation_whose_pod_was_never_stored_is_free_and_its_owner_is_woken(
    namespace: Namespace, store: RedisServer, control_plane: ControlPlane
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    quotas = f"/api/v1/namespaces/{namespace.name}/resourcequotas"
    control_plane.request("POST", quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})

    def minded() -> bool:
        return "exceeded quota" in namespace.try_create(pod("probe"), dryRun="All").message

    eventually(minded, "the quota holds")
    namespace.apply(deployment("rejected"))
    eventually(lambda: denied(store, namespace) == 1, "the first try took the permit, a later one is denied for it")
    assert semaphore.held == 1
    assert namespace.pods() == []
    control_plane.request("DELETE", f"{quotas}/none")

    took = eventually(lambda: namespace.pods("app=rejected"), "the pod is created", timeout=25)

    assert took < NEVER_STORED_SECONDS + AT_ONCE_SECONDS
    assert list(semaphore.leases) == [permit_of(namespace.pods("app=rejected")[0])]
    eventually(lambda: reported(namespace, "Woken"), "the owner is told", timeout=10)


def test_a_pod_that_is_gone_loses_its_permit_though_its_sidecar_still_renews(
    namespace: Namespace, store: RedisServer, history: History, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    annotated = {**opted_in(KEY, 1, 3), STOP_SECONDS: "8"}
    namespace.create(pod("one", annotated))
    eventually(lambda: semaphore.confirmed() == 1, "the sidecar runs")
    namespace.create(pod("next", annotated))

    namespace.delete("one", grace=0)
    eventually(lambda: removed(namespace, "one"), "it is gone")

    assert history.until_served(2, AT_ONCE_SECONDS) < AT_ONCE_SECONDS
    pid = runner.sidecar_pid(namespace.name, "one")
    eventually(
        lambda: "not ours any more" in runner.sidecar_log(namespace.name, "one"), f"sidecar {pid} is told", timeout=5
    )
    assert list(semaphore.leases) == [uid(namespace.get("next"))]
    namespace.delete("next", grace=0)
