"""Admissions per second of the webhook beside a no-op on the same server, in turns within one run, and memory.

Store and load run on the same machine, so that only the ratios carry over to another one.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import load
from devcluster.process import Process, free_port
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess

# The way the container image runs it.
PYTHON = (sys.executable, "-OO")


class Case(NamedTuple):
    """What is measured: how many connections at once, over how many keys."""

    connections: int
    keys: int

    def __str__(self) -> str:
        return f"{self.connections} connections, {self.keys} key{'s' if self.keys > 1 else ''}"


CASES = (Case(16, 64), Case(16, 1), Case(64, 64), Case(64, 1))


def resident_mb(pid: int) -> float:
    """Return a process's resident memory in MB (10^6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def accepts(port: int) -> bool:
    """Say whether something listens on a port of 127.0.0.1."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def bodies(keys: int) -> list[dict[str, object]]:
    """Return reviews over so many keys."""
    return [load.review(f"key-{number % keys}", number) for number in range(64)]


def main() -> None:
    """Print a table of rates, latencies and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each measurement takes")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is taken; medians are shown")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), flags.seconds, flags.rounds)


def measure(scratch: Path, seconds: float, rounds: int) -> None:
    """Measure every case and print it."""
    with RedisServer(scratch / "redis") as store:
        flags = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
        with WebhookProcess(scratch / "webhook", flags=flags, python=PYTHON) as webhook:
            idle = resident_mb(webhook.process.pid)
            port = free_port()
            argv = [*PYTHON, str(Path(__file__).with_name("noop.py"))]
            argv += [f"--port={port}", f"--cert-dir={webhook.certificates}"]
            ca_file = scratch / "webhook" / "fresh" / "ca.crt"
            noop = Process("noop", argv, scratch / "noop.log")
            noop.start()
            try:
                noop.wait_until(lambda: accepts(port), 10)
                subjects = {"no-op": f"https://127.0.0.1:{port}/mutate", "webhook": webhook.url}
                rows = compare(subjects, ca_file, scratch, seconds, rounds)
            finally:
                noop.terminate()
            busy = resident_mb(webhook.process.pid)
    print(f"\n{'':28}{'no-op/s':>9}{'webhook/s':>11}{'ratio':>7}{'p50 ms':>8}{'p99 ms':>8}")
    for case, (base, ours) in rows.items():
        ratio = ours.per_second / base.per_second
        print(f"{case!s:28}{base.per_second:9.0f}{ours.per_second:11.0f}{ratio:7.2f}{ours.p50:8.1f}{ours.p99:8.1f}")
    spread, single = rows[Case(16, 64)][1].per_second, rows[Case(16, 1)][1].per_second
    print(f"\none key beside 64 keys, 16 connections: {single / spread:.2f} of the rate")
    print(f"webhook's resident memory: {idle:.1f} MB idle, {busy:.1f} MB after the load")


def compare(
    subjects: dict[str, str], ca_file: Path, scratch: Path, seconds: float, rounds: int
) -> dict[Case, tuple[load.Result, load.Result]]:
    """Measure all subjects in turn, `rounds` times, so that a drift of the machine's speed meets all alike."""
    taken: dict[tuple[Case, str], list[load.Result]] = {}
    for url in subjects.values():
        load.run(url, ca_file, bodies(64), connections=16, seconds=1, scratch=scratch)
    for number in range(rounds):
        for case in CASES:
            for subject, url in subjects.items():
                result = load.run(
                    url, ca_file, bodies(case.keys), connections=case.connections, seconds=seconds, scratch=scratch
                )
                if result.success < 1:
                    raise SystemExit(f"{subject}, {case}: only {result.success:.1%} were answered with 200")
                taken.setdefault((case, subject), []).append(result)
                print(f"round {number + 1}/{rounds}  {case!s:28} {subject:8} {result.per_second:7.0f}/s", flush=True)
    rows = {}
    for case in CASES:
        base, ours = (
            load.Result(
                *(statistics.median(column) for column in zip(*map(_figures, taken[case, subject]), strict=True))
            )
            for subject in subjects
        )
        rows[case] = (base, ours)
    return rows


def _figures(result: load.Result) -> tuple[float, float, float, float]:
    return result.per_second, result.p50, result.p99, result.success


if __name__ == "__main__":
    main()
