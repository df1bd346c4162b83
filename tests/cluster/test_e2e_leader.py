"""Two replicas and a line of waiters: the one that leads is killed or stopped in the middle of handing permits over."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import PATIENCE_SECONDS, Namespace, Semaphore, eventually, metric, opted_in, pod
from tests.cluster.gating import Account, History, replica, trouble, uid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

KEY, LENGTH, WAITERS = "line", 5, 30
FAILOVER_SECONDS, ORDERLY_SECONDS = 6.0, 2.0


@pytest.fixture(scope="module")
def replicas(
    account: Path, store: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[WebhookProcess]]:
    made = [replica(tmp_path_factory.mktemp(f"replica-{number}"), store, account) for number in (1, 2)]
    with made[0], made[1]:
        yield made
        assert [trouble(one) for one in made] == [[], []]


def leader_of(replicas: list[WebhookProcess]) -> WebhookProcess:
    """Return the replica that leads, waiting until one does."""
    found: list[WebhookProcess] = []

    def one_leads() -> bool:
        found[:] = [one for one in replicas if one.process.alive and metric(one, "leading") == 1]
        return len(found) == 1

    eventually(one_leads, "one replica leads")
    return found[0]


class Line:
    """Holders and waiters of one semaphore, all of them in one namespace, and how far the line has moved."""

    def __init__(self, namespace: Namespace, store: RedisServer, history: History) -> None:
        self._namespace = namespace
        self._history = history
        self._deleted = 0
        self.semaphore = Semaphore(store, namespace.name, KEY)
        self.names = [f"pod-{number:02}" for number in range(LENGTH + WAITERS)]
        self.uids: list[str] = []

    def form(self) -> None:
        """Create all pods in order, and wait until the first ones are served."""
        with self._namespace.caller() as caller:
            for name in self.names:
                reply = self._namespace.try_create(pod(name, opted_in(KEY, LENGTH, 600)), caller)
                assert reply.status == 201, reply.body
                self.uids.append(uid(reply.json))
        self.catch_up()

    def end(self) -> None:
        """Delete all pods that were served and not deleted yet, at once."""
        names = self._history.served[self._deleted :]
        self._deleted += len(names)
        with ThreadPoolExecutor(LENGTH) as pool:
            list(pool.map(lambda name: self._namespace.delete(name, grace=0), names))

    def next_granted(self) -> bool:
        """Say whether one of those who come next has a permit already."""
        return not set(self.uids[self._deleted :]).isdisjoint(self.semaphore.leases)

    def catch_up(self) -> None:
        """Wait until everybody is served who can be."""
        self._history.until_served(min(len(self.names), self._deleted + LENGTH))

    @property
    def over(self) -> bool:
        """Whether everybody was served and is gone."""
        return self._deleted == len(self.names)


@pytest.mark.parametrize("granted", [True, False], ids=["first-granted", "none-granted"])
@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGKILL, FAILOVER_SECONDS), (signal.SIGTERM, ORDERLY_SECONDS)], ids=["kill", "term"]
)
def test_a_line_moves_on_in_order_when_the_leader_goes_in_mid_hand_over(
    namespace: Namespace,
    store: RedisServer,
    replicas: list[WebhookProcess],
    registration: Registration,
    number: signal.Signals,
    seconds: float,
    granted: bool,
) -> None:
    leader = leader_of(replicas)
    registration.use(next(one for one in replicas if one is not leader))
    with History(namespace) as history, Account(store, namespace, KEY) as account:
        line = Line(namespace, store, history)
        line.form()
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(line.end)
            until = time.monotonic() + PATIENCE_SECONDS
            # Without a pause in between: it is about the moment between a permit and the gate.
            while granted and not line.next_granted():
                assert time.monotonic() < until
            leader.process.signal(number)
            gone = time.monotonic()
            ended.result()
        line.end()  # those that were let in before the end, so that somebody has to be let in after it
        line.catch_up()
        took = time.monotonic() - gone
        eventually(lambda: leader.process.exit_code is not None, "the leader has ended")
        assert leader.process.exit_code == (-number if number == signal.SIGKILL else 0)
        leader.start()
        while not line.over:
            line.end()
            line.catch_up()
        eventually(lambda: line.semaphore.held == 0, "all permits are free")

    assert took < seconds
    assert leader_of(replicas) is not leader
    assert account.most == LENGTH
    assert set(account.tokens) == set(line.uids)
    assert all(len(tokens) == 1 for tokens in account.tokens.values())
    tokens = [int(history.tokens[name]) for name in line.names]
    assert tokens == [int(*account.tokens[permit]) for permit in line.uids]
    assert tokens == sorted(set(tokens))
    assert sorted(history.served) == line.names
    assert history.most_active == LENGTH
