"""What befalls a pod and its sidecar, under the manifests as they are shipped."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import SIDECAR, eventually
from tests.node.starts import start_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.node.product import Product
    from tests.node.conftest import Scene
    from tests.node.workloads import Journal

# Joins a cgroup and takes memory there, a megabyte at a time, until somebody's is taken away or it has 64 of them.
_HOG = """
import os, pathlib, sys, time
group = pathlib.Path(sys.argv[1])
victims = set((group / "cgroup.procs").read_text().split())
pathlib.Path("/proc/self/oom_score_adj").write_text("0")
(group / "cgroup.procs").write_text(str(os.getpid()))
taken = []
while len(taken) < 64 and victims & set((group / "cgroup.procs").read_text().split()):
    taken.append(bytearray(os.urandom(1 << 20)))
"""


@pytest.fixture(scope="module", autouse=True)
def shipped(product: Product, cron: Journal) -> None:
    product.configure()


def sidecar_cgroup(scene: Scene, pod: str) -> Path:
    node = next(each for each in scene.cluster.nodes if each.name == scene.namespace.get(pod)["spec"]["nodeName"])
    return node.container_cgroup(scene.status(pod, SIDECAR)["containerID"])


def test_starts_without_confirmation(scene: Scene) -> None:
    seconds = start_seconds(scene)
    scene.record("creation to main container, shipped flags", f"p50 of 5: {statistics.median(seconds):.2f} s")


def test_the_sidecars_memory(scene: Scene) -> None:
    journal = scene.journal()
    scene.create_pod("one", scene.template(journal, annotated={"expiration": 10}))
    scene.runs(journal, 1)
    eventually(lambda: scene.semaphore(journal).confirmed() == 1, "the sidecar has renewed")
    group = sidecar_cgroup(scene, "one")
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used, limit = (int((group / f"memory.{name}_in_bytes").read_text()) for name in ("usage", "limit"))
    anonymous = int(stat["total_rss"])
    assert anonymous < limit / 2
    peak = int((group / "memory.max_usage_in_bytes").read_text())
    assert peak < limit
    text = f"anonymous {anonymous / 2**20:.1f} MiB, with page cache {used / 2**20:.1f}, at most {peak / 2**20:.1f}"
    scene.record("the sidecar's memory, by its cgroup", f"{text}, of {limit / 2**20:.0f} MiB")


def test_a_sidecar_that_is_killed_for_its_memory_keeps_the_permit(scene: Scene) -> None:
    journal = scene.journal()
    scene.create("Deployment", "web", scene.template(journal), replicas=2)
    (pod,) = scene.runs(journal, 1)
    eventually(lambda: scene.semaphore(journal).confirmed() == 1, "the sidecar has renewed")
    before = scene.semaphore(journal).leases.keys()
    group = sidecar_cgroup(scene, pod)
    subprocess.run([sys.executable, "-c", _HOG, str(group)], check=False)
    eventually(lambda: scene.status(pod, SIDECAR).get("restartCount") == 1, "the sidecar has been started again")
    last = scene.status(pod, SIDECAR)["lastState"]["terminated"]
    assert last["reason"] == "OOMKilled", last
    assert scene.status(pod, "main")["restartCount"] == 0
    assert scene.semaphore(journal).leases.keys() == before
    assert len(journal.stretches()) == 1
    scene.record("sidecar killed for its memory (OOMKilled)", "restarted; permit kept; the work ran on")


def test_a_pod_that_is_deleted_by_force(scene: Scene) -> None:
    journal = scene.journal()
    scene.create("Deployment", "web", scene.template(journal, linger=2), replicas=1)
    (first,) = scene.runs(journal, 1)
    scene.namespace.kubectl("delete", "pod", first, "--grace-period=0", "--force")
    eventually(lambda: len(journal.stretches()) == 2, "a successor runs")
    eventually(lambda: first not in scene.beating(journal), "the deleted pod's work has ended")
    # The API server forgets the pod before its kubelet has ended anything: what can still run is nobody's to see.
    overlap = journal.overlap(1)
    assert overlap < 35
    eventually(lambda: scene.semaphore(journal).held == 1, "one permit is held")
    scene.record("`kubectl delete --grace-period=0 --force`, work that takes 2 s to end", f"overlap {overlap:.2f} s")


def test_the_work_of_a_deleted_pod_ends_before_its_sidecar(scene: Scene) -> None:
    journal = scene.journal()
    scene.create_pod("first", scene.template(journal, linger=3))
    scene.runs(journal, 1)
    scene.create_pod("second", scene.template(journal))
    eventually(lambda: scene.gated() == ["second"], "the second one waits")
    deleted = time.monotonic()
    scene.namespace.kubectl("delete", "pod", "first", "--wait=false")
    eventually(lambda: len(journal.stretches()) == 2, "the second one runs")
    (first,), (second,) = journal.of("first"), journal.of("second")
    assert journal.overlap(1) == 0
    said = f"ended {first.end - deleted:.2f} s after the deletion, the successor's began {second.start - first.end:.2f}"
    scene.record("native sidecar; `kubectl delete`, work that takes 3 s to end", f"{said} s later; overlap 0")
