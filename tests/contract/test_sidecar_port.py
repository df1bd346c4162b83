"""The port of a sidecar as a process, against a real store: open while the permit is confirmed, closed in time."""

from __future__ import annotations

import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.settings import fence_margin
from at_least_semaphore_pod_hook.sidecar.port import BACKLOG
from devcluster.process import free_port
from tests.contract.test_sidecar import MAX_RSS_KB
from tests.sidecar_harness import HOLDERS, INFLIGHT, Process, Server, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Starter = Callable[..., Process]

LEASE_MS = 10_000
FENCE = "--fence=true"


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((host, port), 1):
            return True
    except OSError:
        return False


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def flag(port: int) -> str:
    return f"--confirm-port={port}"


def take_away(server: Server) -> None:
    """Give the permit to somebody else."""
    server.client.zrem(INFLIGHT, "p1")
    server.client.hdel(HOLDERS, "p1")
    server.acquire("other", length=1)


def give_back(server: Server) -> None:
    server.client.zrem(INFLIGHT, "other")
    server.client.hdel(HOLDERS, "other")
    server.acquire(length=1, lease_ms=LEASE_MS)


def test_it_opens_after_the_first_renewal_and_takes_every_connection(
    server: Server, new_sidecar: Starter, port: int, flag: str
) -> None:
    server.acquire("other", length=1)
    sidecar = new_sidecar(server.address, flag)
    sidecar.says("waiting for a permit")
    assert not is_open(port)
    start = time.monotonic()
    give_back(server)
    until(lambda: is_open(port))
    assert time.monotonic() - start < 2
    assert server.confirmed()
    for _ in range(3 * BACKLOG):
        assert is_open(port)
        time.sleep(0.01)
    assert is_open(port, "::1")
    with socket.create_connection(("127.0.0.1", port), 1) as connection:
        assert connection.recv(1) == b""
    assert [line["level"] for line in sidecar.lines()] == ["warning", "info"]
    assert sidecar.end()[0] == 0
    assert not is_open(port)


def test_without_a_fence_it_stays_open_whatever_becomes_of_the_permit(
    server: Server, new_sidecar: Starter, port: int, flag: str
) -> None:
    server.acquire(length=1, lease_ms=600)
    sidecar = new_sidecar(server.address, flag)
    until(lambda: is_open(port))
    take_away(server)
    sidecar.says("not ours any more")
    assert is_open(port)
    server.stop()
    sidecar.says("the lease has run out")
    assert is_open(port)


@pytest.mark.parametrize("fault", ["hangs", "is killed"])
def test_a_fence_closes_it_a_margin_before_the_lease_ends_and_a_renewal_opens_it_again(
    server: Server, new_sidecar: Starter, port: int, flag: str, fault: str
) -> None:
    server.acquire(length=1, lease_ms=LEASE_MS)
    sidecar = new_sidecar(server.address, flag, FENCE)
    until(lambda: is_open(port))
    end = server.lease_end() / 1000
    if fault == "hangs":
        server.signal(signal.SIGSTOP)
    else:
        server.stop()
    try:
        until(lambda: not is_open(port), LEASE_MS / 1000)
        left = end - time.time()
        margin = fence_margin(LEASE_MS)
        assert margin - 0.5 < left <= margin + 0.5
        sidecar.says(
            f"port {port} closed, so that the pod's work stops: the permit could not be renewed, and its lease"
        )
        assert any("ends in 5.0 s" in line["message"] for line in sidecar.lines("error"))
        time.sleep(0.5)
        assert not is_open(port)
    finally:
        if fault == "hangs":
            server.signal(signal.SIGCONT)
        else:
            server.start()
    until(lambda: is_open(port))
    sidecar.says(f"port {port} open again")


def test_nobody_gets_the_permit_before_it_has_been_closed_for_the_margin(
    server: Server, new_sidecar: Starter, port: int, flag: str
) -> None:
    """The store works, and only the sidecar is shut out of it."""
    server.client.acl_setuser("sidecar", enabled=True, passwords=["+p"], keys=["*"], categories=["+@all"])
    server.acquire(length=1, lease_ms=LEASE_MS)
    sidecar = new_sidecar(f"redis://sidecar:p@{server.address}", flag, FENCE)
    until(lambda: is_open(port))
    server.client.acl_setuser("sidecar", enabled=False)
    server.client.client_kill_filter(_type="normal", user="sidecar")

    until(lambda: not is_open(port), LEASE_MS / 1000)
    closed = time.monotonic()

    def granted() -> bool:
        try:
            server.acquire("next", length=1)
        except AssertionError:
            return False
        return True

    assert not granted()
    until(granted, LEASE_MS / 1000)
    assert time.monotonic() - closed >= fence_margin(LEASE_MS) - 0.1
    assert not is_open(port)
    sidecar.says("the lease has run out")


def test_a_fence_closes_it_at_once_where_the_permit_is_not_held(
    server: Server, new_sidecar: Starter, port: int, flag: str
) -> None:
    server.acquire(length=1, lease_ms=LEASE_MS)
    sidecar = new_sidecar(server.address, flag, FENCE)
    until(lambda: is_open(port))
    take_away(server)
    sidecar.says("closed, so that the pod's work stops: the permit is not ours any more")
    assert not is_open(port)
    give_back(server)
    until(lambda: is_open(port))
    sidecar.says(f"port {port} open again: the pod's work may go on")


def test_a_port_that_is_taken_is_an_error_that_names_it_and_is_tried_again(
    server: Server, new_sidecar: Starter, port: int, flag: str
) -> None:
    server.acquire()
    with socket.create_server(("127.0.0.1", port)):
        sidecar = new_sidecar(server.address, flag)
        sidecar.says(f"port {port} cannot be listened on, trying on: Address already in use")
        until(server.confirmed)
        time.sleep(1.5)
        assert len(sidecar.lines("error")) == 1
    sidecar.says(f"port {port} open")
    assert is_open(port)


def test_a_frozen_sidecars_port_soon_seems_closed(server: Server, new_sidecar: Starter, port: int, flag: str) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, flag, FENCE)
    until(lambda: is_open(port))
    sidecar.process.send_signal(signal.SIGSTOP)
    try:
        answers = [is_open(port) for _ in range(BACKLOG + 3)]
        assert answers[0]
        assert not answers[-1]
    finally:
        sidecar.process.send_signal(signal.SIGCONT)


def test_memory(
    server: Server, new_sidecar: Starter, port: int, flag: str, record_property: Callable[[str, object], None]
) -> None:
    server.acquire(lease_ms=LEASE_MS)
    sidecar = new_sidecar(server.address, flag, FENCE)
    until(lambda: is_open(port))
    for _ in range(3 * BACKLOG):
        assert is_open(port)
        time.sleep(0.01)
    rss = sidecar.rss_kb()
    record_property("rss_kb", rss)
    sys.stdout.write(f"sidecar with a port: VmRSS {rss} kB\n")
    assert rss <= MAX_RSS_KB
