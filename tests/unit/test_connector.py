"""That nothing is left open of what aiohttp has begun to close."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import cast

import aiohttp
import pytest
import trustme
import uvloop

from at_least_semaphore_pod_hook.connector import Connector
from tests.cluster.watching import Proxy

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Mute(asyncio.Protocol):
    """A server that answers with a head, and with no body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, _data: bytes) -> None:
        self.transport.write(_HEAD)


def _sockets() -> set[str]:
    """Return the sockets that this process has open."""

    def all_of_them() -> Iterator[str]:
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)  # noqa: PTH115 - what it names is no path

    return {target for target in all_of_them() if target.startswith("socket:")}


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_request_that_broke_off_at_a_server_that_is_frozen_leaves_no_socket(
    run: Callable[[Coroutine[None, None, None]], None], tls: bool
) -> None:
    run(_break_off(tls))


async def _break_off(tls: bool) -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = await asyncio.get_running_loop().create_server(Mute, "127.0.0.1", 0, ssl=serving if tls else None)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    async with server, proxy.serving() as url:
        connector = Connector(ssl=trusting)
        async with aiohttp.ClientSession(connector=connector) as session:
            response = await session.get(url if tls else url.replace("https", "http"))
            (ours,) = connector._sockets
            inode = os.readlink(f"/proc/self/fd/{ours.fileno()}")  # noqa: PTH115
            proxy.freeze()
            # What the end of a request does to its connection when it is cancelled.
            response.close()
            assert inode in _sockets() or not tls
        assert inode not in _sockets()
        # It was told of its end, and has not waited in vain.
        assert not connector._sockets


async def test_a_refused_connection_leaves_no_socket(unused_tcp_port: int) -> None:
    connector = Connector()
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{unused_tcp_port}/")
        assert not connector._sockets
