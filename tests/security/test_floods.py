"""Floods of the admission port: real clients by the thousand, in a process of their own."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devcluster.flood import Flood
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess
from tests.cluster.e2e import Caller, metric, opted_in, pod, review

if TYPE_CHECKING:
    from collections.abc import Iterator


FLOOD_SECONDS = 3.0
CONNECTIONS = 1000
GROWTH_MIB = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def resident_mib(webhook: WebhookProcess) -> float:
    """Return the webhook's resident memory in MiB."""
    status = Path(f"/proc/{webhook.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def admit_for(webhook: WebhookProcess, seconds: float) -> tuple[int, float, float]:
    """Admit pods one after the other, every tenth on a connection of its own.

    Returns how many there were, the longest time in seconds that one took, and the highest memory in MiB.
    """
    body = review(pod("valid", opted_in("flooded", 3)), "team", dry_run=True)
    longest, peak, number = 0.0, 0.0, 0
    end = time.monotonic() + seconds
    context = webhook.client_context()
    with Caller(webhook.port, context) as kept:
        while time.monotonic() < end:
            began = time.monotonic()
            if number % 10:
                assert kept.admit(body)["allowed"]
            else:
                with Caller(webhook.port, context) as once:
                    assert once.admit(body)["allowed"]
            longest = max(longest, time.monotonic() - began)
            peak = max(peak, resident_mib(webhook))
            number += 1
    return number, longest, peak


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("lengths", ()),
        ("chunks", ("unfinished_bytes", "unfinished")),
        ("slow-headers", ("unfinished",)),
        ("slow-bodies", ("unfinished_bytes", "unfinished")),
        ("endless-headers", ("head_size", "unfinished")),
        ("half-handshakes", ("unfinished",)),
    ],
)
def test_a_flood_takes_neither_memory_nor_admissions(
    tmp_path: Path, store: RedisServer, kind: str, reasons: tuple[str, ...]
) -> None:
    given = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
    with WebhookProcess(tmp_path, flags=given) as webhook:
        admit_for(webhook, 0.5)
        before = resident_mib(webhook)
        with Flood(kind, webhook.port, tmp_path / "flood.log", FLOOD_SECONDS + 2, CONNECTIONS):
            admitted, longest, peak = admit_for(webhook, FLOOD_SECONDS)

        assert webhook.process.alive
        assert admitted > 10
        assert longest < 10, "an admission took longer than its timeout"
        assert peak - before <= GROWTH_MIB
        cut = {reason: metric(webhook, "cut_connections_total", reason=reason) for reason in reasons}
        assert sum(cut.values()) > 0 or not reasons
        # Folded: however many there are, one line a second and kind.
        assert webhook.log().count("connection cut") <= 4 * (FLOOD_SECONDS + 5)


def test_what_is_slow_is_told_so(tmp_path: Path, store: RedisServer) -> None:
    given = [f"--redis-addresses={store.address}", f"--queue-redis-address={store.address}"]
    with WebhookProcess(tmp_path, flags=given) as webhook:
        slow = http.client.HTTPSConnection("127.0.0.1", webhook.port, timeout=20, context=webhook.client_context())
        slow.connect()
        slow.send(b"POST /mutate HTTP/1.1\r\nx-never: ends\r\n")
        assert slow.sock is not None
        answer = http.client.HTTPResponse(slow.sock, method="POST")
        answer.begin()
        assert answer.status == 408
        assert "longer than 5 s" in json.loads(answer.read())["message"]
        slow.close()
        assert metric(webhook, "cut_connections_total", reason="slow_head") == 1
