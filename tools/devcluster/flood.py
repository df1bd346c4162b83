"""A process that floods a TLS port from many connections at once, each of which comes again when it is cut.

`python -m devcluster.flood KIND PORT SECONDS [CONNECTIONS]` prints how many connections were made, and what they met.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from devcluster.process import Process

MIB = 1024 * 1024
HEAD = b"POST /mutate?timeout=10s HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\n"
BEAT_SECONDS = 1.0
FROM = "127.0.0.2"
"""Its own address, as that of another pod would be."""
_AGAIN_SECONDS = 0.1
_CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
_LONGEST_SECONDS = 600.0
# A handshake's first record, which says that it is 512 bytes long, and ends before that.
_HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

Work = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> None:
    """Send a byte a second."""
    while not reader.at_eof():
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(BEAT_SECONDS)


async def _pour(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    for _ in range(100 * MIB // len(chunk)):
        writer.write(chunk)
        await writer.drain()


async def lengths(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body of 100 MiB that says so."""
    writer.write(HEAD + b"content-length: %d\r\n\r\n" % (100 * MIB))
    await _pour(writer, b" " * 65536)


async def chunks(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body of 100 MiB that does not say how long it is."""
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    await _pour(writer, _CHUNK)


async def slow_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a header byte a second."""
    writer.write(HEAD)
    await _drip(reader, writer, b"x-header: x\r\n")


async def slow_bodies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send all of a large body at once, but for its end, which comes by a byte a second."""
    writer.write(HEAD + b"content-length: %d\r\n\r\n" % (3 * MIB))
    writer.write(b" " * (3 * MIB - 1000))
    await _drip(reader, writer, b" ")


async def endless_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send headers that do not end."""
    writer.write(HEAD)
    await _pour(writer, b"x-header: x\r\n" * 4096)


async def pipelined(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send requests and wait for no answer."""
    await _pour(writer, b"GET / HTTP/1.1\r\nhost: webhook\r\n\r\n" * 2048)


async def handshakes(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Shake hands, and come again."""


async def half_handshakes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin a handshake, and say no more."""
    writer.write(_HALF_HELLO)
    await reader.read()


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Shake hands, and say no more."""
    await reader.read()


KINDS: dict[str, Work] = {
    work.__name__.replace("_", "-"): work
    for work in (
        lengths,
        chunks,
        slow_headers,
        slow_bodies,
        endless_headers,
        pipelined,
        handshakes,
        half_handshakes,
        silent,
    )
}


class Flood(Process):
    """A flood from a process of its own, which gives way to others; a context manager. Ends by itself at the latest."""

    def __init__(self, kind: str, port: int, log: Path, seconds: float = 30.0, connections: int = 1000) -> None:
        argv = ["nice", "-n", "10", sys.executable, "-m", "devcluster.flood", kind, str(port)]
        path = str(Path(__file__).parents[1])
        super().__init__("flood", [*argv, str(seconds), str(connections)], log, env=os.environ | {"PYTHONPATH": path})

    def counts(self) -> dict[str, int]:
        """Return what its connections met; empty before its end."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return dict(json.loads(lines[-1])) if lines else {}


async def flood(kind: str, port: int, seconds: float, connections: int) -> Counter[str]:
    """Flood a port of 127.0.0.1; return how many connections were made, and how they ended."""
    work = KINDS[kind]
    context = None if kind == "half-handshakes" else ssl._create_unverified_context()  # noqa: S323, SLF001 - it is ours
    counted: Counter[str] = Counter()
    # What becomes of a connection is counted, and no error.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    async def one() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(FROM, 0))
                counted["connected"] += 1
                try:
                    await work(reader, writer)
                finally:
                    if answer := bytes(reader._buffer[:12]):  # type: ignore[attr-defined]  # noqa: SLF001 - what came
                        counted[answer.decode(errors="replace")] += 1
                    writer.transport.abort()
            except OSError as error:
                counted[type(error).__name__] += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    return counted


def main() -> None:
    """Flood, and print what was met as JSON."""
    kind, port, seconds, *more = sys.argv[1:]
    most = min(float(seconds), _LONGEST_SECONDS)
    print(json.dumps(uvloop.run(flood(kind, int(port), most, int(more[0]) if more else 1000))))


if __name__ == "__main__":
    main()
