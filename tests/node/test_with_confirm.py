"""Work that starts only once its permit is confirmed, and a node that is lost and comes back."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import SIDECAR, eventually
from tests.node.starts import start_seconds

if TYPE_CHECKING:
    from devcluster.node.product import Product
    from tests.node.conftest import Scene


@pytest.fixture(scope="module", autouse=True)
def confirming(product: Product) -> None:
    product.configure(add=["--confirm"])


def test_starts_with_confirmation(scene: Scene) -> None:
    seconds = start_seconds(scene)
    scene.record("creation to main container, `--confirm`", f"p50 of 5: {statistics.median(seconds):.2f} s")


def test_work_starts_only_once_the_sidecar_has_confirmed(scene: Scene) -> None:
    journal, plane = scene.journal(), scene.cluster.plane
    store = scene.product.store()["status"]["containerStatuses"][0]["containerID"]
    (pid,) = map(int, (scene.cluster.nodes[0].container_cgroup(store) / "cgroup.procs").read_text().split())
    plane.kubectl("cordon", "node-1")
    plane.kubectl("cordon", "node-2")
    # Admitted while the store answers, started while it does not.
    scene.create_pod("one", scene.template(journal, annotated={"when_full": "deny"}))
    os.kill(pid, signal.SIGSTOP)
    try:
        plane.kubectl("uncordon", "node-2")
        eventually(lambda: "running" in scene.status("one", SIDECAR).get("state", {}), "the sidecar runs")
        held_until = time.monotonic() + 5
        while time.monotonic() < held_until:
            assert not journal.stretches()
            assert scene.status("one", SIDECAR).get("started") is False
            time.sleep(0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
        plane.kubectl("uncordon", "node-1")
    resumed = time.monotonic()
    scene.runs(journal, 1)
    waited = journal.stretches()[0].start - resumed
    scene.record(
        "`--confirm`, store frozen while the sidecar starts", f"no work for 5 s; it began {waited:.2f} s after"
    )


def test_a_lost_nodes_pod_waits_for_its_permit_when_it_is_back(scene: Scene) -> None:
    journal, node = scene.journal(), scene.cluster.nodes[1]
    lease = 12
    scene.create_pod("lost", scene.template(journal, annotated={"expiration": lease}, nodeSelector=_on(2)))
    scene.runs(journal, 1)
    scene.create_pod("next", scene.template(journal, annotated={"expiration": lease}, nodeSelector=_on(1)))
    eventually(lambda: scene.gated() == ["next"], "the other one waits")
    node.crash()
    crashed = time.monotonic()
    try:
        eventually(lambda: journal.of("next"), "the waiter runs", 60)
    finally:
        node.start()
    waited = journal.of("next")[0].start - crashed
    eventually(lambda: scene.cluster.node_ready(node.name), "the node is ready again", 60)
    eventually(
        lambda: (
            "waiting for a permit" in node.log(scene.namespace.name, "lost", SIDECAR)
            and "running" in scene.status("lost", SIDECAR).get("state", {})
        ),
        "the lost pod's sidecar waits",
        60,
    )
    assert len(journal.of("lost")) == 1
    scene.namespace.delete("next")
    eventually(lambda: len(journal.of("lost")) == 2, "the lost pod runs again", 60)
    assert journal.overlap(1) == 0
    scene.record(
        f"node crashed, lease of {lease} s; node back, `--confirm`",
        f"successor {waited:.1f} s after the crash; back, the pod waited until that one had ended; overlap 0",
    )


def _on(number: int) -> dict[str, str]:
    return {"kubernetes.io/hostname": f"node-{number}"}
