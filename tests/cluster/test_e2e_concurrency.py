"""Many admissions at once: on one key, while certificates change, and while a webhook stops."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from devcluster.stores import RedisServer
from tests.cluster.e2e import (
    KINDS,
    Caller,
    Namespace,
    Object,
    Semaphore,
    admit,
    eventually,
    flags,
    metric,
    opted_in,
    pod,
    review,
    together,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import SharedWebhooks

pytestmark = pytest.mark.cluster

CALLERS = 64
ROTATIONS = 10


@pytest.fixture(params=list(KINDS))
def pair(request: pytest.FixtureRequest, shared_webhooks: SharedWebhooks) -> list[WebhookProcess]:
    """Two webhooks that share store and lock."""
    return [shared_webhooks(request.param, replica) for replica in (1, 2)]


class TestOneKey:
    @pytest.mark.parametrize("known", [True, False], ids=["known", "first-use"])
    @pytest.mark.parametrize(("free", "allowed"), [(100, CALLERS), (10, 10)])
    def test_64_at_once_get_what_is_free_and_no_more(
        self, namespace: Namespace, store: RedisServer, pair: list[WebhookProcess], free: int, allowed: int, known: bool
    ) -> None:
        semaphore = Semaphore(store, namespace.name, "crowd")
        length = free + 1 if known else free
        if known:
            assert admit(pair[0], review(pod("first", opted_in("crowd", length, 600)), namespace.name))["allowed"]
        bodies = [
            review(pod(f"pod-{number}", opted_in("crowd", length, 600)), namespace.name) for number in range(CALLERS)
        ]

        answers = together([functools.partial(admit, pair[i % 2], body) for i, body in enumerate(bodies)])

        denied = [answer["status"] for answer in answers if not answer["allowed"]]
        assert len(answers) - len(denied) == allowed
        assert all(status["code"] == 403 and "no semaphore available" in status["message"] for status in denied), denied
        assert semaphore.held == allowed + known
        assert semaphore.length == length

    @pytest.mark.usefixtures("webhook")
    @pytest.mark.parametrize(("free", "allowed"), [(100, CALLERS), (10, 10)])
    def test_64_at_once_through_the_api_server(
        self, namespace: Namespace, store: RedisServer, free: int, allowed: int
    ) -> None:
        made = [pod(f"pod-{number}", opted_in("crowd", free, 600)) for number in range(CALLERS)]

        statuses = [reply["status"] for reply in together([functools.partial(created, namespace, one) for one in made])]

        assert statuses.count(201) == allowed
        assert statuses.count(403) == CALLERS - allowed
        assert len(namespace.pods()) == allowed
        assert Semaphore(store, namespace.name, "crowd").held == allowed


def created(namespace: Namespace, made: dict[str, object]) -> dict[str, int]:
    """Create a pod and return how that was answered."""
    return {"status": namespace.try_create(made).status}


class Load:
    """Calls that are made over and over by threads until `stop`; the first failure of each thread is kept."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[str] = []
        self.counts: list[int] = []

    def add(self, call: Callable[[], object]) -> None:
        """Begin to make a call."""
        number = len(self.counts)
        self.counts.append(0)

        def work() -> None:
            while not self._over.wait(0.005):
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test is about
                    self.failures.append(f"call {number} after {self.counts[number]}: {error!r}")
                    return
                self.counts[number] += 1

        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End all threads."""
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load() -> Iterator[Load]:
    load = Load()
    yield load
    load.stop()


@pytest.mark.parametrize("webhook", ["redlock-ordinary"], indirect=True)
def test_certificates_change_under_load_and_nobody_notices(
    namespace: Namespace, webhook: WebhookProcess, load: Load
) -> None:
    serials: set[str] = set()
    body = review(pod("direct", opted_in("rotation", 9)), namespace.name, dry_run=True)
    before = metric(webhook, "certificate_reloads_total")
    bad = metric(webhook, "bad_requests_total")

    def over_the_api_server(caller: Caller) -> None:
        reply = namespace.try_create(pod("dry", opted_in("rotation", 9)), caller, dryRun="All")
        assert reply.status == 201, reply.body

    def over_a_new_connection() -> None:
        with Caller(webhook.port, webhook.client_context()) as caller:
            assert caller.admit(body)["allowed"]

    def serial() -> str:
        with Caller(webhook.port, webhook.client_context()) as caller:
            caller.connection.connect()
            certificate = caller.connection.sock.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Caller(webhook.port, webhook.client_context()))
        kept.connection.connect()
        kept.connection.auto_open = 0  # a dropped connection is a failure, not a reason to open another
        callers = [stack.enter_context(namespace.caller()) for _ in range(3)]
        load.add(lambda: kept.admit(body))
        load.add(over_a_new_connection)
        for caller in callers:
            load.add(functools.partial(over_the_api_server, caller))
        serials.add(serial())
        for number in range(1, ROTATIONS + 1):
            webhook.renew_certificate(keep_authority=True)
            eventually(lambda: serial() not in serials, "new connections get the new certificate")
            serials.add(serial())
            assert metric(webhook, "certificate_reloads_total") - before == number
        done = list(load.counts)
        eventually(lambda: all(now > then for now, then in zip(load.counts, done, strict=True)), "all go on")
        load.stop()

    assert load.failures == []
    assert len(serials) == ROTATIONS + 1
    assert metric(webhook, "bad_requests_total") == bad


def test_a_bad_pair_is_not_taken_up_and_the_old_certificate_stays(
    store: RedisServer, new_webhook: Callable[..., WebhookProcess]
) -> None:
    webhook = new_webhook(*flags("redlock", store, store))
    (webhook.certificates / "tls.key").write_text("no key\n")
    eventually(lambda: "certificate not taken up" in webhook.log(), "the bad pair is noticed")
    assert admit(webhook, review(pod("one", opted_in("bad-pair", 9)), "team", dry_run=True))["allowed"]
    webhook.renew_certificate()
    eventually(lambda: "certificate taken up" in webhook.log(), "the good pair is taken up")
    assert admit(webhook, review(pod("one", opted_in("bad-pair", 9)), "team", dry_run=True))["allowed"]


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "mortal") as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_webhook_that_is_told_to_stop_answers_what_it_has_begun(
    mortal: RedisServer, new_webhook: Callable[..., WebhookProcess], number: int
) -> None:
    webhook = new_webhook(*flags("redlock", mortal, mortal))
    semaphore = Semaphore(mortal, "team", "stop")
    assert admit(webhook, review(pod("first", opted_in("stop", 99, 600)), "team"))["allowed"]
    bodies = [review(pod(f"pod-{i}", opted_in("stop", 99, 600)), "team") for i in range(16)]
    # The store keeps them waiting, so that they are under way for certain.
    mortal.pause()
    sent, answers = [], []

    def ask(body: bytes) -> Object:
        with Caller(webhook.port, webhook.client_context()) as caller:
            caller.connection.request("POST", "/mutate?timeout=10s", body, {"content-type": "application/json"})
            sent.append(caller)
            document = json.load(caller.connection.getresponse())
            response: Object = document["response"]
            return response

    waiting = threading.Thread(target=lambda: answers.extend(together([functools.partial(ask, one) for one in bodies])))
    waiting.start()
    try:
        eventually(lambda: len(sent) == read_up(webhook.port) == len(bodies), "all of them are under way")
        webhook.process.signal(number)
        eventually(lambda: webhook.get(webhook.probe_port, "/readyz")[0] == 503, "it calls itself not ready", timeout=5)
        assert webhook.get(webhook.probe_port, "/healthz")[0] == 200
        assert webhook.get(webhook.metrics_port, "/metrics")[0] == 200
        assert webhook.process.alive
    finally:
        mortal.resume()
        waiting.join()

    assert [answer["allowed"] for answer in answers] == [True] * len(bodies)
    assert semaphore.held == len(bodies) + 1
    eventually(lambda: webhook.process.exit_code is not None, "it ends")
    assert webhook.process.exit_code == 0
    assert webhook.log().rstrip().splitlines()[-1].count("webhook stopped") == 1


def read_up(port: int) -> int:
    """Return how many connections a server on 127.0.0.1 has open from which it has read all that was sent."""
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123 - no file of ours
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[4].endswith(":00000000") for row in rows)
