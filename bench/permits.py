"""What sidecars in api mode cost a replica of the webhook: its share of a core while so many renew.

Each has a connection of its own, kept open, and a real token of its own, which a real API server reviews once a minute.
They renew every third of a lease of 60 seconds. What is measured is the webhook's processor time; load, store and API
server run beside it and are not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import ssl
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from admissions import PYTHON, compile_as_image, resident_mib
from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, Fence, SemaphoreKey
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.controlplane import ControlPlane
from devcluster.process import Process
from devcluster.stores import RedisServer
from devcluster.webhook import SHIPPED_ACCOUNT, WebhookProcess, shipped_rules

AUDIENCE = "at-least-semaphore-pod-hook.kaidotio.github.io"
KEY = SemaphoreKey("default", "seats")
LEASE_SECONDS = 3600
"""Of the permits, so that none ends while all are connected; they renew as with a lease of a minute."""
EVERY_SECONDS = 20
ROUNDS_KNOWN, ROUNDS = 2, 6
"""After the first round all tokens are known for two more; in the four after those each is asked about once again."""
HANDSHAKES = 32
TOKEN_THREADS = 4
TARGET_SHARE = 0.10
TARGET_RSS_MIB = 18.0


class Sidecar(asyncio.Protocol):
    """A connection that renews one permit when it is told to."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self._request = request
        self._latencies = latencies
        self._transport: asyncio.Transport | None = None
        self._sent = 0.0
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Count it: nobody should close it."""
        self.failures += 1

    def renew(self) -> None:
        """Send a renewal."""
        if self._transport is not None:
            self._sent = time.perf_counter()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take an answer, which comes in one piece."""
        self._latencies.append(time.perf_counter() - self._sent)
        if b" 200 OK" not in data or b'"lease_ms":3600000' not in data:
            self.failures += 1
            print(data.decode(), file=sys.stderr)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tokens(plane: ControlPlane, uid: str, count: int) -> list[str]:
    """Ask for so many tokens of the one pod."""
    bound = {"apiVersion": "v1", "kind": "Pod", "name": "bench", "uid": uid}
    body = json.dumps({"spec": {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}})
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    headers = {"Authorization": f"Bearer {plane.token}", "Content-Type": "application/json"}

    def ask(share: int) -> list[str]:
        context = ssl.create_default_context(cafile=plane.ca_file)
        connection = http.client.HTTPSConnection("127.0.0.1", plane.port, context=context)
        found = []
        for _ in range(share):
            connection.request("POST", path, body, headers)
            found.append(json.loads(connection.getresponse().read())["status"]["token"])
        connection.close()
        return found

    shares = [count // TOKEN_THREADS + (number < count % TOKEN_THREADS) for number in range(TOKEN_THREADS)]
    with ThreadPoolExecutor(TOKEN_THREADS) as threads:
        return [token for share in threads.map(ask, shares) for token in share]


async def take_permits(address: str, count: int) -> None:
    """Take so many permits for the one pod."""
    store = open_store(parse_store_url(f"redis://{address}"))
    step = await store.begin(KEY, Fence("redlock", 0))
    await store.set_length(KEY, count, step.fence)
    for start in range(0, count, 500):
        wishes = [
            AcquireRequest(KEY, 0, LEASE_SECONDS, f"p{number}", f"i{number}", pod="bench")
            for number in range(start, min(count, start + 500))
        ]
        await asyncio.gather(*map(store.acquire, wishes))
    await store.close()


def request(number: int, token: str, authorities: int) -> bytes:
    """Return a renewal as a sidecar sends it."""
    body = json.dumps({"semaphore": str(KEY), "permit": f"p{number}", "authorities": authorities}).encode()
    return (
        f"POST /v1/permits/renew HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode() + body


async def renewals(webhook: WebhookProcess, known: list[str]) -> None:
    """Connect all, renew for some rounds, and say what it cost."""
    from binascii import crc32  # noqa: PLC0415 - as the sidecar does

    loop, latencies = asyncio.get_running_loop(), list[float]()
    context = webhook.client_context()
    slots = asyncio.Semaphore(HANDSHAKES)
    authorities = crc32(webhook.ca_bundle)

    async def connect(number: int, token: str) -> Sidecar:
        async with slots:
            _, sidecar = await loop.create_connection(
                lambda: Sidecar(request(number, token, authorities), latencies),
                "127.0.0.1",
                webhook.permit_port,
                ssl=context,
                ssl_handshake_timeout=120,
            )
        return sidecar

    sidecars = await asyncio.gather(*(connect(number, token) for number, token in enumerate(known)))
    pid = webhook.process.pid
    print(f"{len(sidecars)} sidecars are connected; the webhook has {resident_mib(pid):.0f} MiB", flush=True)
    gap = EVERY_SECONDS / len(sidecars)
    before = Reading.of(webhook)
    for turn in range(ROUNDS + 1):
        first = loop.time()
        for number, sidecar in enumerate(sidecars):
            late = first + number * gap - loop.time()
            if late > 0:
                await asyncio.sleep(late)
            sidecar.renew()
        if turn in {0, ROUNDS_KNOWN, ROUNDS}:
            now = Reading.of(webhook)
            if turn:
                now.say(before, latencies)
            before = now
            latencies.clear()
    print(f"{sum(sidecar.failures for sidecar in sidecars)} failed; the webhook has {resident_mib(pid):.0f} MiB")


class Reading(NamedTuple):
    """What the webhook has used and done by a moment."""

    at: float
    cpu: float
    reviews: float

    @classmethod
    def of(cls, webhook: WebhookProcess) -> Reading:
        """Read it."""
        return cls(time.monotonic(), cpu_seconds(webhook.process.pid), reviewed(webhook))

    def say(self, before: Reading, latencies: list[float]) -> None:
        """Say what was between two of them."""
        seconds = self.at - before.at
        share, rate = (self.cpu - before.cpu) / seconds, len(latencies) / seconds
        ordered = sorted(latencies)
        print(
            f"{rate:.0f} renewals and {(self.reviews - before.reviews) / seconds:.0f} token reviews a second: "
            f"{share:.1%} of a core (target {TARGET_SHARE:.0%}), {share / rate * 1e6:.0f} µs a renewal; "
            f"p50 {statistics.median(ordered) * 1e3:.0f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.0f} ms",
            flush=True,
        )


def reviewed(webhook: WebhookProcess) -> float:
    """Return how many tokens the API server has been asked about."""
    text = webhook.get(webhook.metrics_port, "/metrics")[1]
    return sum(float(value) for value in re.findall(r"token_reviews_total\{[^}]*\} (\S+)", text))


def sidecar_memory(webhook: WebhookProcess, token: str, directory: Path) -> None:
    """Say what a real sidecar takes."""
    file = directory / "token"
    file.write_text(token)
    flags = (f"--permit-url=https://127.0.0.1:{webhook.permit_port}", f"--permit-token-file={file}")
    argv = [*PYTHON, "-m", "at_least_semaphore_pod_hook", "sidecar", *flags, str(KEY), "p0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"AT_LEAST_SEMAPHORE_PERMIT_AUTHORITIES": webhook.ca_bundle.decode()}
    process = Process("sidecar", argv, directory / "sidecar.log", env=environment)
    process.start()
    process.wait_until(lambda: "confirmed the permit" in process.log.read_text(), 30)
    print(f"a sidecar has {resident_mib(process.pid):.1f} MiB (target {TARGET_RSS_MIB:.0f})")
    process.kill()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sidecars", type=int, default=10_000)
    count = parser.parse_args().sidecars
    compile_as_image()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with ControlPlane(directory / "plane") as plane, RedisServer(directory / "store") as store:
            spec = {"containers": [{"name": "main", "image": "none"}], "nodeSelector": {"none": "none"}}
            made = {"metadata": {"name": "bench"}, "spec": spec}
            uid = plane.request("POST", "/api/v1/namespaces/default/pods", made)["metadata"]["uid"]
            known = tokens(plane, uid, count)
            asyncio.run(take_permits(store.address, count))
            # The right to review tokens, and no other: as on a replica that does not lead, no controller works.
            plane.kubectl("apply", "-f", "-", input=shipped_rules("sidecar-api"))
            kubeconfig = plane.user_kubeconfig(f"system:serviceaccount:default:{SHIPPED_ACCOUNT}")
            flags = (
                f"--queue-redis-address={store.address}",
                f"--redis-addresses={store.address}",
                f"--kubeconfig={kubeconfig}",
                "--log-level=error",
            )
            with WebhookProcess(directory / "webhook", flags=flags, python=PYTHON, api=True) as webhook:
                sidecar_memory(webhook, known[0], directory)
                uvloop.run(renewals(webhook, known))


if __name__ == "__main__":
    main()
