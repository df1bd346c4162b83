"""Work begins once its permit is confirmed, and with a fence it ends before anybody else can have that permit.

All pods share the addresses of this machine here, so they are pods with hostNetwork, each with a port of its own.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.podspec import STOP_SECONDS
from devcluster.stores import RedisServer
from tests.cluster.e2e import (
    Namespace,
    Object,
    Semaphore,
    admit,
    client_of,
    eventually,
    opted_in,
    permit_of,
    pod,
    review,
    sidecars,
)
from tests.cluster.gating import GATE, WHEN_FULL, History, events, gates, replica, reported, uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.podrunner import PodRunner
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("runner")]

KEY = "seats"
LEASE_SECONDS = 10
KILLED = 137
FLAGS = ("confirm", "fence")


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A store that is paused."""
    with RedisServer(tmp_path_factory.mktemp("own-store")) as server:
        yield server


@pytest.fixture(scope="module")
def webhooks(
    account: Path, own_store: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, WebhookProcess]]:
    """Two replicas, whose controllers elect one of them."""
    made = {flag: replica(tmp_path_factory.mktemp(flag), own_store, account, f"--{flag}") for flag in FLAGS}
    with made["confirm"], made["fence"]:
        eventually(lambda: any("pods watched" in webhook.log() for webhook in made.values()), "a controller works")
        yield made


@pytest.fixture
def confirming(webhooks: dict[str, WebhookProcess], registration: Registration) -> None:
    registration.use(webhooks["confirm"])


@pytest.fixture
def fencing(webhooks: dict[str, WebhookProcess], registration: Registration) -> None:
    registration.use(webhooks["fence"])


@pytest.fixture
def semaphore(namespace: Namespace, own_store: RedisServer) -> Semaphore:
    return Semaphore(own_store, namespace.name, KEY)


def seat(name: str, annotated: dict[str, str] | None = None, **spec: object) -> Object:
    return pod(name, {**opted_in(KEY, 1, LEASE_SECONDS), **(annotated or {})}, hostNetwork=True, **spec)


def main_state(namespace: Namespace, name: str) -> Object:
    """How a pod's main container is, as the API shows it."""
    for status in namespace.get(name)["status"].get("containerStatuses") or []:
        if status["name"] == "main":
            state: Object = status["state"]
            return state
    return {}


def runs(namespace: Namespace, name: str) -> Callable[[], bool]:
    return lambda: "running" in main_state(namespace, name)


@pytest.fixture
def paused(own_store: RedisServer) -> Iterator[Callable[[], None]]:
    """Pause the store; it goes on at the end at the latest."""
    yield own_store.pause
    own_store.resume()


@pytest.mark.usefixtures("confirming")
def test_the_main_container_waits_until_the_permit_is_confirmed(
    namespace: Namespace,
    semaphore: Semaphore,
    runner: PodRunner,
    own_store: RedisServer,
    paused: Callable[[], None],
) -> None:
    created = namespace.create(seat("one", {WHEN_FULL: "deny"}))
    paused()
    runner.sidecar_pid(namespace.name, "one", timeout=10)
    eventually(lambda: "the store is unavailable" in runner.sidecar_log(namespace.name, "one"), "it cannot renew")
    time.sleep(1)
    stored = namespace.get("one")
    assert stored["status"]["phase"] == "Pending"
    (sidecar,) = stored["status"]["initContainerStatuses"]
    assert (sidecar["started"], list(sidecar["state"])) == (False, ["running"])
    assert list(main_state(namespace, "one")) == ["waiting"]

    own_store.resume()
    eventually(runs(namespace, "one"), "the main container runs")
    assert semaphore.confirmed() == 1
    assert list(semaphore.leases) == [permit_of(created)]
    assert "livenessProbe" not in created["spec"]["containers"][0]


def unwatched(namespace: Namespace, registration: Registration) -> None:
    """Have no webhook asked, as while it is away under `failurePolicy: Ignore`."""
    registration.remove()

    def ignored() -> bool:
        return sidecars(namespace.try_create(seat("probe"), dryRun="All").json) == []

    eventually(ignored, "nobody is asked")


@pytest.mark.usefixtures("confirming")
def test_a_pod_with_a_permit_that_nobody_granted_waits_for_one_and_starts_then(
    namespace: Namespace, semaphore: Semaphore, registration: Registration, runner: PodRunner, own_store: RedisServer
) -> None:
    stray = namespace.try_create(seat("stray", {WHEN_FULL: "deny"}), dryRun="All").json
    for assigned in ("uid", "creationTimestamp", "managedFields"):
        stray["metadata"].pop(assigned, None)
    del stray["status"]
    namespace.create(seat("holder"))
    eventually(runs(namespace, "holder"), "the holder runs")
    unwatched(namespace, registration)

    created = namespace.create(stray)

    assert permit_of(created) == permit_of(stray)
    runner.sidecar_pid(namespace.name, "stray", timeout=10)
    eventually(lambda: "waiting for a permit" in runner.sidecar_log(namespace.name, "stray"), "its sidecar says so")
    eventually(lambda: ("Pod", "stray") in reported(namespace, "WaitingForPermit"), "an Event says so", timeout=15)
    (event,) = (one for one in events(namespace, "WaitingForPermit") if one["regarding"]["name"] == "stray")
    assert event["note"].startswith(
        f"waiting for a permit of {namespace.name}/{KEY}: position 1 of 1; its permit is held"
    )
    assert reported(namespace, "WithoutPermit") == set()
    assert list(main_state(namespace, "stray")) == ["waiting"]
    assert list(semaphore.leases) == [uid(namespace.get("holder"))]

    namespace.delete("holder", grace=0)

    took = eventually(runs(namespace, "stray"), "its work begins")
    assert took < 5
    assert list(semaphore.leases) == [permit_of(created)]
    assert semaphore.confirmed() == 1
    eventually(lambda: ("Pod", "stray") in reported(namespace, "PermitGranted"), "an Event says so", timeout=15)
    token = namespace.get("stray")["metadata"]["annotations"][
        "at-least-semaphore-pod-hook.kaidotio.github.io/fencing-token"
    ]
    assert token == semaphore.holder(permit_of(created))["token"]


@pytest.mark.usefixtures("fencing")
def test_work_that_does_not_heed_sigterm_is_gone_before_anybody_else_gets_the_permit(
    namespace: Namespace,
    semaphore: Semaphore,
    runner: PodRunner,
    history: History,
    own_store: RedisServer,
    paused: Callable[[], None],
) -> None:
    for name in ("first", "second"):
        namespace.create(seat(name, {STOP_SECONDS: "60"}, restartPolicy="Never"))
    eventually(runs(namespace, "first"), "the first runs")
    (end,) = semaphore.leases.values()
    paused()

    eventually(lambda: "terminated" in main_state(namespace, "first"), "its main container is gone", LEASE_SECONDS)

    # Renewed once more at most, between the look at the lease and the pause.
    assert time.time() < end
    assert main_state(namespace, "first")["terminated"]["exitCode"] == KILLED
    log = [json.loads(line) for line in runner.sidecar_log(namespace.name, "first").splitlines()]
    (closed,) = (line for line in log if "closed, so that the pod's work stops" in line["message"])
    assert closed["level"] == "error"
    assert gates(namespace.get("second")) == [GATE]
    assert history.served == ["first"]

    own_store.resume()
    eventually(runs(namespace, "second"), "the second runs")
    assert list(semaphore.leases) == [uid(namespace.get("second"))]


def restarts(namespace: Namespace, name: str) -> int:
    (status,) = namespace.get(name)["status"]["containerStatuses"]
    return int(status["restartCount"])


@pytest.mark.usefixtures("fencing")
def test_work_that_was_stopped_begins_anew_when_the_permit_is_back(
    namespace: Namespace, semaphore: Semaphore, own_store: RedisServer, runner: PodRunner
) -> None:
    namespace.create(seat("one"))
    eventually(runs(namespace, "one"), "it runs")
    permit = uid(namespace.get("one"))
    client: Any = client_of(own_store)
    inflight = f"inflight/{{{namespace.name}/{KEY}}}"
    record = client.hget(f"{inflight}/holders", permit)
    # Another has the only permit: an operator's hand in the store.
    other = json.dumps({**json.loads(record), "pod": "other", "uid": "", "identity": "other", "confirmed": False})
    with client.pipeline(transaction=True) as change:
        change.zrem(inflight, permit)
        change.hdel(f"{inflight}/holders", permit)
        change.zadd(inflight, {"other": (time.time() + 12) * 1000})
        change.hset(f"{inflight}/holders", "other", other)
        change.execute()

    eventually(lambda: restarts(namespace, "one") > 0, "it is stopped, and started again")
    assert "the permit is not ours any more" in runner.sidecar_log(namespace.name, "one")
    eventually(lambda: list(semaphore.leases) == [permit], "the permit is back")
    eventually(lambda: "open again" in runner.sidecar_log(namespace.name, "one"), "the port is open again")
    eventually(runs(namespace, "one"), "it runs again")
    before = restarts(namespace, "one")
    time.sleep(4)
    assert runs(namespace, "one")()
    assert restarts(namespace, "one") == before


@pytest.mark.usefixtures("fencing")
def test_the_api_server_takes_the_probes_and_hands_on_who_is_not_fenced(
    namespace: Namespace, webhooks: dict[str, WebhookProcess]
) -> None:
    own = {"tcpSocket": {"port": 80}}
    containers = [{"name": "main", "image": "none", "livenessProbe": own}, {"name": "second", "image": "none"}]
    reply = namespace.try_create(seat("one", containers=containers), dryRun="All")
    assert reply.status == 201, reply.body
    assert "container 'main' has a livenessProbe of its own" in reply.warnings
    first, second = reply.json["spec"]["containers"]
    assert first["livenessProbe"]["tcpSocket"] == {"port": 80}
    assert second["livenessProbe"]["terminationGracePeriodSeconds"] == 1
    # Asked again, with all that the API server has filled in, it changes nothing.
    once = namespace.try_create(pod("one", opted_in(KEY, 1)), dryRun="All").json
    for assigned in ("uid", "creationTimestamp"):
        del once["metadata"][assigned]
    del once["status"]
    assert once["spec"]["containers"][0]["livenessProbe"]["successThreshold"] == 1
    answer = admit(webhooks["fence"], review(once, namespace.name))
    assert answer["allowed"]
    assert "patch" not in answer
    short = namespace.try_create(pod("short", opted_in(KEY, 1, LEASE_SECONDS - 1)))
    assert short.status == 400, short.body
    assert "with --fence" in short.message
