"""A client that checks each answer: `checking.py <url> <ca file> <bodies, a line each> <connections> <seconds>`."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from at_least_semaphore_pod_hook.connector import Connector


class _Request(msgspec.Struct):
    uid: str


class _Sent(msgspec.Struct):
    request: _Request


class _Response(msgspec.Struct):
    uid: str
    allowed: bool


class _Answer(msgspec.Struct):
    response: _Response


_answer = msgspec.json.Decoder(_Answer)


async def measure(url: str, ca_file: str, bodies: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Return answers per second, latencies in milliseconds, and the share that was allowed under the right uid."""
    sent = itertools.cycle([(body, msgspec.json.decode(body, type=_Sent).request.uid) for body in bodies])
    latencies: list[float] = []
    good = 0
    context = ssl.create_default_context(cafile=ca_file)
    headers = {"Content-Type": "application/json"}
    connector = Connector(limit=connections, ssl=context)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        start = time.perf_counter()

        async def loop() -> None:
            nonlocal good
            while (before := time.perf_counter()) - start < seconds:
                body, uid = next(sent)
                async with session.post(url, data=body) as answer:
                    response = _answer.decode(await answer.read()).response
                    good += answer.status == 200 and response.allowed and response.uid == uid
                latencies.append(time.perf_counter() - before)

        await asyncio.gather(*(loop() for _ in range(connections)))
        took = time.perf_counter() - start
    latencies.sort()
    count = len(latencies)
    return {
        "per_second": count / took,
        "p50": latencies[count // 2] * 1000,
        "p99": latencies[count * 99 // 100] * 1000,
        "success": good / count,
    }


def main() -> None:
    """Measure and print JSON."""
    url, ca_file, bodies, connections, seconds = sys.argv[1:]
    lines = Path(bodies).read_bytes().splitlines()
    print(json.dumps(uvloop.run(measure(url, ca_file, lines, int(connections), float(seconds)))))


if __name__ == "__main__":
    main()
