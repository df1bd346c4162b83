"""Admissions that no API server sends: a clear refusal, at once, and nothing of it in the store."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess
from tests.cluster.e2e import PREFIX, Caller, client_of, opted_in, pod, review

if TYPE_CHECKING:
    from collections.abc import Iterator


NAMESPACE = "team"
PROMPT_SECONDS = 1.0
"""Ten times what it may take on a machine that has nothing else to do."""
DEEP = b"[" * 10_000 + b"]" * 10_000
LONG = b"7" * 1_000_000
VALID = review(pod("one", opted_in("database", 3)), NAMESPACE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def webhook(store: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookProcess]:
    given = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
    with WebhookProcess(tmp_path_factory.mktemp("webhook"), flags=given) as webhook:
        yield webhook
        assert "Traceback" not in webhook.log()


@pytest.fixture
def caller(webhook: WebhookProcess) -> Iterator[Caller]:
    with Caller(webhook.port, webhook.client_context()) as caller:
        yield caller


def instead(old: bytes, new: bytes) -> bytes:
    """Return a valid review in which one thing is another."""
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


def refusal(caller: Caller, body: bytes) -> tuple[int, str]:
    """Send a body; return the status that it is refused with, by HTTP or in a review, and what is said."""
    reply = caller.send("POST", "/mutate?timeout=10s", body, content_type="application/json")
    if reply.status != 200:
        return reply.status, reply.message
    response = reply.json["response"]
    assert not response["allowed"], reply.body[:300]
    return response["status"]["code"], response["status"]["message"]


def check(caller: Caller, store: RedisServer, body: bytes, says: str) -> None:
    """A body is refused at once, as the client's fault, and leaves nothing in the store."""
    before = sorted(client_of(store).keys())
    began = time.monotonic()
    status, message = refusal(caller, body)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert 400 <= status < 500, message
    assert says in message
    assert len(message) < 1000
    assert sorted(client_of(store).keys()) == before


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(instead(b'"containers": [', b'"containers": [' + DEEP + b", "), "request", id="deep in the spec"),
        pytest.param(instead(b'"metadata": {', b'"metadata": {"labels": ' + DEEP + b", "), "request", id="deep labels"),
        pytest.param(instead(b'"userInfo": {', b'"extra": ' + DEEP + b', "userInfo": {'), "request", id="deep beside"),
        pytest.param(instead(b'"operation": "CREATE"', b'"operation": ' + DEEP), "request", id="deep operation"),
        pytest.param(DEEP, "the request body", id="deep alone"),
        pytest.param(instead(b'length": "3"', b'length": ' + LONG), "request.object", id="a long number for a text"),
        pytest.param(instead(b'"dryRun": false', b'"dryRun": ' + LONG), "the request body", id="a long number"),
        pytest.param(LONG, "the request body", id="a long number alone"),
        pytest.param(instead(b'"database"', b'"\xff\xfe"'), "request.object", id="no UTF-8"),
        pytest.param(instead(b'"database"', b'"\xed\xa0\x80"'), "request.object", id="a surrogate as UTF-8"),
        pytest.param(instead(b'"database"', b'"\\ud800"'), "the request body", id="half a surrogate"),
        pytest.param(b"\xef\xbb\xbf" + VALID, "the request body", id="a byte order mark"),
        pytest.param(VALID.decode().encode("utf-16"), "the request body", id="UTF-16"),
        pytest.param(VALID[:-1], "the request body", id="cut short"),
        pytest.param(VALID + b"{}", "the request body", id="more after it"),
        pytest.param(instead(b'"namespace": "team"', b'"namespace": ["team"]'), "the request body", id="a list"),
        pytest.param(instead(b'"namespace": "team"', b'"namespace": "../other"'), "namespace", id="another namespace"),
        pytest.param(instead(b'"namespace": "team"', b'"namespace": "a}/{b"'), "namespace", id="two hash tags"),
        pytest.param(instead(b'"metadata": {', b'"metadata": 3, "m": {'), "request.object", id="a number"),
    ],
)
def test_what_no_api_server_sends_is_refused(caller: Caller, store: RedisServer, body: bytes, says: str) -> None:
    check(caller, store, body, says)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "../other/database",
        "/etc/passwd",
        "other/database",
        "*",
        "[a-z]*",
        "d?tabase",
        "{x}",
        "database}",
        "x}/{y",
        "KEYS[1]",
        "1) redis.call('FLUSHALL') --",
        "$(POD_UID)",
        "--queue-url=redis://elsewhere",
        "data base",
        "database\n",
        "database\r\nDEL queue",
        "data\0base",
        "database\u200b",
        "\uff44atabase",
        "d\u0430tabase",
        ".",
        "..",
        "-database",
        "a" * 64,
        "a" * 1_000_000,
    ],
    ids=lambda key: repr(key[:20]),
)
def test_a_key_that_looks_like_something_else_is_refused(caller: Caller, store: RedisServer, key: str) -> None:
    check(caller, store, review(pod("one", opted_in(key, 3)), NAMESPACE), f"{PREFIX}key")


@pytest.mark.parametrize("name", ["length", "expiration"])
@pytest.mark.parametrize(
    "value", ["0", "-1", "1e3", "3.0", "0x3", "\u0663", "\u00b3", "3 ", "+3", "1_000", "NaN", "9" * 4301]
)
def test_a_number_that_is_none_is_refused(caller: Caller, store: RedisServer, name: str, value: str) -> None:
    made = pod("one", opted_in("database", 3) | {f"{PREFIX}{name}": value})
    check(caller, store, review(made, NAMESPACE), f"{PREFIX}{name}")


@pytest.mark.parametrize("name", ["key", "length"])
def test_of_what_is_said_twice_the_last_counts(caller: Caller, store: RedisServer, name: str) -> None:
    """As at the API server, so that both mean the same."""
    said = json.dumps(f"{PREFIX}{name}").encode()
    check(caller, store, instead(said, said + b': "1", ' + said + b': "*", "x"'), f"{PREFIX}{name}")


def test_it_goes_on(caller: Caller) -> None:
    assert caller.admit(review(pod("one", opted_in("database", 3)), NAMESPACE, dry_run=True))["allowed"]
