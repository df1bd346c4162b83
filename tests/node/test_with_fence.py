"""Work that is stopped before its lease ends, on a node that is cut off from all others."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.e2e import eventually

if TYPE_CHECKING:
    from devcluster.node.product import Product
    from tests.node.conftest import Scene
    from tests.node.workloads import Journal

LEASE_SECONDS = 20
STUBBORN_SECONDS = 15


@pytest.fixture(scope="module", autouse=True)
def fencing(product: Product) -> None:
    product.configure(add=["--fence"])


def contenders(scene: Scene, name: str, **options: Any) -> Journal:
    """Let a pod run on the second node, and another one of its semaphore wait for a place on the first."""
    journal = scene.journal()
    options["annotated"] = {"expiration": LEASE_SECONDS}
    for number, pod in ((2, f"{name}-fenced"), (1, f"{name}-next")):
        on = {"kubernetes.io/hostname": f"node-{number}"}
        scene.create_pod(pod, scene.template(journal, nodeSelector=on, **options))
        if number == 2:
            scene.runs(journal, 1)
    eventually(lambda: f"{name}-next" in scene.gated(), "the other one waits")
    return journal


def test_a_cut_off_nodes_work_stops_before_its_successor_starts(scene: Scene) -> None:
    node = scene.cluster.nodes[1]
    prompt = contenders(scene, "prompt", restartPolicy="Never", linger=0.2)
    stubborn = contenders(scene, "stubborn", restartPolicy="Never", linger=STUBBORN_SECONDS)
    again = contenders(scene, "again", restartPolicy="Always", linger=STUBBORN_SECONDS)
    with scene.cluster.cut(node):
        cut = time.monotonic()
        for journal, name in ((prompt, "prompt"), (stubborn, "stubborn"), (again, "again")):
            eventually(functools.partial(journal.of, f"{name}-next"), "the waiter runs", 90)
    # Its connection to the API server would take a minute to be given up.
    node.kubelet.terminate()
    node.kubelet.start()
    eventually(lambda: scene.cluster.node_ready(node.name), "the node is ready again", 60)
    # Its work ends with 0 on SIGTERM, and so the pod has succeeded as far as Kubernetes knows.
    eventually(
        lambda: scene.namespace.get("prompt-fenced")["status"]["phase"] == "Succeeded", "the API shows the end", 60
    )

    (fenced,), (successor,) = prompt.of("prompt-fenced"), prompt.of("prompt-next")
    assert prompt.overlap(1) == 0
    stopped, later = fenced.end - cut, successor.start - fenced.end
    case = f"`--fence`, node cut off, lease of {LEASE_SECONDS} s"
    scene.record(
        f"{case}; `Never`, work that ends on SIGTERM",
        f"ended {stopped:.1f} s after the cut, the successor's began {later:.1f} s later; overlap 0",
    )
    first, *_ = again.of("again-fenced")
    assert first.end < again.of("again-next")[0].start
    scene.record(
        f"{case}; `Always`, work that ignores SIGTERM for {STUBBORN_SECONDS} s",
        f"ended {first.end - cut:.1f} s after the cut; with its restarts, overlap {again.overlap(1):.2f} s",
    )
    (slow,) = stubborn.of("stubborn-fenced")
    scene.record(
        f"{case}; `Never`, the same work",
        f"ended {slow.end - cut:.1f} s after the cut; overlap {stubborn.overlap(1):.2f} s",
    )
