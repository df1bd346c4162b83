"""Sidecars' requests over a memory store: what is done, what is refused, and who goes to the store together."""

from __future__ import annotations

import asyncio
import json
from binascii import crc32
from typing import Any

import pytest

from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, SemaphoreKey
from at_least_semaphore_pod_hook.server.identities import Identity, TokenRefusedError
from at_least_semaphore_pod_hook.server.permits import MAX_BODY_BYTES, TOGETHER_SECONDS, Permits, permit_app
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.unit.virtual_time import virtual

KEY = SemaphoreKey("ns", "key")
PODS = {"good": Identity("ns", "web-0", "uid-0"), "other": Identity("other", "web-0", "uid-1")}


class Tokens:
    """Knows some."""

    async def identify(self, token: str) -> Identity:
        if token == "late":
            raise ApiUnavailableError("the API server does not answer")
        if token not in PODS:
            raise TokenRefusedError("this is no token of a service account")
        return PODS[token]


class Subject:
    """The application over a memory store with one permit, `p1`, of the pod web-0."""

    def __init__(self) -> None:
        self.store = MemoryStore(lambda: asyncio.get_running_loop().time())
        self.authorities = "PEM"
        self.app = permit_app(Permits(self.store, Tokens(), lambda: self.authorities))  # type: ignore[arg-type]

    async def acquire(self) -> None:
        step = await self.store.begin(KEY, Fence("local", 1))
        await self.store.set_length(KEY, 2, step.fence)
        await self.store.acquire(AcquireRequest(KEY, 2, 60, "p1", "identity", pod="web-*"))

    async def ask(
        self,
        path: str,
        token: str = "good",  # noqa: S107 - nobody's
        body: Any = None,
        method: str = "POST",
    ) -> tuple[int, dict[str, Any]]:
        asked = {"semaphore": "ns/key", "permit": "p1", "authorities": crc32(b"PEM")} if body is None else body
        content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        if token:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app({"path": path, "method": method, "headers": headers}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])


@virtual
async def test_a_pod_renews_and_gives_back() -> None:
    subject = Subject()
    await subject.acquire()
    assert await subject.ask("/v1/permits/renew") == (200, {"lease_ms": 60_000})
    assert (await subject.store.state(KEY)).holders[0].uid == "uid-0"
    assert await subject.ask("/v1/permits/release") == (200, {"released": 1})
    assert await subject.ask("/v1/permits/release") == (200, {"released": 0})
    assert await subject.ask("/v1/permits/renew") == (200, {"lease_ms": 0})


@virtual
async def test_a_pod_that_has_ended_is_told_so() -> None:
    subject = Subject()
    await subject.acquire()
    await subject.store.release(KEY, "p1", ended=True)
    assert await subject.ask("/v1/permits/renew") == (200, {"lease_ms": -1})


@virtual
async def test_renewals_that_come_together_go_together_and_releases_at_once() -> None:
    subject = Subject()
    await subject.acquire()
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.create_task(subject.ask("/v1/permits/renew"))
    await asyncio.sleep(TOGETHER_SECONDS / 2)
    second, gone = (asyncio.create_task(subject.ask("/v1/permits/renew")) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert [(await task)[0] for task in (first, second)] == [200, 200]
    assert loop.time() - began == pytest.approx(TOGETHER_SECONDS)
    began = loop.time()
    await subject.ask("/v1/permits/release")
    assert loop.time() == began


@virtual
async def test_whoever_knows_other_authorities_is_told_of_these() -> None:
    subject = Subject()
    await subject.acquire()
    subject.authorities = "new"
    _, answer = await subject.ask("/v1/permits/renew")
    assert answer["authorities"] == "new"
    known = {"semaphore": "ns/key", "permit": "p1", "authorities": crc32(b"new")}
    assert "authorities" not in (await subject.ask("/v1/permits/renew", body=known))[1]


GOOD = {"semaphore": "ns/key", "permit": "p1"}


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"path": "/mutate"}, 404, "no such path: '/mutate'; use /v1/permits/renew or /v1/permits/release"),
        ({"method": "GET"}, 405, "permits are asked for by POST"),
        ({"token": ""}, 401, "no token: send Authorization: Bearer"),
        ({"token": "bad"}, 401, "this is no token of a service account"),
        ({"token": "late"}, 503, "the API server does not answer"),
        ({"token": "other"}, 403, "semaphore ns/key is not of namespace other"),
        ({"body": b"{"}, 400, "the body is not what is accepted: "),
        ({"body": GOOD | {"permit": "p1\n"}}, 400, "the body is not what is accepted: "),
        ({"body": GOOD | {"semaphore": "ns"}}, 400, "the body is not what is accepted: "),
        ({"body": GOOD | {"semaphore": "ns/a/b"}}, 400, "the body is not what is accepted: "),
        ({"body": b" " * (MAX_BODY_BYTES + 1)}, 413, "the body is larger than 1024 bytes"),
    ],
)
@virtual
async def test_what_is_refused_changes_nothing(request_: dict[str, Any], status: int, said: str) -> None:
    subject = Subject()
    await subject.acquire()
    before = await subject.store.state(KEY)
    for path in ("/v1/permits/renew", "/v1/permits/release"):
        answered, body = await subject.ask(**{"path": path, **request_})
        assert (answered, body["message"][: len(said)]) == (status, said)
    assert await subject.store.state(KEY) == before
