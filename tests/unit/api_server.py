"""A small HTTP server in the place of the API server, for the answers that a real one seldom gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.kube import Kube, WatchEvent
from tests.unit.views import DECODER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An API server that hands each request to `handler` and remembers it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.requests: list[web.Request] = []
        self.bodies: list[Any] = []
        self.handler: Handler
        self.kube: Kube

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.json() if request.can_read_body else None)
        return await self.handler(request)

    def answer(self, code: int, body: Any) -> None:
        async def handler(_request: web.Request) -> web.Response:
            return web.json_response(body, status=code)

        self.handler = handler

    def refuse(self, code: int, reason: str, **details: Any) -> None:
        self.answer(code, status(code, reason, **details))


def status(code: int, reason: str, **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"it is {reason}", "details": details}


def stream(*lines: Any, then: float = 0) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        for start in range(0, len(text), 100):
            await response.write(text[start : start + 100])
            await asyncio.sleep(0)
        await asyncio.sleep(then)
        return response

    return handler


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Server]:
    served = Server(tmp_path / "kubeconfig")
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", served.handle)
    async with TestServer(application) as http:
        (tmp_path / "token").write_text("first")
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": str(http.make_url("")).rstrip("/")}}],
            "users": [{"name": "u", "user": {"tokenFile": str(tmp_path / "token")}}],
        }
        served.kubeconfig.write_text(json.dumps(config))
        served.kube = Kube(Connection.open(str(served.kubeconfig)), DECODER, instance="hook-0", watch_seconds=1)
        yield served
        await served.kube.close()


async def watched(server: Server) -> list[WatchEvent]:
    return [event async for event in server.kube.watch_pods("ours=true", "3")]
