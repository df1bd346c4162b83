"""A sidecar's port in virtual time: when it has to be tended, and what it says; its sockets are real ones."""

from __future__ import annotations

import _socket
import socket
from typing import cast

import pytest

from at_least_semaphore_pod_hook.sidecar import port as module
from at_least_semaphore_pod_hook.sidecar.log import Log
from at_least_semaphore_pod_hook.sidecar.policy import REMINDER, UNBOUNDED
from at_least_semaphore_pod_hook.sidecar.port import RETRY_SECONDS, Port
from devcluster.process import free_port


class Lines:
    def __init__(self) -> None:
        self.written: list[tuple[str, str]] = []

    def write(self, level: str, message: str) -> None:
        self.written.append((level, message))


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def number(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port of a machine that knows no IPv6, and has one address."""
    monkeypatch.setattr(module, "ANY_ADDRESS", ((_socket.AF_X25, "::"), (_socket.AF_INET, "127.0.0.1")))
    return free_port()


@pytest.fixture
def port(number: int, lines: Lines) -> Port:
    return Port(number, cast("Log", lines))


def test_a_port_that_was_never_opened_needs_no_care(port: Port, lines: Lines) -> None:
    port.tend(1.0)
    assert (port.fd, port.due, lines.written) == (-1, UNBOUNDED, [])
    port.close("it is not ours")
    port.accept()
    assert lines.written == []


def test_without_ipv6_it_listens_on_ipv4(port: Port, number: int) -> None:
    port.open(0.0)
    assert port.due == UNBOUNDED
    with socket.create_connection(("127.0.0.1", number), 1) as connection:
        port.accept()
        assert connection.recv(1) == b""
    port.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number), 1)


def test_it_closes_when_it_is_time_unless_it_is_renewed(port: Port, number: int, lines: Lines) -> None:
    port.open(0.0, until=5.0, lease_end=10.0)
    port.tend(4.9)
    port.open(4.9, until=8.0, lease_end=13.0)
    assert port.due == 8.0
    port.tend(7.9)
    assert port.fd >= 0
    assert lines.written == []
    port.tend(8.2)
    assert (port.fd, port.due) == (-1, UNBOUNDED)
    stops = f"port {number} closed, so that the pod's work stops"
    assert lines.written == [("error", f"{stops}: the permit could not be renewed, and its lease ends in 4.8 s")]
    port.open(9.0, until=14.0, lease_end=19.0)
    assert lines.written[1:] == [("info", f"port {number} open again: the pod's work may go on")]
    port.close("taken")
    assert lines.written[2:] == [("error", f"{stops}: taken")]


def test_a_lease_that_is_too_short_for_a_fence_opens_nothing(port: Port, lines: Lines) -> None:
    port.open(0.0, until=-1.0, lease_end=4.0)
    assert (port.fd, port.due, lines.written) == (-1, UNBOUNDED, [])


def test_a_port_that_is_taken_is_tried_every_second_and_said_every_minute(
    port: Port, number: int, lines: Lines
) -> None:
    taken = ("error", f"port {number} cannot be listened on, trying on: Address already in use")
    with socket.create_server(("127.0.0.1", number)):
        now = 100.0
        port.open(now)
        while now < 100.0 + REMINDER:
            assert lines.written == [taken]
            assert port.due == now + RETRY_SECONDS
            now = port.due
            port.tend(now)
        assert lines.written == [taken, taken]
    port.tend(now + RETRY_SECONDS)
    assert port.fd >= 0
    assert lines.written[2:] == [("info", f"port {number} open")]
    port.close()
