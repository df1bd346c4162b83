"""Real workloads under a semaphore: permits are taken, held while pods run, and back when they end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import (
    RUN_SECONDS,
    SIDECAR,
    Namespace,
    Object,
    Semaphore,
    eventually,
    opted_in,
    permit_of,
    pod,
    sidecars,
)

if TYPE_CHECKING:
    from devcluster.podrunner import PodRunner
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess

pytestmark = pytest.mark.cluster


def workload(kind: str, name: str, replicas: int, annotated: dict[str, str], **spec: object) -> Object:
    """Return a workload of the group apps."""
    template = {"metadata": {"labels": {"app": name}, "annotations": annotated}, "spec": pod("x")["spec"]}
    selector = {"matchLabels": {"app": name}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": selector, "template": template, **spec},
    }


def denial(namespace: Namespace) -> str:
    """Return why a ReplicaSet could not make its pods, as its status says."""
    path = f"/apis/apps/v1/namespaces/{namespace.name}/replicasets"
    conditions = [
        condition["message"]
        for each in namespace.control_plane.request("GET", path)["items"]
        for condition in each["status"].get("conditions", [])
        if condition["type"] == "ReplicaFailure"
    ]
    return " ".join(conditions)


def running(namespace: Namespace, semaphore: Semaphore, count: int) -> bool:
    """Say whether so many pods run, each with a confirmed permit of its own."""
    found = namespace.running()
    return (
        len(found) == count
        and {permit_of(one) for one in found} == set(semaphore.leases)
        and semaphore.confirmed() == count
    )


def gone(namespace: Namespace, name: str) -> bool:
    """Say whether there is no pod of this name any more, not even one that is being deleted."""
    found = namespace.control_plane.request("GET", namespace.path)["items"]
    return all(item["metadata"]["name"] != name for item in found)


@pytest.mark.usefixtures("webhook", "runner")
def test_two_deployments_share_a_key_and_hand_a_permit_over(namespace: Namespace, store: RedisServer) -> None:
    semaphore = Semaphore(store, namespace.name, "shared")
    for name in ("one", "two"):
        namespace.apply(workload("Deployment", name, 2, opted_in("shared", 3)))

    eventually(lambda: running(namespace, semaphore, 3), "three of the four pods run, with a permit each")
    eventually(lambda: "no semaphore available" in denial(namespace), "the fourth is denied")
    assert "3 of 3" in denial(namespace)
    assert f"{namespace.name}/shared" in denial(namespace)
    assert semaphore.length == 3

    victim = namespace.pods()[0]
    name, permit = victim["metadata"]["name"], permit_of(victim)
    namespace.delete(name)

    eventually(lambda: permit not in semaphore.leases, "the permit is back", timeout=3)
    eventually(lambda: running(namespace, semaphore, 3), "somebody else got it")
    assert name not in {one["metadata"]["name"] for one in namespace.pods()}


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("webhook", ["etcd-native"], indirect=True)
def test_a_job_with_a_native_sidecar_completes(
    namespace: Namespace, store: RedisServer, webhook: WebhookProcess
) -> None:
    semaphore = Semaphore(store, namespace.name, "batch")
    annotated = {**opted_in("batch", 1, 600), RUN_SECONDS: "1"}
    template = {"metadata": {"annotations": annotated}, "spec": {**pod("x")["spec"], "restartPolicy": "Never"}}
    spec = {"template": template, "completions": 2, "parallelism": 1}
    namespace.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}, "spec": spec})

    code, printed = namespace.kubectl("wait", "--for=condition=complete", "job/work", "--timeout=60s")

    assert code == 0, printed
    pods = namespace.pods()
    assert len({permit_of(one) for one in pods}) == 2
    exit_codes = [one["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] for one in pods]
    assert exit_codes == [0, 0]
    assert semaphore.held == 0


@pytest.mark.usefixtures("runner")
def test_a_bare_pod_gets_a_sidecar_that_renews_its_permit(
    namespace: Namespace, store: RedisServer, webhook: WebhookProcess, request: pytest.FixtureRequest
) -> None:
    semaphore = Semaphore(store, namespace.name, "bare")
    inits = [{"name": "set-up", "image": "none"}]

    created = namespace.create(pod("bare", opted_in("bare", 1, 3), initContainers=inits))

    if "native" in request.node.name:
        assert [one["name"] for one in created["spec"]["initContainers"]] == [SIDECAR, "set-up"]
        assert created["spec"]["initContainers"][0]["restartPolicy"] == "Always"
    else:
        assert [one["name"] for one in created["spec"]["containers"]] == ["main", SIDECAR]
    permit = permit_of(created)
    first = semaphore.leases[permit]
    assert not semaphore.holder(permit)["confirmed"]
    eventually(lambda: semaphore.leases[permit] > first + 1, "the sidecar has renewed more than once")
    assert semaphore.holder(permit)["pod"] == "bare"
    assert list(semaphore.leases) == [permit]


@pytest.mark.usefixtures("webhook")
def test_sigterm_gives_the_permit_back_within_a_second(
    namespace: Namespace, store: RedisServer, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, "term")
    namespace.create(pod("term", opted_in("term", 1, 600)))
    eventually(lambda: semaphore.confirmed() == 1, "the sidecar runs")

    runner.kill_sidecar(namespace.name, "term", signal.SIGTERM)

    eventually(lambda: semaphore.held == 0, "the permit is back", timeout=1)
    namespace.create(pod("next", opted_in("term", 1, 600)))


@pytest.mark.usefixtures("webhook")
def test_sigkill_of_a_sidecar_gives_the_permit_back_within_its_expiration(
    namespace: Namespace, store: RedisServer, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, "kill")
    namespace.create(pod("kill", opted_in("kill", 1, 3)))
    eventually(lambda: semaphore.confirmed() == 1, "the sidecar runs")
    pid = runner.sidecar_pid(namespace.name, "kill", timeout=5)

    runner.kill_sidecar(namespace.name, "kill", signal.SIGKILL)
    killed = time.time()

    denied = namespace.try_create(pod("early", opted_in("kill", 1, 3)))
    assert denied.status == 403, denied.body
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the sidecar has ended")
    # The store's clock is this machine's: at this moment its lease is fixed, and nobody renews it.
    (lease_end,) = semaphore.leases.values()
    assert lease_end <= killed + 3.1
    eventually(lambda: semaphore.held == 0, "the permit is back", timeout=lease_end - time.time() + 0.5)
    namespace.create(pod("next", opted_in("kill", 1, 3)))
    assert namespace.get("kill")["status"]["phase"] == "Running"


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("webhook", ["etcd-native"], indirect=True)
def test_a_stateful_sets_pod_comes_back_under_its_name_with_a_permit_of_its_own(
    namespace: Namespace, store: RedisServer, webhook: WebhookProcess
) -> None:
    semaphore = Semaphore(store, namespace.name, "database")
    namespace.apply(workload("StatefulSet", "database", 1, opted_in("database", 1, 600), serviceName="database"))
    eventually(lambda: running(namespace, semaphore, 1), "the pod runs")
    (first,) = namespace.pods()
    token = int(semaphore.holder(permit_of(first))["token"])

    namespace.delete("database-0")
    eventually(
        lambda: [one["metadata"]["uid"] for one in namespace.running()] not in ([], [first["metadata"]["uid"]]),
        "another pod of the name runs",
    )

    (second,) = namespace.pods()
    assert len(sidecars(second)) == 1
    assert list(semaphore.leases) == [permit_of(second)] != [permit_of(first)]
    assert int(semaphore.holder(permit_of(second))["token"]) > token


@pytest.mark.usefixtures("webhook")
def test_a_deleted_pod_leaves_no_process_and_no_permit(
    namespace: Namespace, store: RedisServer, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, "short")
    namespace.create(pod("short", opted_in("short", 1, 600)))
    eventually(lambda: semaphore.confirmed() == 1, "the sidecar runs")
    pid = runner.sidecar_pid(namespace.name, "short", timeout=5)

    namespace.delete("short")

    eventually(lambda: gone(namespace, "short"), "the pod is gone")
    assert semaphore.held == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "gave the permit back" in runner.sidecar_log(namespace.name, "short")
