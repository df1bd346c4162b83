"""The status page over HTTP (an ASGI application): static files, the document, its changes, and histories."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec

from at_least_semaphore_pod_hook.overview.feed import TooManyViewersError
from at_least_semaphore_pod_hook.server.app import respond

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.overview.feed import Feed
    from at_least_semaphore_pod_hook.server.app import Application, Receive, Scope, Send

FILES = {
    "/status": ("status.html", b"text/html; charset=utf-8"),
    "/status/status.css": ("status.css", b"text/css; charset=utf-8"),
    "/status/status.js": ("status.js", b"text/javascript; charset=utf-8"),
}
DOCUMENT, EVENTS, HISTORY = "/status.json", "/status/events", "/status/history.json"
JSON, TEXT, EVENT_STREAM = b"application/json", b"text/plain", b"text/event-stream"
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
RETRY_MILLISECONDS = 2000
"""After which a viewer whose connection broke comes again."""


def status_app(feed: Feed, beside: Application) -> Application:
    """Serve the page, and what is none of it by the application `beside`."""
    static = {path: (files(__package__) / "static" / name).read_bytes() for path, (name, _) in FILES.items()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in {*FILES, DOCUMENT, EVENTS, HISTORY}:
            await beside(scope, receive, send)
        elif scope["method"] not in {"GET", "HEAD"}:
            await respond(send, 405, b"use GET\n", TEXT, *HEADERS, (b"allow", b"GET, HEAD"))
        elif path in static:
            await respond(send, 200, static[path], FILES[path][1], *HEADERS)
        elif path == DOCUMENT:
            await respond(send, 200, msgspec.json.encode(feed.current()), JSON, *HEADERS)
        elif path == HISTORY:
            names = parse_qs(scope["query_string"].decode("latin-1")).get("semaphore", [""])
            await respond(send, 200, msgspec.json.encode(feed.history(names[0])), JSON, *HEADERS)
        elif scope["method"] == "HEAD":
            await respond(send, 200, b"", EVENT_STREAM, *HEADERS)
        else:
            await _stream(feed, receive, send)

    return app


async def _stream(feed: Feed, receive: Receive, send: Send) -> None:
    """Send what changes as server-sent events, until the viewer leaves or the webhook stops."""
    left = asyncio.create_task(_left(receive))
    telling = asyncio.create_task(_tell(feed, send))
    await asyncio.wait([left, telling], return_when=asyncio.FIRST_COMPLETED)
    for task in (left, telling):
        task.cancel()
    results = await asyncio.gather(left, telling, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _tell(feed: Feed, send: Send) -> None:
    begun = False
    async with aclosing(feed.updates()) as updates:
        try:
            async for update in updates:
                if not begun:
                    begun = True
                    headers = [(b"content-type", EVENT_STREAM), (b"x-accel-buffering", b"no"), *HEADERS]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await _chunk(send, b"retry: %d\n\n" % RETRY_MILLISECONDS)
                # JSON has no line breaks of its own, so that an event is one line of data.
                await _chunk(send, b"data: %s\n\n" % msgspec.json.encode(update))
        except TooManyViewersError as error:
            await respond(send, 503, f"{error}\n".encode(), TEXT, *HEADERS)
            return
    if begun:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await respond(send, 503, b"stopping\n", TEXT, *HEADERS)


async def _chunk(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
