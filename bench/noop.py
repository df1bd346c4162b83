"""The least that a webhook can do on the same server: read the request's uid, allow. What ours is held against."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from at_least_semaphore_pod_hook.admission import review
from at_least_semaphore_pod_hook.server import app
from at_least_semaphore_pod_hook.server.certificates import ServingCertificate
from at_least_semaphore_pod_hook.server.run import make_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _Request(msgspec.Struct):
    uid: str


class _Review(msgspec.Struct):
    request: _Request


_decoder = msgspec.json.Decoder(_Review)


async def noop(
    _scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Allow whatever is asked (an ASGI application)."""
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    await app.respond(send, 200, review.allowed(_decoder.decode(body).request.uid), b"application/json")


def main() -> None:
    """Serve on --port with the certificate in --cert-dir until ended by a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert-dir", required=True)
    flags = parser.parse_args()
    certificate = ServingCertificate(flags.cert_dir)
    certificate.load()

    async def serve() -> None:
        await make_server(noop, "127.0.0.1", flags.port, certificate).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
