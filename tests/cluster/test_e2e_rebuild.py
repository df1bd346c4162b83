"""A store that lost data is rebuilt from the pods that live before it grants anything new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster.stores import RedisServer
from tests.cluster.e2e import Namespace, Semaphore, client_of, eventually, opted_in, pod
from tests.cluster.gating import FENCING_TOKEN, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.podrunner import PodRunner
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

KEY = "seats"
LENGTH = 3


@pytest.fixture
def mortal_store(tmp_path: Path) -> Iterator[RedisServer]:
    """A store of the test's own, whose data outlive it only as far as they have been saved."""
    with RedisServer(tmp_path / "mortal-store") as server:
        yield server


@pytest.fixture
def webhook(
    mortal_store: RedisServer, account: Path, registration: Registration, tmp_path: Path
) -> Iterator[WebhookProcess]:
    with replica(tmp_path / "webhook", mortal_store, account, "--when-full=deny") as webhook:
        eventually(lambda: "pods watched" in webhook.log(), "the controller works")
        registration.use(webhook)
        yield webhook


def flushed(store: RedisServer) -> None:
    client_of(store).flushall()


def started_from_an_older_copy(store: RedisServer) -> None:
    store.kill()
    store.start()


def token(namespace: Namespace, name: str) -> int:
    return int(namespace.get(name)["metadata"]["annotations"][FENCING_TOKEN])


@pytest.mark.usefixtures("runner", "webhook")
@pytest.mark.parametrize("lose", [flushed, started_from_an_older_copy], ids=lambda lose: lose.__name__)
def test_who_runs_is_put_back_before_anybody_else_gets_a_permit(
    namespace: Namespace, mortal_store: RedisServer, lose: Callable[[RedisServer], None], runner: PodRunner
) -> None:
    semaphore = Semaphore(mortal_store, namespace.name, KEY)
    annotated = opted_in(KEY, LENGTH, 60)
    for name in ("left", "kept"):
        namespace.create(pod(name, annotated))
    eventually(lambda: semaphore.confirmed() == 2, "two sidecars renew")
    client_of(mortal_store).save()
    # What happens from now on is in no copy: one comes, one goes.
    namespace.create(pod("new", annotated))
    eventually(lambda: semaphore.confirmed() == 3, "the third sidecar renews")
    namespace.delete("left")
    eventually(lambda: semaphore.held == 2, "the permit is back")
    before = {name: token(namespace, name) for name in ("kept", "new")}
    lose(mortal_store)
    # At once, without a sidecar having said a word since.
    answers = [namespace.try_create(pod(f"late-{number}", annotated)) for number in range(3)]
    allowed = [f"late-{number}" for number, answer in enumerate(answers) if answer.status == 201]
    assert len(allowed) <= 1
    assert {answer.status for answer in answers} <= {201, 403}
    # The copy may know a pod that has gone since: its permit is taken back, and then there is one to be had.
    if not allowed:
        eventually(lambda: semaphore.held == 2, "the permit of the pod that is gone is taken back")
        assert namespace.try_create(pod("late-3", annotated)).status == 201
        allowed = ["late-3"]
    eventually(lambda: semaphore.confirmed() == 3, "all sidecars renew")
    assert {name: token(namespace, name) for name in before} == before
    assert token(namespace, allowed[0]) > max(before.values())
    holders = {semaphore.holder(permit)["pod"]: int(semaphore.holder(permit)["token"]) for permit in semaphore.leases}
    assert holders == before | {allowed[0]: token(namespace, allowed[0])}
    assert namespace.try_create(pod("last", annotated)).status == 403


@pytest.mark.usefixtures("runner")
def test_a_semaphore_that_nobody_asks_for_is_rebuilt_too(
    namespace: Namespace, mortal_store: RedisServer, webhook: WebhookProcess
) -> None:
    semaphore = Semaphore(mortal_store, namespace.name, KEY)
    for name in ("a", "b"):
        namespace.create(pod(name, opted_in(KEY, LENGTH, 60)))
    eventually(lambda: semaphore.confirmed() == 2, "two sidecars renew")
    flushed(mortal_store)
    eventually(lambda: semaphore.held == 2, "the holders are put back")
    assert semaphore.length == LENGTH
    assert "semaphore rebuilt" in webhook.log()
