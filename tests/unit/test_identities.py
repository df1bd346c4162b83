"""Whose a token is: asked once, remembered for a moment, and never for longer than the token holds."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import msgspec
import pytest

from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from at_least_semaphore_pod_hook.server import identities
from at_least_semaphore_pod_hook.server.identities import (
    Identities,
    Identity,
    TokenRefusedError,
    identity_of,
    token_end,
)

AUDIENCE = "at-least-semaphore-pod-hook.kaidotio.github.io"
POD = Identity("ns", "web-0", "uid-1")


def token(seed: str = "", ends: float = 600, audience: Any = (AUDIENCE,)) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"aud": audience, "exp": ends, "jti": seed}).encode()).decode()
    return f"e30.{claims.rstrip('=')}.signature"


class Reviews:
    """The API server's part, as this module sees it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Identity | Exception = POD
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def review(self, token: str) -> Identity:
        self.asked.append(token)
        await self.go_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.go_on.set()


class Subject:
    def __init__(self) -> None:
        self.now = 0.0
        self.reviews = Reviews()
        self.identities = Identities(self.reviews, AUDIENCE, clock=lambda: self.now)


@pytest.fixture
async def subject() -> Subject:
    return Subject()


@pytest.mark.parametrize(("ends", "until"), [(600, 60), (30, 30)])
async def test_a_token_is_asked_about_once_a_minute_and_not_believed_beyond_its_end(
    subject: Subject, ends: float, until: float
) -> None:
    good = token(ends=ends)
    assert await subject.identities.identify(good) == POD
    subject.now = until - 0.1
    assert await subject.identities.identify(good) == POD
    assert len(subject.reviews.asked) == 1
    subject.now = until
    if until < ends:
        assert await subject.identities.identify(good) == POD
        assert len(subject.reviews.asked) == 2
    else:
        with pytest.raises(TokenRefusedError, match="this token has ended"):
            await subject.identities.identify(good)


async def test_callers_with_one_token_share_one_question(subject: Subject) -> None:
    subject.reviews.go_on.clear()
    callers = [asyncio.create_task(subject.identities.identify(token())) for _ in range(5)]
    await asyncio.sleep(0)
    # One that gives up takes nothing from the others.
    callers[0].cancel()
    await asyncio.sleep(0)
    subject.reviews.go_on.set()
    assert await asyncio.gather(*callers[1:]) == [POD] * 4
    assert len(subject.reviews.asked) == 1


async def test_a_refusal_is_remembered_for_a_shorter_while(subject: Subject) -> None:
    subject.reviews.answer = TokenRefusedError("the API server does not accept this token")
    for _ in range(3):
        with pytest.raises(TokenRefusedError, match="does not accept"):
            await subject.identities.identify(token())
    assert len(subject.reviews.asked) == 1
    subject.now = identities.REFUSED_SECONDS
    subject.reviews.answer = POD
    assert await subject.identities.identify(token()) == POD


async def test_no_answer_is_not_remembered(subject: Subject) -> None:
    subject.reviews.answer = ApiUnavailableError("no answer")
    with pytest.raises(ApiUnavailableError):
        await subject.identities.identify(token())
    subject.reviews.answer = POD
    assert await subject.identities.identify(token()) == POD


async def test_what_is_remembered_is_bounded(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "MAX_REMEMBERED", 3)
    for seed in "abcd":
        await subject.identities.identify(token(seed))
    assert len(subject.identities._known) == 3
    await subject.identities.identify(token("d"))
    assert len(subject.reviews.asked) == 4
    await subject.identities.identify(token("a"))
    assert len(subject.reviews.asked) == 5


async def test_there_are_only_so_many_questions_at_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "MAX_UNDER_WAY", 2)
    subject.reviews.go_on.clear()
    waiting = [asyncio.create_task(subject.identities.identify(token(seed))) for seed in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(ApiUnavailableError, match="too many tokens"):
        await subject.identities.identify(token("c"))
    subject.reviews.go_on.set()
    assert await asyncio.gather(*waiting) == [POD, POD]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "no token of a service account"),
        ("a.b", "no token of a service account"),
        ("a.b.c", "no token of a service account"),
        ("é.é.é", "no token of a service account"),
        ("a." + "b" * 9_000 + ".c", "no token of a service account"),
        (token(audience="https://kubernetes.default.svc"), f"not for {AUDIENCE}"),
        (token(audience=["a", "b"]), f"not for {AUDIENCE}"),
    ],
)
async def test_what_is_no_token_for_us_is_refused_without_a_question(subject: Subject, given: str, said: str) -> None:
    with pytest.raises(TokenRefusedError, match=said):
        await subject.identities.identify(given)
    assert subject.reviews.asked == []


def test_a_token_says_when_it_ends() -> None:
    assert token_end(token(ends=17.5), AUDIENCE) == 17.5
    assert token_end(token(ends=17, audience=AUDIENCE), AUDIENCE) == 17


EXTRA = {identities.POD_NAME: ["web-0"], identities.POD_UID: ["uid-1"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"authenticated": False}, "does not accept"),
        ({"audiences": ["other"]}, "does not accept"),
        ({"audiences": None}, "does not accept"),
        ({"user": {"username": "alice", "extra": EXTRA}}, "not bound to a pod"),
        ({"user": {"username": "system:serviceaccount:ns:default"}}, "not bound to a pod"),
        ({"user": {"username": "system:serviceaccount:ns:default", "extra": {identities.POD_NAME: []}}}, "not bound"),
    ],
)
def test_a_review_that_shows_no_pod_is_a_refusal(changes: dict[str, Any], said: str) -> None:
    user = {"username": "system:serviceaccount:ns:default", "extra": EXTRA}
    whole = {"authenticated": True, "audiences": [AUDIENCE], "user": user}
    status = msgspec.convert(whole, identities._Status)
    assert identity_of(status, AUDIENCE) == POD
    with pytest.raises(TokenRefusedError, match=said):
        identity_of(msgspec.convert(whole | changes, identities._Status), AUDIENCE)
