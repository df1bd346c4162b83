"""What floods of a webhook's port cost: its memory, and how long valid admissions take meanwhile.

Webhook, store, flood and the caller that is measured are processes of their own, on one machine.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import load
from admissions import PYTHON, compile_as_image, resident_mib
from devcluster.flood import KINDS, Flood
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess

PAUSE_SECONDS = 0.005
FRESH_SECONDS = 0.5
TIMEOUT_SECONDS = 10.0


class Measured(NamedTuple):
    """Valid admissions: seconds that each took on a kept connection and on new ones, those that failed, and memory."""

    kept: list[float]
    fresh: list[float]
    failed: list[str]
    peak_mib: float

    def milliseconds(self, share: float) -> float:
        """Return how long this share of admissions on a kept connection took at most."""
        ordered = sorted(self.kept)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else float("nan")


def measure(webhook: WebhookProcess, seconds: float) -> Measured:
    """Send valid admissions for a while: one after the other on a kept connection, and now and then on a new one."""
    measured = Measured([], [], [], 0.0)
    context = webhook.client_context()
    peak, numbers = 0.0, itertools.count()

    def connect() -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", webhook.port, timeout=TIMEOUT_SECONDS, context=context)

    def admit(connection: http.client.HTTPSConnection, taken: list[float]) -> None:
        number = next(numbers)
        body = json.dumps(load.review(f"key-{number % 8}", number))
        began = time.perf_counter()
        try:
            connection.request("POST", "/mutate?timeout=10s", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200 or not json.loads(answer.read())["response"]["allowed"]:
                measured.failed.append(f"status {answer.status}")
        except OSError as error:
            connection.close()
            measured.failed.append(f"{type(error).__name__}: {error}")
        taken.append(time.perf_counter() - began)

    kept = connect()
    end, next_fresh = time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < end:
        admit(kept, measured.kept)
        if now >= next_fresh:
            next_fresh = now + FRESH_SECONDS
            fresh = connect()
            admit(fresh, measured.fresh)
            fresh.close()
        peak = max(peak, resident_mib(webhook.process.pid))
        time.sleep(PAUSE_SECONDS)
    kept.close()
    return measured._replace(peak_mib=peak)


def main() -> None:
    """Print a line for each kind of flood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each flood takes, 30 at most")
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=f"of {', '.join(KINDS)}; all by default")
    flags = parser.parse_args()
    compile_as_image()
    print(f"{'flood':18}{'MiB before':>11}{'peak':>8}{'after':>8}{'n':>7}{'p50 ms':>8}{'p99 ms':>8}{'max':>8}", end="")
    print(f"{'new p50':>9}{'max':>8}  failed", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with RedisServer(scratch / "redis") as store:
            for kind in ("rest", *flags.kinds):
                show(kind, scratch / kind, store, min(flags.seconds, 30.0))


def show(kind: str, directory: Path, store: RedisServer, seconds: float) -> None:
    """Measure one flood, or none at all, and print it."""
    given = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
    with WebhookProcess(directory, flags=given, python=PYTHON) as webhook:
        measure(webhook, 2)
        before = resident_mib(webhook.process.pid)
        if kind == "rest":
            measured, met = measure(webhook, seconds / 2), {}
        else:
            flood = Flood(kind, webhook.port, directory / "flood.log", seconds)
            with flood:
                time.sleep(1)
                measured = measure(webhook, seconds - 1)
                flood.wait_until(lambda: bool(flood.counts()), 20, "counted")
            met = flood.counts()
        time.sleep(2)
        after = resident_mib(webhook.process.pid)
    fresh = sorted(measured.fresh)
    print(
        f"{kind:18}{before:11.1f}{measured.peak_mib:8.1f}{after:8.1f}{len(measured.kept):7}"
        f"{measured.milliseconds(0.5):8.1f}{measured.milliseconds(0.99):8.1f}{measured.milliseconds(1):8.1f}"
        f"{fresh[len(fresh) // 2] * 1000:9.1f}{fresh[-1] * 1000:8.1f}  "
        f"{len(measured.failed)} {measured.failed[:2]} {met}",
        flush=True,
    )


if __name__ == "__main__":
    main()
