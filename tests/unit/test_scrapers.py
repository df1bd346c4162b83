"""Who may read metrics: what is remembered of it, and what is asked."""

from __future__ import annotations

from typing import Any

import pytest

from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from at_least_semaphore_pod_hook.server import scrapers
from at_least_semaphore_pod_hook.server.scrapers import ALLOWED, FORBIDDEN, REMEMBERED_SECONDS, UNKNOWN, Scrapers


class Judge:
    """Knows one token, and what it is good for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: int | None = ALLOWED

    async def judge(self, token: str, path: str) -> int:
        self.asked.append((token, path))
        if self.answer is None:
            raise ApiUnavailableError("the API server does not answer")
        return self.answer

    async def close(self) -> None:
        """Nothing is open."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def served(guarding: Scrapers, path: str = "/metrics", token: bytes = b"Bearer a") -> tuple[int, bytes]:
    """Ask for a path; return status and body."""
    sent: list[dict[str, Any]] = []

    async def page(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    headers = [(b"authorization", token)] if token else []
    await guarding.guard(page)({"path": path, "headers": headers, "method": "GET"}, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_an_answer_counts_for_a_moment_and_for_its_path() -> None:
    judge, clock = Judge(), Clock()
    guarding = Scrapers(judge, clock=clock)
    assert await served(guarding) == (200, b"page")
    judge.answer = FORBIDDEN
    assert (await served(guarding))[0] == 200
    assert (await served(guarding, "/status"))[0] == 403
    clock.now = REMEMBERED_SECONDS
    assert (await served(guarding))[0] == 403
    assert judge.asked == [("a", "/metrics"), ("a", "/status"), ("a", "/metrics")]


@pytest.mark.parametrize("token", [b"", b"Basic a", b"Bearer \xff", b"Bearer " + b"x" * 9000])
async def test_what_is_no_token_is_asked_nobody_about(token: bytes) -> None:
    judge = Judge()
    assert (await served(Scrapers(judge), token=token))[0] == UNKNOWN
    assert judge.asked == []


async def test_without_the_api_server_nobody_reads_and_nothing_is_remembered() -> None:
    judge = Judge()
    guarding = Scrapers(judge)
    judge.answer = None
    assert await served(guarding) == (503, b"the API server does not answer\n")
    judge.answer = ALLOWED
    assert (await served(guarding))[0] == 200


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapers, "MAX_REMEMBERED", 2)
    judge = Judge()
    guarding = Scrapers(judge)
    for number in (1, 2, 3, 1):
        await served(guarding, token=b"Bearer %d" % number)
    assert [token for token, _ in judge.asked] == ["1", "2", "3", "1"]
