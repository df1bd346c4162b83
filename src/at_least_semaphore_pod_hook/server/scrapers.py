"""Who may read metrics and the status page: whoever the API server lets get these paths, by the token that is shown.

A token is reviewed for whose it is (TokenReview), and that user for whether he may (SubjectAccessReview of a
non-resource URL), as Kubernetes' own components do for their metrics.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.server.app import respond
from at_least_semaphore_pod_hook.server.folding import Folded

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.server.app import Application, Receive, Scope, Send

REMEMBERED_SECONDS = 10.0
"""How long an answer counts. Prometheus comes every 15 to 60 seconds; a viewer of the status page asks more often."""
MAX_REMEMBERED = 1_000
MAX_UNDER_WAY = 10
MAX_TOKEN = 8_192
_TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_BEARER = b"Bearer "
_TEXT = b"text/plain"

UNKNOWN, FORBIDDEN, ALLOWED = 401, 403, 200
"""What is found out about a token, as the HTTP status that says so."""


class Judge(Protocol):
    """Asks what whoever shows a token may do."""

    async def judge(self, token: str, path: str) -> int:
        """Return `UNKNOWN`, `FORBIDDEN` or `ALLOWED`; raises UnavailableError where there is no answer."""

    async def close(self) -> None:
        """Let go of connections."""


class _User(msgspec.Struct, omit_defaults=True):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _Status(msgspec.Struct):
    authenticated: bool = False
    allowed: bool = False
    user: _User = msgspec.field(default_factory=_User)


class _Review(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


_review = msgspec.json.Decoder(_Review)


class Reviews:
    """Asks the API server.

    Args:
        kubeconfig: A file's path; empty for the service account of the pod that we run in.
    """

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._connection: Connection | None = None

    async def judge(self, token: str, path: str) -> int:
        """See `Judge`."""
        found = await self._ask(_TOKENS, "authentication.k8s.io/v1", "TokenReview", {"token": token})
        if not found.authenticated:
            return UNKNOWN
        user = found.user
        spec = {
            "user": user.username,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "nonResourceAttributes": {"path": path, "verb": "get"},
        }
        found = await self._ask(_ACCESS, "authorization.k8s.io/v1", "SubjectAccessReview", spec)
        return ALLOWED if found.allowed else FORBIDDEN

    async def close(self) -> None:
        """See `Judge`."""
        if self._connection is not None:
            await self._connection.close()

    async def _ask(self, path: str, version: str, kind: str, spec: dict[str, Any]) -> _Status:
        if self._connection is None:
            self._connection = Connection.open(self._kubeconfig)
        body = {"apiVersion": version, "kind": kind, "spec": spec}
        answer = (await self._connection.request("POST", path, body=body)).done(kind)
        try:
            return _review.decode(answer).status
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no {kind}: {error}") from error


class Scrapers:
    """Remembers for a moment who may read what.

    Args:
        judge: Asks.
        clock: Seconds, only ever rising.
    """

    def __init__(self, judge: Judge, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._judge = judge
        self._clock = clock
        self._known: dict[bytes, tuple[float, int]] = {}
        self._turns = asyncio.Semaphore(MAX_UNDER_WAY)

    async def judge(self, token: str, path: str) -> int:
        """See `Judge`."""
        name = hashlib.blake2b(f"{path} {token}".encode(), digest_size=16).digest()
        async with self._turns:
            known = self._known.get(name)
            if known and self._clock() < known[0]:
                return known[1]
            status = await self._judge.judge(token, path)
            self._known.pop(name, None)
            self._known[name] = self._clock() + REMEMBERED_SECONDS, status
            if len(self._known) > MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
            return status

    async def close(self) -> None:
        """Let go of connections."""
        await self._judge.close()

    def guard(self, application: Application) -> Application:
        """Serve an application to those alone who may get its paths."""
        folded = Folded()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            status, said = await _found(scope, self)
            if status == ALLOWED:
                await application(scope, receive, send)
                return
            folded.say("scrape refused", str(status), status=status, reason=said)
            challenge = ((b"www-authenticate", b"Bearer"),) if status == UNKNOWN else ()
            await respond(send, status, f"{said}\n".encode(), _TEXT, *challenge)

        return app


async def _found(scope: Scope, scrapers: Scrapers) -> tuple[int, str]:
    token = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    if not token.startswith(_BEARER) or not token.isascii() or len(token) > MAX_TOKEN:
        return UNKNOWN, "no token: send Authorization: Bearer"
    try:
        status = await scrapers.judge(token[len(_BEARER) :].decode(), scope["path"])
    except UnavailableError as error:
        return 503, str(error)
    if status == UNKNOWN:
        return UNKNOWN, "the API server does not accept this token"
    return status, f"this user may not get {scope['path'][:80]!a}: it takes a ClusterRole with that nonResourceURL"
