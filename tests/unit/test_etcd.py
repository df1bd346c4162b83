"""etcd's client against a stand-in that fails on demand, and the names of the lock's keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.etcd import (
    Client,
    Compare,
    EtcdRefusedError,
    EtcdUnavailableError,
    Operation,
    Put,
    Range,
    Watch,
    prefix_end,
)
from at_least_semaphore_pod_hook.locks.etcd import EtcdLock, queue_prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_DEAD = Address("127.0.0.1", 1)


class _StandIn:
    """Answers with what `answers` holds, one after the other, the last one for good; None hangs up."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any, str]] = []
        self.answers: list[tuple[int, str] | None] = [(200, "{}")]
        self.address = _DEAD

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append((request.path, json.loads(await request.read()), request.headers.get("Authorization", "")))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, text = answer
        return web.Response(status=status, text=text)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]


@pytest_asyncio.fixture
async def stand_ins() -> AsyncIterator[list[_StandIn]]:
    both = [_StandIn(), _StandIn()]
    runners = []
    for stand_in in both:
        runner = web.ServerRunner(web.Server(stand_in.handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        stand_in.address = Address("127.0.0.1", runner.addresses[0][1])
    yield both
    for runner in runners:
        await runner.cleanup()


@pytest_asyncio.fixture
async def connect(stand_ins: list[_StandIn]) -> AsyncIterator[Callable[..., Client]]:
    clients = []

    def make(*addresses: Address) -> Client:
        clients.append(Client(addresses or [stand_in.address for stand_in in stand_ins], timeout=0.3))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


def _refused(message: str, code: int) -> str:
    return json.dumps({"error": message, "message": message, "code": code})


async def test_a_read_without_an_answer_is_repeated_elsewhere(
    stand_ins: list[_StandIn], connect: Callable[..., Client]
) -> None:
    for trouble in (None, (503, "no upstream"), (503, _refused("etcdserver: request timed out", 14))):
        stand_ins[0].answers = [trouble]
        stand_ins[1].answers = [(200, '{"count":"9007199254740993"}')]
        assert (await connect().range(Range(b"key"))).count == 9007199254740993
    assert stand_ins[1].requests[0] == ("/v3/kv/range", {"key": "a2V5"}, "")


@pytest.mark.parametrize("trouble", [None, (503, _refused("etcdserver: request timed out", 14))])
async def test_a_write_without_an_answer_is_not_repeated(
    stand_ins: list[_StandIn], connect: Callable[..., Client], trouble: tuple[int, str] | None
) -> None:
    stand_ins[0].answers = [trouble]
    client = connect()
    with pytest.raises(EtcdUnavailableError, match=str(stand_ins[0].address)):
        await client.put(Put(b"key"))
    assert stand_ins[1].requests == []
    await client.put(Put(b"key"))  # the next call begins where somebody may answer
    assert stand_ins[1].paths == ["/v3/kv/put"]


async def test_a_transaction_is_repeated_only_where_its_caller_says_so(
    stand_ins: list[_StandIn], connect: Callable[..., Client]
) -> None:
    stand_ins[0].answers = [None]
    absent, put = [Compare(b"key", 0)], [Operation(request_put=Put(b"key"))]
    with pytest.raises(EtcdUnavailableError):
        await connect().txn(absent, put, [], repeatable=False)
    assert stand_ins[1].requests == []
    await connect().txn(absent, put, [], repeatable=True)
    assert stand_ins[1].requests[0][1] == {
        "compare": [{"key": "a2V5", "create_revision": 0, "target": "CREATE", "result": "EQUAL"}],
        "success": [{"request_put": {"key": "a2V5"}}],
        "failure": [],
    }


async def test_a_write_goes_on_where_it_surely_did_not_arrive(
    stand_ins: list[_StandIn], connect: Callable[..., Client]
) -> None:
    await connect(_DEAD, stand_ins[0].address).put(Put(b"key"))
    assert stand_ins[0].paths == ["/v3/kv/put"]


async def test_an_old_token_is_replaced_once(stand_ins: list[_StandIn], connect: Callable[..., Client]) -> None:
    old = _refused("etcdserver: invalid auth token", 16)
    stand_in = stand_ins[0]
    stand_in.answers = [(200, '{"token":"first"}'), (401, old), (200, '{"token":"second"}'), (200, "{}")]
    client = connect(stand_in.address._replace(username="user", password="secret-word"))
    await client.put(Put(b"key"))
    assert [(path, token) for path, _, token in stand_in.requests] == [
        ("/v3/auth/authenticate", ""),
        ("/v3/kv/put", "first"),
        ("/v3/auth/authenticate", ""),
        ("/v3/kv/put", "second"),
    ]
    stand_in.answers = [(401, old), (200, '{"token":"third"}'), (401, old)]
    with pytest.raises(EtcdRefusedError, match="invalid auth token"):
        await client.put(Put(b"key"))


async def test_what_is_no_etcd_is_said(stand_ins: list[_StandIn], connect: Callable[..., Client]) -> None:
    stand_ins[0].answers = [(200, "<html>")]
    with pytest.raises(EtcdUnavailableError, match="not its JSON"):
        await connect(stand_ins[0].address).range(Range(b"key"))


async def test_a_watch_yields_news_until_it_is_canceled_or_cut(
    stand_ins: list[_StandIn], connect: Callable[..., Client]
) -> None:
    event = '{"result":{"header":{"revision":"8"},"events":[{"type":"DELETE","kv":{"key":"a2V5","mod_revision":"8"}}]}}'
    canceled = '{"result":{"canceled":true,"cancel_reason":"compacted"}}'
    stand_ins[0].answers = [(200, f'{{"result":{{"created":true}}}}\n\n{event}\n{canceled}\n{event}\n')]
    client = connect(_DEAD, stand_ins[0].address)
    news = [item async for item in client.watch(Watch(b"key", start_revision=7, filters=["NOPUT"]))]
    assert [[(change.type, change.kv.key) for change in item.events] for item in news] == [[], [("DELETE", b"key")], []]
    assert news[-1].cancel_reason == "compacted"
    assert stand_ins[0].requests[0][1] == {"create_request": {"key": "a2V5", "start_revision": 7, "filters": ["NOPUT"]}}
    stand_ins[0].answers = [None]
    assert [item async for item in client.watch(Watch(b"key"))] == []
    stand_ins[0].answers = [(400, _refused("etcdserver: user name is empty", 3))]
    with pytest.raises(EtcdRefusedError):
        assert [item async for item in client.watch(Watch(b"key"))] == []
    with pytest.raises(EtcdUnavailableError, match="Connection refused"):
        assert [item async for item in connect(_DEAD).watch(Watch(b"key"))] == []


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one address"):
        EtcdLock([])
    with pytest.raises(InvalidInputError, match="at least 1 s"):
        EtcdLock([_DEAD], lease_seconds=0)


def test_a_queue_is_named_after_its_lock() -> None:
    assert queue_prefix("namespace/key") == "lock/namespace/key/"


@given(st.text("a/%2F", min_size=1), st.text("a/%2F", min_size=1))
def test_no_queue_lies_within_another(one: str, other: str) -> None:
    same = one.removeprefix("/") == other.removeprefix("/") or one == other
    assert same or not queue_prefix(one).startswith(queue_prefix(other))


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"lock/") == b"lock0"
