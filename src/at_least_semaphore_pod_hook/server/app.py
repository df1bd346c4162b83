"""The webhook's HTTP face: admissions on one port, probes and metrics on theirs (ASGI applications)."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server import metrics
from at_least_semaphore_pod_hook.server.callers import admits
from at_least_semaphore_pod_hook.server.folding import Folded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from at_least_semaphore_pod_hook.admission.handler import Answer

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 3 * 1024 * 1024
"""What the API server takes as a request's body at most, so that no admission of a stored object is larger."""

DEFAULT_TIMEOUT_SECONDS = 10.0
MAX_TIMEOUT_SECONDS = 30.0
_JSON = b"application/json"


class LeftError(Exception):
    """The client has gone before its request had come."""


class HttpError(Exception):
    """A request that is no admission, with its HTTP status and headers to answer with."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@lru_cache(maxsize=64)
def deadline_seconds(query: bytes) -> float:
    """Return how long an admission may take: the API server's `timeout` less what the way back needs.

    The API server sends it as a Go duration in whole or decimal seconds, e.g. `timeout=10s`.
    """
    given = parse_qs(query.decode("latin-1")).get("timeout", [""])[0].removesuffix("s")
    try:
        seconds = float(given)
    except ValueError:
        seconds = DEFAULT_TIMEOUT_SECONDS
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        seconds = DEFAULT_TIMEOUT_SECONDS
    return seconds - min(0.5, seconds * 0.1)


class Handler(Protocol):
    """What answers admissions."""

    async def handle(self, body: bytes, timeout: float, /) -> Answer:
        """Answer a review within `timeout` seconds; raises InvalidInputError where it is none."""
        ...


def admission_app(handler: Handler, client_names: Collection[str] = ()) -> Application:
    """Serve `POST /mutate`, where there are `client_names`, to clients with a certificate of one of them alone."""
    folded = Folded()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            timeout = _checked(scope, client_names)
            body = await read_body(scope, receive, MAX_BODY_BYTES)
            answer = await handler.handle(body, timeout)
        except HttpError as error:
            await _refuse(send, error, folded)
        except InvalidInputError as error:
            await _refuse(send, HttpError(400, str(error)), folded)
        except LeftError:
            # Whoever has cut the connection, or lost it, has counted it.
            return
        else:
            await respond(send, 200, answer.body, _JSON)
            metrics.ADMISSION_SECONDS.observe(time.perf_counter() - started)
            metrics.count(metrics.ADMISSIONS, answer.decision.value, str(answer.code))()

    return app


def _checked(scope: Scope, client_names: Collection[str]) -> float:
    if client_names and not admits(client_names, scope["state"]["certificate"]):
        raise HttpError(403, "admissions are not taken from this client: its certificate has another name")
    if scope["path"] != "/mutate":
        raise HttpError(404, f"no such path: {scope['path'][:80]!a}; admissions are POSTed to /mutate")
    if scope["method"] != "POST":
        raise HttpError(405, "admissions are POSTed", (b"allow", b"POST"))
    content_type = _header(scope, b"content-type")
    if content_type.partition(b";")[0].strip().lower() != _JSON:
        raise HttpError(415, f"content type {content_type[:80].decode('latin-1')!a}: use application/json")
    return deadline_seconds(scope["query_string"])


def _header(scope: Scope, wanted: bytes) -> bytes:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return b""


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Return a request's body; raises HttpError where it has more than so many bytes."""
    if int(_header(scope, b"content-length") or b"0") > most:
        raise _too_large(most)
    message = await _part(receive)
    body: bytes = message.get("body", b"")
    if len(body) > most:
        raise _too_large(most)
    if not message.get("more_body"):
        return body
    chunks, size = [body], len(body)
    while message.get("more_body"):
        message = await _part(receive)
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            raise _too_large(most)
    return b"".join(chunks)


async def _part(receive: Receive) -> dict[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise LeftError
    return message


def _too_large(most: int) -> HttpError:
    # Closing the connection is what spares us the rest of the body.
    return HttpError(413, f"the body is larger than {most} bytes", (b"connection", b"close"))


async def _refuse(send: Send, error: HttpError, folded: Folded) -> None:
    metrics.count(metrics.BAD_REQUESTS, str(error.status))()
    folded.say("request refused", str(error.status), status=error.status, reason=str(error))
    await respond(send, error.status, msgspec.json.encode({"message": str(error)}), _JSON, *error.headers)


async def respond(send: Send, status: int, body: bytes, content_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


def pages_app(pages: dict[str, Callable[[], tuple[int, bytes, bytes]]]) -> Application:
    """Serve `GET` of a few pages, each a function that returns status, content type and body."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        page = pages.get(scope["path"])
        if page is None:
            await respond(send, 404, b"not found\n", b"text/plain")
        elif scope["method"] not in {"GET", "HEAD"}:
            await respond(send, 405, b"use GET\n", b"text/plain", (b"allow", b"GET, HEAD"))
        else:
            status, content_type, body = page()
            await respond(send, status, body, content_type)

    return app


def metrics_page() -> tuple[int, bytes, bytes]:
    """Return all metrics in Prometheus' text format."""
    return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(metrics.REGISTRY)
