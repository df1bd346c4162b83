"""Admissions per second of the webhook beside a no-op on the same server, in turns within one run, and memory.

Store and load run on the same machine, so that only the ratios carry over to another one.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import uvicorn

import load
from at_least_semaphore_pod_hook import sidecar
from devcluster.process import Process, free_port
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess

# The way the container image runs it.
PYTHON = (sys.executable, "-OO")
CLIENTS = ("light", "checking")


class Case(NamedTuple):
    """What is measured: by which client, over how many connections at once and how many keys."""

    client: str
    connections: int
    keys: int

    def __str__(self) -> str:
        return f"{self.client:9}{self.connections:3} connections, {self.keys:2} key{'s' if self.keys > 1 else ''}"


CONNECTIONS = (16, 64)


def resident_mib(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def accepts(port: int) -> bool:
    """Say whether something listens on a port of 127.0.0.1."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def bodies(keys: int) -> list[dict[str, object]]:
    """Return reviews over so many keys."""
    return [load.review(f"key-{number % keys}", number) for number in range(64)]


def compile_as_image() -> None:
    """Write the bytecode that the image has.

    Without it Python would compile at each start, and the memory that takes would stay.
    """
    places = [str(Path(str(module.__file__)).parents[depth]) for module, depth in ((sidecar, 1), (uvicorn, 1))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([*PYTHON, "-m", "compileall", "-q", "-j0", *places], check=False, env=environment)


@contextmanager
def noop_server(certificates: Path, log: Path) -> Iterator[str]:
    """Run the no-op; yields its URL."""
    port = free_port()
    script = str(Path(__file__).with_name("noop.py"))
    noop = Process("noop", [*PYTHON, script, f"--port={port}", f"--cert-dir={certificates}"], log)
    noop.start()
    try:
        noop.wait_until(lambda: accepts(port), 10)
        yield f"https://127.0.0.1:{port}/mutate"
    finally:
        noop.terminate()


def main() -> None:
    """Print a table of rates, latencies and ratios, and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each measurement takes")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is taken; medians are shown")
    flags = parser.parse_args()
    compile_as_image()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), flags.seconds, flags.rounds)


def measure(scratch: Path, seconds: float, rounds: int) -> None:
    """Measure every case and print it."""
    with RedisServer(scratch / "redis") as store:
        flags = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
        with WebhookProcess(scratch / "webhook", flags=flags, python=PYTHON) as webhook:
            memory = [f"{resident_mib(webhook.process.pid):.1f} MiB idle"]
            rows: dict[Case, tuple[load.Result, load.Result]] = {}
            with noop_server(webhook.certificates, scratch / "noop.log") as noop:
                subjects = {"no-op": noop, "webhook": webhook.url}
                for connections in CONNECTIONS:
                    cases = [Case(client, connections, keys) for client in CLIENTS for keys in (64, 1)]
                    rows |= compare(cases, subjects, webhook.directory / "fresh" / "ca.crt", scratch, seconds, rounds)
                    memory.append(f"{resident_mib(webhook.process.pid):.1f} MiB after {connections} connections")
        small = sidecar_mib(store, scratch)
    print(f"\n{'':36}{'no-op/s':>9}{'webhook/s':>11}{'ratio':>7}{'p50 ms':>8}{'p99 ms':>8}")
    for case, (base, ours) in rows.items():
        ratio = ours.per_second / base.per_second
        print(f"{case!s:36}{base.per_second:9.0f}{ours.per_second:11.0f}{ratio:7.2f}{ours.p50:8.1f}{ours.p99:8.1f}")
    for client in CLIENTS:
        spread, single = (rows[Case(client, 16, keys)][1].per_second for keys in (64, 1))
        print(f"{client}: one key beside 64 keys, 16 connections: {single / spread:.2f} of the rate")
    print(f"resident memory: webhook {', '.join(memory)}; sidecar {small:.1f} MiB")


def compare(
    cases: list[Case], subjects: dict[str, str], ca_file: Path, scratch: Path, seconds: float, rounds: int
) -> dict[Case, tuple[load.Result, load.Result]]:
    """Measure all subjects in turn, `rounds` times, so that a drift of the machine's speed meets all alike."""
    taken: dict[tuple[Case, str], list[load.Result]] = {}
    for url in subjects.values():
        load.run("light", url, ca_file, bodies(64), connections=16, seconds=1, scratch=scratch)
    for number in range(rounds):
        for case in cases:
            for subject, url in subjects.items():
                result = load.run(
                    case.client,
                    url,
                    ca_file,
                    bodies(case.keys),
                    connections=case.connections,
                    seconds=seconds,
                    scratch=scratch,
                )
                if result.success < 1:
                    raise SystemExit(f"{subject}, {case}: only {result.success:.1%} were answered as they should be")
                taken.setdefault((case, subject), []).append(result)
                print(f"round {number + 1}/{rounds}  {case!s:36}{subject:8} {result.per_second:7.0f}/s", flush=True)
    base, ours = subjects
    return {case: (_median(taken[case, base]), _median(taken[case, ours])) for case in cases}


def _median(results: list[load.Result]) -> load.Result:
    return load.Result(
        statistics.median(result.per_second for result in results),
        statistics.median(result.p50 for result in results),
        statistics.median(result.p99 for result in results),
        min(result.success for result in results),
    )


def sidecar_mib(store: RedisServer, scratch: Path) -> float:
    """Return a sidecar's resident memory after its first renewals, in MiB."""
    argv = [*PYTHON, "-m", "at_least_semaphore_pod_hook", "sidecar", f"--queue-redis-address={store.address}"]
    process = Process("sidecar", [*argv, "default/key", "0123456789abcdef"], scratch / "sidecar.log")
    process.start()
    try:
        time.sleep(1)
        return resident_mib(process.pid)
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
