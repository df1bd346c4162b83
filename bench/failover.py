"""How long admissions fail when a server is lost: the Sentinels' primary, etcd's leader, a replica of the webhook.

Four clients send reviews without pause. A server is killed (SIGKILL), and what is measured is the time from then to the
answer of the last admission that failed because of it. Exits 1 where a floor is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

import load
from at_least_semaphore_pod_hook.connector import Connector
from devcluster.process import free_port
from devcluster.stores import RedisServer
from devcluster.topologies import SentinelGroup
from devcluster.topologies_etcd import EtcdGroup
from devcluster.webhook import WebhookProcess

CLIENTS = 4
SETTLE_SECONDS = 1.0
QUIET_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
DOWN_AFTER_MS = 1000
ELECTION_MS = 1000


class Case(NamedTuple):
    """What is lost, where admissions are sent to, and how the next round is prepared; the floor is in seconds."""

    name: str
    floor: float
    url: str
    context: ssl.SSLContext
    lose: Callable[[], None]
    mend: Callable[[], None]


class Admissions:
    """Clients that send one review after another, and what became of each."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._numbers = itertools.count()
        self.failed: list[tuple[float, str]] = []
        self.succeeded = [0.0] * CLIENTS
        self.done = 0
        self.slowest = 0.0

    @contextlib.asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Send as long as the body runs."""
        async with aiohttp.ClientSession(connector=Connector()) as session:
            clients = [asyncio.create_task(self._send(session, number)) for number in range(CLIENTS)]
            try:
                yield
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def _send(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            began = time.monotonic()
            failure = await self._failure(session)
            now = time.monotonic()
            self.slowest = max(self.slowest, now - began)
            self.done += 1
            if failure:
                self.failed.append((now, failure))
                await asyncio.sleep(0.005)
            else:
                self.succeeded[number] = began

    def over(self, lost: float) -> bool:
        """Say whether every client has been answered since, and nothing fails any more."""
        last = max([lost, *(when for when, _ in self.failed)])
        return min(self.succeeded) > last and time.monotonic() > last + QUIET_SECONDS

    async def _failure(self, session: aiohttp.ClientSession) -> str:
        body = load.review(f"key-{next(self._numbers) % 64}", next(self._numbers))
        try:
            async with session.post(f"{self._case.url}?timeout=10s", json=body, ssl=self._case.context) as answer:
                response = (await answer.json())["response"]
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__
        return "" if response["allowed"] else str(response["status"]["message"])


async def measure(case: Case, rounds: int) -> bool:
    """Lose the server again and again; print how long admissions failed, and return whether the floor was kept."""
    outages, slowest, reasons = [], [], set()
    for number in range(rounds):
        admissions = Admissions(case)
        async with admissions.under_way():
            await asyncio.sleep(SETTLE_SECONDS)
            if admissions.failed or admissions.done < CLIENTS:
                raise SystemExit(f"{case.name}: admissions fail though nothing is lost: {admissions.failed[:1]}")
            await asyncio.to_thread(case.lose)
            lost = time.monotonic()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not admissions.over(lost):  # noqa: ASYNC110 - it waits for nothing to happen
                    await asyncio.sleep(0.05)
        outages.append(max([0.0, *(when - lost for when, _ in admissions.failed)]))
        slowest.append(admissions.slowest)
        reasons |= {reason for _, reason in admissions.failed}
        print(
            f"  {case.name}: round {number + 1}/{rounds}: {len(admissions.failed)} of {admissions.done} failed, "
            f"for {outages[-1]:.2f} s",
            file=sys.stderr,
            flush=True,
        )
        await asyncio.to_thread(case.mend)
    p99 = sorted(outages)[math.ceil(0.99 * len(outages)) - 1]
    verdict = "" if p99 <= case.floor else "  missed"
    print(
        f"{case.name:40}{rounds:4}{statistics.median(outages):8.2f}{p99:8.2f}{case.floor:8.2f}{max(slowest):10.2f}{verdict}"
    )
    for reason in sorted(reasons)[:3]:
        print(f"  such as: {reason[:150]}", file=sys.stderr)
    return p99 <= case.floor


@contextmanager
def sentinel(scratch: Path) -> Iterator[Case]:
    """Semaphores behind Sentinels, the lock elsewhere."""
    with ExitStack() as stack:
        group = stack.enter_context(SentinelGroup(scratch / "sentinel", down_after_ms=DOWN_AFTER_MS))
        lock = stack.enter_context(RedisServer(scratch / "lock"))
        flags = [f"--queue-url={group.url}", f"--redis-addresses={lock.address}"]
        webhook = stack.enter_context(WebhookProcess(scratch / "webhook", flags=flags))
        lost: list[Any] = []

        def lose() -> None:
            lost.append(group.primary())
            lost[-1].kill()

        def mend() -> None:
            group.wait_for_another(lost[-1])
            lost[-1].start()
            deadline = time.monotonic() + 30
            while group.client(group.primary()).info("replication")["connected_slaves"] < 2:
                if time.monotonic() > deadline:
                    raise SystemExit("the server that was killed does not follow the new primary")
                time.sleep(0.1)

        floor = 3.0 * DOWN_AFTER_MS / 1000
        yield Case("Sentinel's primary, down-after 1 s", floor, webhook.url, webhook.client_context(), lose, mend)


@contextmanager
def etcd(scratch: Path) -> Iterator[Case]:
    """Semaphores and lock in three members of etcd, whose election timeout is the default."""
    arguments = [f"--heartbeat-interval={ELECTION_MS // 10}", f"--election-timeout={ELECTION_MS}"]
    with ExitStack() as stack:
        group = stack.enter_context(EtcdGroup(scratch / "etcd", arguments=arguments))
        places = ",".join(f"127.0.0.1:{member.port}" for member in group.members)
        flags = ["--lock-mode=etcd", f"--etcd-addresses={places}", f"--queue-url=etcd://{places}"]
        webhook = stack.enter_context(WebhookProcess(scratch / "webhook", flags=flags))
        lost: list[Any] = []

        def lose() -> None:
            lost.append(group.leader())
            lost[-1].kill()

        def mend() -> None:
            group.start(lost[-1])

        floor = 2 * ELECTION_MS / 1000
        yield Case("etcd's leader, election timeout 1 s", floor, webhook.url, webhook.client_context(), lose, mend)


@contextmanager
def replica(scratch: Path) -> Iterator[Case]:
    """Two replicas of the webhook behind one address, which sends each connection to one that takes it."""
    with ExitStack() as stack:
        store = stack.enter_context(RedisServer(scratch / "store"))
        flags = [f"--queue-redis-address={store.address}", f"--redis-addresses={store.address}"]
        first = stack.enter_context(WebhookProcess(scratch / "webhook", flags=flags))
        context = first.client_context()
        second = WebhookProcess(scratch / "webhook-2", flags=[*flags, f"--certDir={first.certificates}"])
        stack.enter_context(second)
        replicas, turn = [first, second], itertools.count()
        port = free_port()
        stack.enter_context(_balancer(port, replicas, turn))
        lost: list[WebhookProcess] = []

        def lose() -> None:
            lost.append(replicas[len(lost) % 2])
            lost[-1].process.kill()

        def mend() -> None:
            lost[-1].start()

        yield Case("one of two webhook replicas", 1.0, f"https://127.0.0.1:{port}/mutate", context, lose, mend)


@contextmanager
def _balancer(port: int, replicas: list[WebhookProcess], turn: Iterator[int]) -> Iterator[None]:
    """Forward each connection to the replica whose turn it is, or where that takes none, to the other."""
    import threading  # noqa: PLC0415

    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in (next(turn), next(turn)):
            with contextlib.suppress(OSError):
                behind = await asyncio.open_connection("127.0.0.1", replicas[number % 2].port)
                await asyncio.gather(_pump(reader, behind[1]), _pump(behind[0], writer))
                break
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(forward, "127.0.0.1", port)
        await server.serve_forever()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    serving = loop.create_task(serve())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(5)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


CASES = {"sentinel": sentinel, "etcd": etcd, "webhook": replica}


def main() -> int:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cases", default=",".join(CASES), help="some of these, with commas")
    flags = parser.parse_args()
    print(f"{'killed':40}{'n':>4}{'p50 s':>8}{'p99 s':>8}{'floor':>8}{'slowest s':>10}")
    kept = True
    for name in flags.cases.split(","):
        with tempfile.TemporaryDirectory() as scratch, CASES[name](Path(scratch)) as case:
            kept &= asyncio.run(measure(case, flags.rounds))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
