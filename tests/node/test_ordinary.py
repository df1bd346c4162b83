"""Ordinary sidecars, for clusters without native ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import eventually

if TYPE_CHECKING:
    from devcluster.node.product import Product
    from tests.node.conftest import Scene


@pytest.fixture(scope="module", autouse=True)
def ordinary(product: Product) -> None:
    product.configure(remove=["--enable-sidecar-containers"])


def test_a_job_completes(scene: Scene) -> None:
    journal = scene.journal()
    started = time.monotonic()
    scene.create("Job", "work", scene.template(journal, run=1, restartPolicy="Never"), completions=2, parallelism=2)
    code, said = scene.namespace.kubectl("wait", "--for=condition=complete", "--timeout=60s", "job/work")
    assert code == 0, said
    assert journal.overlap(1) == 0
    scene.record("Job of 2 pods of 1 s, ordinary sidecars", f"complete after {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize("release_on", ["sigterm", "exit"])
def test_a_pod_is_deleted(scene: Scene, release_on: str) -> None:
    journal = scene.journal()
    made = scene.template(journal, annotated={"release_on": release_on}, linger=3, terminationGracePeriodSeconds=10)
    scene.create("Deployment", "web", made, replicas=1)
    (first,) = scene.runs(journal, 1)
    scene.namespace.delete(first)
    eventually(lambda: len(journal.stretches()) == 2, "a successor runs")
    eventually(lambda: first not in scene.beating(journal), "the deleted pod's work has ended")
    overlap = journal.overlap(1)
    if release_on == "exit":
        assert overlap == 0
    else:
        assert overlap < 3.5  # as long as the work takes to end
    scene.record(
        f"ordinary sidecar, `release-on: {release_on}`, work that takes 3 s to end", f"overlap {overlap:.2f} s"
    )
