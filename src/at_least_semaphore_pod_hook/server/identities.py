"""Whose a token is, by the API server's word: asked for once, and remembered for a moment."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import msgspec
from prometheus_client import Counter

from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, SemaphoreError, UnavailableError
from at_least_semaphore_pod_hook.server.metrics import PREFIX, REGISTRY, count

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

REMEMBERED_SECONDS = 60.0
"""How long a token counts as good after the API server has said so, at most."""
REFUSED_SECONDS = 10.0
MAX_REMEMBERED = 20_000
MAX_REFUSED = 1_000
"""Kept apart, so that whoever sends tokens that are none pushes nobody out."""
MAX_UNDER_WAY = 1_000
MAX_TOKEN = 8_192
PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCOUNT = "system:serviceaccount:"
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"

REVIEWS = Counter(
    f"{PREFIX}token_reviews",
    "Tokens that the API server was asked about, by its answer.",
    ("result",),
    registry=REGISTRY,
)


class TokenRefusedError(SemaphoreError):
    """A token does not show which pod of the cluster it belongs to; the message says why."""


class Identity(NamedTuple):
    """A pod, as its token shows it."""

    namespace: str
    pod: str
    uid: str


class Reviewer(Protocol):
    """Asks whose a token is."""

    async def review(self, token: str) -> Identity:
        """Ask; raises TokenRefusedError, or UnavailableError where there is no answer."""

    async def close(self) -> None:
        """Let go of connections."""


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: list[str] | None = None
    error: str = ""


class _Review(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


class _Claims(msgspec.Struct):
    exp: float
    aud: str | list[str] = ""


_review = msgspec.json.Decoder(_Review)
_claims = msgspec.json.Decoder(_Claims)


class TokenReviews:
    """Asks the API server by TokenReview.

    Args:
        kubeconfig: A file's path; empty for the service account of the pod that we run in.
        audience: Whom a token has to be for.
    """

    def __init__(self, kubeconfig: str, audience: str) -> None:
        self._kubeconfig = kubeconfig
        self._audience = audience
        self._connection: Connection | None = None

    async def review(self, token: str) -> Identity:
        """See `Reviewer`."""
        if self._connection is None:
            self._connection = Connection.open(self._kubeconfig)
        spec = {"token": token, "audiences": [self._audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = (await self._connection.request("POST", PATH, body=body)).done("token review")
        try:
            status = _review.decode(answer).status
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no TokenReview: {error}") from error
        return identity_of(status, self._audience)

    async def close(self) -> None:
        """See `Reviewer`."""
        if self._connection is not None:
            await self._connection.close()


def identity_of(status: _Status, audience: str) -> Identity:
    """Return the pod that a review shows; raises TokenRefusedError where it shows none."""
    if not status.authenticated or audience not in (status.audiences or ()):
        raise TokenRefusedError("the API server does not accept this token")
    namespace = status.user.username.removeprefix(ACCOUNT).partition(":")[0]
    extra = status.user.extra or {}
    (pod,), (uid,) = extra.get(POD_NAME, [""]) or [""], extra.get(POD_UID, [""]) or [""]
    if not status.user.username.startswith(ACCOUNT) or not pod or not uid:
        raise TokenRefusedError("this token is not bound to a pod")
    return Identity(namespace, pod, uid)


class Identities:
    """Remembers whose a token is, so that the API server is asked about it once a minute at most.

    Args:
        reviewer: Asks.
        audience: Whom a token has to be for.
        clock: Seconds since the epoch.
    """

    def __init__(self, reviewer: Reviewer, audience: str, *, clock: Callable[[], float] = time.time) -> None:
        self._reviewer = reviewer
        self._audience = audience
        self._clock = clock
        self._known: dict[bytes, tuple[float, Identity]] = {}
        self._refused: dict[bytes, tuple[float, str]] = {}
        self._under_way: dict[bytes, asyncio.Task[Identity]] = {}

    async def identify(self, token: str) -> Identity:
        """Return whose a token is; callers with one token share one question.

        Raises:
            TokenRefusedError: It shows no pod, is for somebody else, or has ended.
            UnavailableError: The API server does not answer.
        """
        name = hashlib.blake2b(token.encode(errors="surrogatepass"), digest_size=16).digest()
        now = self._clock()
        if (known := self._known.get(name)) and now < known[0]:
            return known[1]
        if (refused := self._refused.get(name)) and now < refused[0]:
            raise TokenRefusedError(refused[1])
        asked = self._under_way.get(name)
        if asked is None:
            ends = token_end(token, self._audience)
            if ends <= now:
                raise TokenRefusedError("this token has ended")
            if len(self._under_way) >= MAX_UNDER_WAY:
                raise ApiUnavailableError("too many tokens to ask the API server about")
            asked = asyncio.create_task(self._ask(name, token, ends))
            self._under_way[name] = asked
            asked.add_done_callback(lambda done: self._done(name, done))
        # Whoever gives up leaves the answer to the others.
        return await asyncio.shield(asked)

    async def close(self) -> None:
        """Let go of what is under way, and of connections."""
        for task in (*self._under_way.values(),):
            task.cancel()
        await self._reviewer.close()

    async def _ask(self, name: bytes, token: str, ends: float) -> Identity:
        try:
            identity = await self._reviewer.review(token)
        except TokenRefusedError as error:
            count(REVIEWS, "refused")()
            _remember(self._refused, name, (self._clock() + REFUSED_SECONDS, str(error)), MAX_REFUSED)
            raise
        except UnavailableError:
            count(REVIEWS, "unavailable")()
            raise
        count(REVIEWS, "accepted")()
        _remember(self._known, name, (min(ends, self._clock() + REMEMBERED_SECONDS), identity), MAX_REMEMBERED)
        return identity

    def _done(self, name: bytes, task: asyncio.Task[Identity]) -> None:
        del self._under_way[name]
        if not task.cancelled():
            # Read by nobody where all have given up.
            task.exception()


def _remember(entries: dict[bytes, T], name: bytes, entry: T, most: int) -> None:
    """Put an entry last, and drop the first where there are too many: the one that was written longest ago."""
    entries.pop(name, None)
    entries[name] = entry
    if len(entries) > most:
        del entries[next(iter(entries))]


def token_end(token: str, audience: str) -> float:
    """Return when a token says that it ends, in seconds since the epoch.

    Nothing of it is believed before the API server has confirmed the token: what is refused here, it need not be asked
    about.

    Raises:
        TokenRefusedError: It is no token of a service account, or is for somebody else.
    """
    parts = token.split(".") if len(token) <= MAX_TOKEN else []
    try:
        _, payload, _ = parts
        claims = _claims.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError as error:
        raise TokenRefusedError("this is no token of a service account") from error
    if audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        raise TokenRefusedError(f"this token is not for {audience}")
    return claims.exp
