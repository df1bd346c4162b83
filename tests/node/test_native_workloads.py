"""Workloads of every kind, under the manifests as they are shipped: native sidecars that release on exit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import eventually
from tests.node.deployments import deployment_keeps_to_its_length, handover

if TYPE_CHECKING:
    from devcluster.node.product import Product
    from tests.node.conftest import Scene
    from tests.node.workloads import Journal


@pytest.fixture(scope="module", autouse=True)
def shipped(product: Product) -> None:
    product.configure()


@pytest.mark.parametrize("when_full", ["gate", "deny"])
def test_a_deployment_keeps_to_its_length(scene: Scene, when_full: str) -> None:
    journal = scene.journal()
    seen = deployment_keeps_to_its_length(scene, journal, when_full)
    assert scene.semaphore(journal).held == 2
    scene.record(f"Deployment of 3, length 2, `{when_full}`; one pod deleted", seen)


def test_a_stateful_set_keeps_to_its_length(scene: Scene) -> None:
    journal = scene.journal()
    scene.create("StatefulSet", "db", scene.template(journal), replicas=2, podManagementPolicy="Parallel")
    (first,) = scene.runs(journal, 1)
    eventually(lambda: len(scene.gated()) == 1, "the other one waits")
    scene.namespace.delete(first)
    eventually(lambda: len(journal.stretches()) == 2, "the other one runs")
    assert scene.runs(journal, 1) != [first]
    assert journal.overlap(1) == 0
    scene.record(
        "StatefulSet of 2, length 1, `gate`; the running pod deleted", f"hand-over {handover(journal, first):.2f} s"
    )


def test_a_job_completes(scene: Scene) -> None:
    journal = scene.journal()
    made = scene.template(journal, run=1, restartPolicy="Never")
    scene.create("Job", "work", made, completions=3, parallelism=3)
    started = time.monotonic()
    scene.namespace.kubectl("wait", "--for=condition=complete", "--timeout=60s", "job/work")
    assert len(journal.stretches()) == 3
    assert journal.overlap(1) == 0
    scene.record("Job of 3 pods of 1 s, length 1, `gate`", f"complete after {time.monotonic() - started:.1f} s")
    eventually(lambda: scene.semaphore(journal).held == 0, "all permits are free")


def test_a_daemon_set_runs_on_one_node_at_a_time(scene: Scene) -> None:
    journal = scene.journal()
    scene.create("DaemonSet", "agent", scene.template(journal))
    (first,) = scene.runs(journal, 1)
    eventually(lambda: len(scene.gated()) == 1, "the other node's pod waits")
    scene.namespace.delete(first)
    eventually(lambda: len(journal.stretches()) == 2, "the other node's pod runs")
    assert journal.overlap(1) == 0
    scene.record("DaemonSet on 2 nodes, length 1, `gate`; the running pod deleted", f"{handover(journal, first):.2f} s")


def test_a_drained_nodes_pod_moves_without_overlap(scene: Scene) -> None:
    journal, kubectl = scene.journal(), scene.cluster.plane.kubectl
    kubectl("cordon", "node-1")
    scene.create("Deployment", "web", scene.template(journal, linger=2), replicas=1)
    (first,) = scene.runs(journal, 1)
    kubectl("uncordon", "node-1")
    kubectl("drain", "node-2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
    eventually(lambda: len(journal.stretches()) == 2, "it runs on the other node")
    kubectl("uncordon", "node-2")
    assert journal.overlap(1) == 0
    scene.record(
        "`kubectl drain`, work that takes 2 s to end", f"overlap 0; hand-over {handover(journal, first):.2f} s"
    )


def test_the_cron_job_has_run(cron: Journal, product: Product, scene: Scene) -> None:
    def complete() -> bool:
        jobs = product.cluster.plane.request("GET", f"/apis/batch/v1/namespaces/{cron.name}/jobs")["items"]
        return any(job["status"].get("succeeded") == 2 for job in jobs)

    eventually(complete, "a job of the CronJob is complete", 75)
    assert cron.overlap(1) == 0
    product.cluster.plane.request("DELETE", f"/api/v1/namespaces/{cron.name}")
    scene.record("CronJob of 2 pods of 2 s, length 1, `gate`", "complete; overlap 0")
