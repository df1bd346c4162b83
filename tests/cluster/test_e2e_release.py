"""When a pod that ends makes room for the next: never while it still runs, or at once, as its annotation says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster.podspec import STOP_SECONDS
from tests.cluster.e2e import ORDINARY, RUN_SECONDS, SIDECAR, Namespace, Object, Semaphore, eventually, opted_in, pod
from tests.cluster.gating import (
    AT_ONCE_SECONDS,
    GATE,
    RELEASE_ON,
    Account,
    History,
    gates,
    replica,
    serving,
    uid,
)
from tests.cluster.test_e2e_workloads import workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("runner")]

KEY = "seats"


@pytest.fixture(scope="module")
def webhooks(
    account: Path, store: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, WebhookProcess]]:
    """Two replicas, whose controllers elect one of them: one injects native sidecars, one ordinary ones."""
    native = replica(tmp_path_factory.mktemp("native"), store, account)
    ordinary = replica(tmp_path_factory.mktemp("ordinary"), store, account, sidecars=ORDINARY)
    with serving(native), ordinary:
        yield {"native": native, "ordinary": ordinary}


@pytest.fixture
def native(webhooks: dict[str, WebhookProcess], registration: Registration) -> None:
    registration.use(webhooks["native"])


@pytest.fixture
def ordinary(webhooks: dict[str, WebhookProcess], registration: Registration) -> None:
    registration.use(webhooks["ordinary"])


def slow(length: int, stop_seconds: float, **annotated: str) -> dict[str, str]:
    """Return the annotations of a pod whose main container takes its time after SIGTERM."""
    return {**opted_in(KEY, length, 600), STOP_SECONDS: str(stop_seconds), **annotated}


def run(namespace: Namespace, semaphore: Semaphore, history: History, length: int, made: list[Object]) -> None:
    """Create pods, and wait until as many of them run as there are permits, with their sidecars."""
    for one in made:
        namespace.create(one)
    history.until_served(length)
    eventually(lambda: semaphore.confirmed() == length, "the first ones run")


@pytest.mark.usefixtures("native")
def test_the_next_is_let_in_only_when_a_pod_that_takes_its_time_has_ended(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    with Account(store, namespace, KEY) as account:
        run(namespace, semaphore, history, 2, [pod(f"pod-{number}", slow(2, 2)) for number in range(4)])
        for name in ("pod-0", "pod-1"):
            namespace.delete(name, grace=30)
        history.until_served(4)
        eventually(lambda: semaphore.confirmed() == 2, "the next ones run")
    assert history.served == [f"pod-{number}" for number in range(4)]
    assert history.most_active == 2
    assert account.most == 2
    ended = sorted(history.ended_at[name] for name in ("pod-0", "pod-1"))
    served = sorted(history.served_at[name] for name in ("pod-2", "pod-3"))
    assert all(0 <= after - end < AT_ONCE_SECONDS for end, after in zip(ended, served, strict=True))


def evict(namespace: Namespace, name: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    namespace.control_plane.request("POST", f"{namespace.path}/{name}/eviction", eviction)


def drain(namespace: Namespace, name: str) -> None:
    """Drain the node of a namespace's pods; the stand-in scheduler goes on to bind pods to it."""
    node = namespace.control_plane.node
    own = f"--pod-selector=e2e={namespace.name}"
    try:
        code, printed = namespace.kubectl("drain", node, "--force", own, "--timeout=30s")
        assert code == 0, printed
        assert f"/{name} evicted" in printed
    finally:
        namespace.kubectl("uncordon", node)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("end", [evict, drain])
def test_an_eviction_is_waited_for_as_a_deletion_is(
    namespace: Namespace, store: RedisServer, history: History, end: Callable[[Namespace, str], None]
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    made = [pod(name, slow(1, 1)) for name in ("first", "second")]
    for one in made:
        one["metadata"]["labels"] = {"e2e": namespace.name}
    run(namespace, semaphore, history, 1, made)
    end(namespace, "first")
    history.until_served(2)
    assert history.served == ["first", "second"]
    assert history.most_active == 1
    assert history.served_at["second"] - history.ended_at["first"] < AT_ONCE_SECONDS


@pytest.mark.usefixtures("native")
def test_a_deployment_that_replaces_its_pods_in_turn_stays_within_the_length(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    in_turn = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    namespace.apply(workload("Deployment", "rolled", 2, slow(2, 1), strategy=in_turn))
    code, printed = namespace.kubectl("rollout", "status", "deployment/rolled", "--timeout=30s")
    assert code == 0, printed
    before = {uid(one) for one in namespace.pods()}

    change = {"spec": {"template": {"metadata": {"annotations": {"e2e.example.com/version": "2"}}}}}
    path = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/rolled"
    namespace.control_plane.request("PATCH", path, change, "application/strategic-merge-patch+json")
    code, printed = namespace.kubectl("rollout", "status", "deployment/rolled", "--timeout=60s")

    assert code == 0, printed
    eventually(lambda: semaphore.confirmed() == 2 and len(namespace.running()) == 2, "the new ones run")
    after = {uid(one) for one in namespace.running()}
    assert not before & after
    assert set(semaphore.leases) == after
    assert history.most_active == 2


@pytest.mark.usefixtures("native")
def test_released_on_sigterm_a_permit_is_free_while_the_pod_still_stops(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    made = [pod(name, slow(1, 15, **{RELEASE_ON: "sigterm"})) for name in ("first", "second")]
    run(namespace, semaphore, history, 1, made)
    first, second = (uid(namespace.get(name)) for name in ("first", "second"))

    namespace.delete("first", grace=30)

    assert history.until_served(2, AT_ONCE_SECONDS) < AT_ONCE_SECONDS
    assert history.active_when_served["second"] == 2
    assert "first" not in history.ended_at
    # Its sidecar goes on as long as its containers do, and gets nothing by it.
    eventually(lambda: semaphore.confirmed() == 1, "the second runs")
    assert list(semaphore.leases) == [second]
    assert namespace.get("first")["metadata"]["uid"] == first
    namespace.delete("first", grace=0)


@pytest.mark.usefixtures("ordinary")
def test_a_job_with_an_ordinary_sidecar_completes(namespace: Namespace, store: RedisServer, history: History) -> None:
    """Its permit is free when the work is done, which the sidecar hears of within a second or so, and then it ends."""
    semaphore = Semaphore(store, namespace.name, KEY)
    annotated = {**opted_in(KEY, 1, 600), RUN_SECONDS: "0.2"}
    template = {"metadata": {"annotations": annotated}, "spec": {**pod("x")["spec"], "restartPolicy": "Never"}}
    spec = {"template": template, "completions": 3, "parallelism": 3}
    namespace.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}, "spec": spec})

    with Account(store, namespace, KEY) as account:
        code, printed = namespace.kubectl("wait", "--for=condition=complete", "job/work", "--timeout=30s")

    assert code == 0, printed
    assert len(history.served) == 3
    assert account.most == 1
    for one in namespace.pods():
        (status,) = (each for each in one["status"]["containerStatuses"] if each["name"] == SIDECAR)
        assert status["state"]["terminated"]["exitCode"] == 0
    eventually(lambda: semaphore.held == 0, "the permits are free")


@pytest.mark.usefixtures("ordinary")
def test_an_ordinary_sidecar_can_keep_the_permit_until_the_pod_has_ended(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    made = [pod(name, slow(1, 2, **{RELEASE_ON: "exit"})) for name in ("first", "second")]
    run(namespace, semaphore, history, 1, made)

    namespace.delete("first", grace=30)
    history.until_served(2)

    assert history.most_active == 1
    assert history.served_at["second"] - history.ended_at["first"] < AT_ONCE_SECONDS


@pytest.mark.usefixtures("ordinary")
def test_an_ordinary_sidecar_gives_the_permit_back_at_sigterm_by_default(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, KEY)
    run(namespace, semaphore, history, 1, [pod(name, slow(1, 15)) for name in ("first", "second")])
    assert gates(namespace.get("second")) == [GATE]

    namespace.delete("first", grace=30)

    assert history.until_served(2, AT_ONCE_SECONDS) < AT_ONCE_SECONDS
    assert "first" not in history.ended_at
    namespace.delete("first", grace=0)


@pytest.mark.usefixtures("native")
def test_when_to_release_has_two_values(namespace: Namespace) -> None:
    refused = namespace.try_create(pod("one", {**opted_in(KEY, 1), RELEASE_ON: "never"}))
    assert refused.status == 400, refused.body
    assert RELEASE_ON in refused.message
