"""The product installed by Helm as the README tells it, used, upgraded to ordinary sidecars, and uninstalled."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from devcluster.node.product import NAMESPACE
from devcluster.node.release import Release
from tests.cluster.charts import everything
from tests.cluster.e2e import SIDECAR, Namespace, eventually
from tests.documents import commands
from tests.node.deployments import deployment_keeps_to_its_length, handover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devcluster.node.cluster import NodeCluster
    from tests.node.conftest import Stage

EXAMPLES = "at-least-semaphore-pod-examples"
# A namespace that Helm has made stays, and Kubernetes puts these into each.
LEFT = {
    f"Namespace <none> {NAMESPACE}",
    f"ServiceAccount {NAMESPACE} default",
    f"ConfigMap {NAMESPACE} kube-root-ca.crt",
}
UPGRADE = ("nativeSidecars=false", "store.bundled.maxmemory=200mb")


@dataclass
class Installed:
    """What was there before the README's commands were run, how many they are, and how long they took in seconds."""

    release: Release
    before: set[str]
    commands: int
    seconds: float


def objects(cluster: NodeCluster) -> set[str]:
    """Name every object but those of the tests' own namespaces."""
    return {name for name in everything(cluster.plane) if " node-" not in name and EXAMPLES not in name}


@pytest.fixture(scope="module")
def installed(cluster: NodeCluster) -> Iterator[Installed]:
    release = Release(cluster)
    before = objects(cluster)
    wanted = commands("README.md", "## Install it into a cluster")
    examples = Namespace(cluster.plane, EXAMPLES)
    started = time.monotonic()
    for command in wanted:
        release.run(*command)
    eventually(lambda: works_and_waits(examples), "two pods of the Job run, and the next one waits", 60)
    seconds = time.monotonic() - started
    cluster.plane.request("DELETE", f"/api/v1/namespaces/{EXAMPLES}")
    try:
        yield Installed(release, before, len(wanted), seconds)
    finally:
        if release.installed():
            release.uninstall()


def works_and_waits(namespace: Namespace) -> bool:
    """Say whether two pods of the examples' Job run with a permit while others wait behind our gate."""
    pods = namespace.pods("batch.kubernetes.io/job-name=import")
    running = [each for each in pods if each["status"]["phase"] == "Running"]
    beside = [one["spec"]["initContainers"][0]["name"] for one in running]
    return beside == [SIDECAR, SIDECAR] and any(each["spec"].get("schedulingGates") for each in pods)


@pytest.fixture(scope="module")
def ordinary(installed: Installed) -> Release:
    """The release with ordinary sidecars, to which it is upgraded where no test has done that yet."""
    if "nativeSidecars" not in installed.release.values():
        installed.release.upgrade(*UPGRADE)
    return installed.release


def test_from_nothing_to_a_pod_that_waits(installed: Installed, stage: Stage) -> None:
    assert installed.commands <= 5
    assert installed.seconds < 60
    stage.record(
        "the README's commands, from nothing to examples of which two run and the next wait in line",
        f"{installed.commands} commands, {installed.seconds:.1f} s",
    )


def test_a_deployment_keeps_to_its_length(stage: Stage, installed: Installed) -> None:
    seen = deployment_keeps_to_its_length(stage, stage.journal(), "gate")
    stage.record("Helm chart; Deployment of 3, length 2, `gate`; one pod deleted", seen)


def test_the_plugin_shows_who_holds_and_who_waits(stage: Stage, installed: Installed) -> None:
    journal = stage.journal()
    stage.create_pod("holder", stage.template(journal))
    stage.runs(journal, 1)
    stage.create_pod("waiter", stage.template(journal))
    eventually(lambda: stage.gated() == ["waiter"], "the other one waits")
    run, where = installed.release.run, f"--namespace={stage.namespace.name}"
    started = time.monotonic()
    table = run("kubectl", "semaphore", journal.name, where)
    took = time.monotonic() - started
    lines = [line.split() for line in table.splitlines()]
    assert lines[1][:6] == [stage.namespace.name, journal.name, "1", "0", "1", "1"]
    assert any(line[:2] == ["holder", stage.namespace.get("holder")["spec"]["nodeName"]] for line in lines), table
    assert any(line[:2] == ["1", "waiter"] for line in lines), table
    (semaphore,) = json.loads(run("kubectl", "semaphore", "status", journal.name, where, "--output=json"))["semaphores"]
    (holder,) = semaphore["holders"]
    run("kubectl", "semaphore", "release", f"{stage.namespace.name}/{journal.name}", holder["permit"], "--yes")
    eventually(lambda: stage.gated() == [], "the waiter is let in")
    stage.record("`kubectl semaphore`, by exec on a node", f"{took:.1f} s; a permit released by it let the waiter in")


def test_an_upgrade_disturbs_nobody(stage: Stage, installed: Installed) -> None:
    journal, release = stage.journal(), installed.release
    stage.create_pod("holder", stage.template(journal))
    stage.runs(journal, 1)
    stage.create_pod("waiter", stage.template(journal))
    eventually(lambda: stage.gated() == ["waiter"], "the other one waits")
    started = time.monotonic()
    release.upgrade(*UPGRADE)
    took = time.monotonic() - started
    (held,) = journal.stretches()
    assert stage.beating(journal) == ["holder"]
    assert stage.status("holder", SIDECAR)["restartCount"] == 0
    assert stage.gated() == ["waiter"]
    stage.namespace.delete("holder")
    eventually(lambda: journal.of("waiter"), "the waiter runs")
    assert journal.overlap(1) == 0
    assert len(journal.of(held.pod)) == 1
    stage.record(
        "`helm upgrade` of webhook and store, while a pod runs and one waits",
        f"{took:.1f} s; both as before; hand-over after it {handover(journal, 'holder'):.2f} s, overlap 0",
    )


def test_a_job_with_ordinary_sidecars_completes(stage: Stage, ordinary: Release) -> None:
    journal = stage.journal()
    started = time.monotonic()
    stage.create("Job", "work", stage.template(journal, run=1, restartPolicy="Never"), completions=2, parallelism=2)
    code, said = stage.namespace.kubectl("wait", "--for=condition=complete", "--timeout=60s", "job/work")
    assert code == 0, said
    assert journal.overlap(1) == 0
    stage.record("Job of 2 pods of 1 s, ordinary sidecars", f"complete after {time.monotonic() - started:.1f} s")


@pytest.mark.parametrize("release_on", ["sigterm", "exit"])
def test_a_pod_with_an_ordinary_sidecar_is_deleted(stage: Stage, ordinary: Release, release_on: str) -> None:
    journal = stage.journal()
    made = stage.template(journal, annotated={"release_on": release_on}, linger=3, terminationGracePeriodSeconds=10)
    stage.create("Deployment", "web", made, replicas=1)
    (first,) = stage.runs(journal, 1)
    stage.namespace.delete(first)
    eventually(lambda: len(journal.stretches()) == 2, "a successor runs")
    eventually(lambda: first not in stage.beating(journal), "the deleted pod's work has ended")
    overlap = journal.overlap(1)
    if release_on == "exit":
        assert overlap == 0
    else:
        assert overlap < 3.5  # as long as the work takes to end
    stage.record(
        f"ordinary sidecar, `release-on: {release_on}`, work that takes 3 s to end", f"overlap {overlap:.2f} s"
    )


def test_uninstalled_nothing_is_left_and_who_waited_runs(stage: Stage, installed: Installed) -> None:
    journal = stage.journal()
    for name in ("holder", "waiter"):
        stage.create_pod(name, stage.template(journal, terminationGracePeriodSeconds=1))
    (holder,) = stage.runs(journal, 1)
    eventually(lambda: len(stage.gated()) == 1, "the other one waits")
    started = time.monotonic()
    installed.release.uninstall()
    took = time.monotonic() - started
    assert stage.gated() == []
    assert set(stage.runs(journal, 2)) == {"holder", "waiter"}
    assert len(journal.of(holder)) == 1
    left: set[str] = set()

    def gone() -> bool:
        left.clear()
        left.update(objects(stage.cluster) - installed.before - LEFT)
        return not left

    try:
        eventually(gone, "nothing of the release is left")
    finally:
        assert left == set()
    stage.record("`helm uninstall` while a pod waits", f"{took:.1f} s; the pod runs, and nothing is left behind")
