"""Permits renewed and given back over HTTPS, for pods that show who they are (an ASGI application).

`POST /v1/permits/renew` and `POST /v1/permits/release`, each with the token of a pod as `Authorization: Bearer …` and a
JSON object: `semaphore` (`<namespace>/<key>`), `permit`, and in `authorities` the CRC-32 of the certificates (PEM) that
the caller knows as the webhook's. A renewal is answered with `lease_ms`, as `Store.renew` says it, a release with
`released`, 1 or 0; where the caller knows other authorities than there are, with these in `authorities` as well. A
refusal has a `message`.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import crc32
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from prometheus_client import Counter

from at_least_semaphore_pod_hook.errors import InvalidInputError, NotHolderError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from at_least_semaphore_pod_hook.server.app import HttpError, LeftError, read_body, respond
from at_least_semaphore_pod_hook.server.identities import TokenRefusedError
from at_least_semaphore_pod_hook.server.metrics import PREFIX, REGISTRY, count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.server.app import Application, Receive, Scope, Send
    from at_least_semaphore_pod_hook.server.identities import Identities, Identity

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_024
TOGETHER_SECONDS = 0.05
"""How long a renewal waits for others, to go to the store with them. Nobody waits for it: there is time in a lease."""
_JSON = b"application/json"
_BEARER = b"Bearer "

REQUESTS = Counter(
    f"{PREFIX}permit_requests",
    "Sidecars' requests by operation and HTTP status, in api mode.",
    ("operation", "status"),
    registry=REGISTRY,
)


class Asked(msgspec.Struct):
    """A request's body."""

    semaphore: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,63}/[A-Za-z0-9._-]{1,63}\Z")]
    permit: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z")]
    authorities: int = 0


_asked = msgspec.json.Decoder(Asked)
_encoder = msgspec.json.Encoder()


class Together:
    """Lets those go on at the same moment who come within a few milliseconds.

    The store is asked for all of them in one round trip then, and each costs it and us less.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait for the next such moment."""
        loop = asyncio.get_running_loop()
        going: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_later(self._seconds, self._go)
        self._waiting.append(going)
        await going

    def _go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for going in waiting:
            if not going.done():
                going.set_result(None)


class Permits:
    """What sidecars in api mode ask for.

    Args:
        store: Where semaphores live.
        identities: Says whose a token is.
        authorities: Returns the certificates (PEM) of whom a sidecar is to trust at the moment.
    """

    def __init__(self, store: Store, identities: Identities, authorities: Callable[[], str]) -> None:
        self._store = store
        self._identities = identities
        self._authorities = authorities
        self._together = Together(TOGETHER_SECONDS)
        self._said = ("", 0)

    async def renew(self, token: str, body: bytes) -> bytes:
        """Renew a permit for the pod whose token this is; raises as `answer` does."""
        asked, key, pod = await self._of(token, body)
        await self._together.wait()
        lease_ms = await self._store.renew(key, asked.permit, pod.pod, pod.uid)
        return self._answer({"lease_ms": lease_ms}, asked)

    async def release(self, token: str, body: bytes) -> bytes:
        """Give a permit back for the pod whose token this is; raises as `answer` does."""
        asked, key, pod = await self._of(token, body)
        released = await self._store.release(key, asked.permit, pod.pod, uid=pod.uid)
        return self._answer({"released": int(released)}, asked)

    async def _of(self, token: str, body: bytes) -> tuple[Asked, SemaphoreKey, Identity]:
        try:
            asked = _asked.decode(body)
        except ValueError as error:
            raise InvalidInputError(f"the body is not what is accepted: {error}") from error
        pod = await self._identities.identify(token)
        namespace, _, key = asked.semaphore.partition("/")
        if namespace != pod.namespace:
            raise NotHolderError(f"semaphore {asked.semaphore} is not of namespace {pod.namespace}")
        return asked, SemaphoreKey(namespace, key), pod

    def _answer(self, answer: dict[str, Any], asked: Asked) -> bytes:
        authorities = self._authorities()
        if self._said[0] is not authorities:
            self._said = (authorities, crc32(authorities.encode()))
        if authorities and asked.authorities != self._said[1]:
            answer["authorities"] = authorities
        return _encoder.encode(answer)


def permit_app(permits: Permits) -> Application:
    """Serve what the module says."""
    operations = {"/v1/permits/renew": permits.renew, "/v1/permits/release": permits.release}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        operation = operations.get(scope["path"])
        name = operation.__name__ if operation else "none"
        try:
            if operation is None:
                raise HttpError(404, f"no such path: {scope['path'][:80]!a}; use {' or '.join(operations)}")  # noqa: TRY301
            token = _token(scope)
            answer = await _done(operation, token, await read_body(scope, receive, MAX_BODY_BYTES))
        except HttpError as error:
            count(REQUESTS, name, str(error.status))()
            about = {"operation": name, "status": error.status, "reason": str(error)}
            logger.info("permit request refused", extra=about)
            await respond(send, error.status, _encoder.encode({"message": str(error)}), _JSON, *error.headers)
        except LeftError:
            # Whoever has cut the connection, or lost it, has counted it.
            return
        else:
            await respond(send, 200, answer, _JSON)
            count(REQUESTS, name, "200")()

    return app


def _token(scope: Scope) -> str:
    if scope["method"] != "POST":
        raise HttpError(405, "permits are asked for by POST", (b"allow", b"POST"))
    for name, value in scope["headers"]:
        if name == b"authorization" and value.startswith(_BEARER):
            return str(value[len(_BEARER) :].decode("latin-1"))
    raise HttpError(401, "no token: send Authorization: Bearer", (b"www-authenticate", b"Bearer"))


async def _done(operation: Callable[[str, bytes], Awaitable[bytes]], token: str, body: bytes) -> bytes:
    """Do it; whatever goes wrong is an HttpError."""
    try:
        return await operation(token, body)
    except TokenRefusedError as error:
        raise HttpError(401, str(error), (b"www-authenticate", b"Bearer")) from error
    except NotHolderError as error:
        raise HttpError(403, str(error)) from error
    except InvalidInputError as error:
        raise HttpError(400, str(error)) from error
    except UnavailableError as error:
        raise HttpError(503, str(error)) from error
    except Exception as error:
        logger.exception("permit request failed unexpectedly")
        raise HttpError(500, "at-least-semaphore-pod-hook failed unexpectedly; its log says why") from error
