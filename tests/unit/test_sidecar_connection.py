"""How the sidecar finds its store, and what it makes of failures."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trustme

import at_least_semaphore_pod_hook
from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.sidecar import lookup
from at_least_semaphore_pod_hook.sidecar.redis import Script, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from at_least_semaphore_pod_hook.sidecar.signals import Signals

RENEW = Script("renew")


class Quiet:
    """Waits as Signals does, and there never is a signal."""

    def wait(self, deadline: float, fd: int = -1, events: int = select.POLLIN) -> bool:
        poll = select.poll()
        if fd >= 0:
            poll.register(fd, events)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def connection(host: str, port: int, **rest: Any) -> Server:
    return Server(Address(host, port, **rest), cast("Signals", Quiet()))


def call(subject: Server, seconds: float) -> int:
    try:
        return subject.call(RENEW, ("k",), ("p1",), time.monotonic() + seconds)
    finally:
        subject.close()


@pytest.fixture
def port() -> Iterator[int]:
    """A port where each connection is answered with 1000."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65_536)
                    peer.sendall(b":1000\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_script_goes_by_the_digest_of_its_file() -> None:
    path = Path(at_least_semaphore_pod_hook.__file__).parent / "stores/redis/scripts/renew.lua"
    assert path.read_bytes().decode() == RENEW.text
    assert hashlib.sha1(path.read_bytes()).hexdigest() == RENEW.sha  # noqa: S324


def test_a_lookup_that_hangs_is_waited_for_no_longer_than_allowed_and_not_repeated(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, calls = threading.Event(), []

    def targets(host: bytes, port: int, flags: int) -> list[Any]:
        calls.append(host)
        go_on.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", port))]

    monkeypatch.setattr(lookup, "targets", targets)
    subject = connection("store.invalid", port)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match=r"store\.invalid:\d+: its name could not be looked up in time"):
            call(subject, 0.1)
    assert time.monotonic() - start < 5
    assert calls == [b"store.invalid"]
    go_on.set()
    assert call(subject, 5) == 1000
    assert calls == [b"store.invalid"]


def test_a_store_that_was_found_once_is_found_without_the_resolver(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = False

    def targets(host: bytes, port: int, flags: int) -> list[Any]:
        if broken:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", port))]

    monkeypatch.setattr(lookup, "targets", targets)
    subject = connection("store.invalid", port)
    assert call(subject, 5) == 1000
    broken = True
    assert call(subject, 5) == 1000
    with pytest.raises(StoreUnavailableError, match="try again"):
        call(connection("store.invalid", port), 5)


def test_one_dead_address_of_several_does_not_matter(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(host: bytes, port: int, flags: int) -> list[Any]:
        places = [("127.0.0.1", 1), ("127.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, place) for place in places]

    monkeypatch.setattr(lookup, "targets", targets)
    assert call(connection("store.invalid", port), 5) == 1000


@pytest.mark.parametrize("host", ["a..é", "é" * 70, "nowhere.invalid"])
def test_a_host_that_is_no_name_is_unavailable(host: str) -> None:
    with pytest.raises(StoreUnavailableError):
        call(connection(host, 1), 5)


def test_a_server_that_repeats_the_password_does_not_get_it_into_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(StoreUnavailableError) as caught:
            call(connection("127.0.0.1", listener.getsockname()[1], password="s3cret"), 5)
        thread.join()
    assert "it says ERR to AUTH" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("shakes_hands", [True, False])
def test_a_server_that_falls_silent_is_not_waited_for_with_tls_either(shakes_hands: bool, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer if not shakes_hands else context.wrap_socket(peer, server_side=True):
                done.wait(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        start = time.monotonic()
        subject = connection("127.0.0.1", listener.getsockname()[1], tls=True, ca_file=str(tmp_path / "ca.pem"))
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            call(subject, 0.5)
        assert time.monotonic() - start < 5
        done.set()
        thread.join()
