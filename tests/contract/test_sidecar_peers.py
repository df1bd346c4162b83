"""The sidecar against passwords, TLS, lost replies and servers that are none."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis
import trustme

from tests.sidecar_harness import HOLDERS, INFLIGHT, PACKAGE, NotStartedError, Process, Server, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Starter = Callable[..., Process]

GRACE = "--termination-grace-period-seconds"


def test_a_wrong_password_is_said_and_tried_again(new_server: Callable[..., Server], new_sidecar: Starter) -> None:
    server = new_server("--requirepass", "right", password="right")
    server.acquire()
    sidecar = new_sidecar(f"redis://:wr0ng-s3cret@{server.address}", GRACE, "1", "--log-level", "debug")
    sidecar.says(f"{server.address}: it says WRONGPASS to AUTH")
    time.sleep(0.3)
    assert len(sidecar.lines()) == 1
    server.client.config_set("requirepass", "wr0ng-s3cret")
    until(lambda: _confirmed_as_seen_with(server, "wr0ng-s3cret"))
    server.client.config_set("requirepass", "right")
    assert sidecar.end()[0] == 0
    assert "s3cret" not in sidecar.log()


def _confirmed_as_seen_with(server: Server, password: str) -> bool:
    with redis.Redis(port=server.port, password=password, decode_responses=True, protocol=2) as client:
        return '"confirmed":true' in (client.hget(HOLDERS, "p1") or "")


def test_no_password_where_one_is_needed(new_server: Callable[..., Server], new_sidecar: Starter) -> None:
    server = new_server("--requirepass", "right", password="right")
    sidecar = new_sidecar(server.address, GRACE, "1", "--log-format", "text")
    sidecar.says("NOAUTH")
    assert " WARNING the store is unavailable, trying on: " in sidecar.log()
    assert sidecar.end()[0] == 1


def test_tls(
    new_server: Callable[..., Server], new_sidecar: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = {"ca-cert": "ca.pem", "cert": "cert.pem", "key": "cert.pem"}
    flags = [item for name, file in files.items() for item in (f"--tls-{name}-file", str(tmp_path / file))]
    try:
        server = new_server("--tls-port", str(port), "--tls-auth-clients", "no", *flags)
    except NotStartedError:
        pytest.skip("the server was built without TLS")
    server.acquire()
    untrusting = new_sidecar(f"rediss://127.0.0.1:{port}", GRACE, "1")
    untrusting.says("CERTIFICATE_VERIFY_FAILED")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    sidecar = new_sidecar(f"rediss://127.0.0.1:{port}")
    until(server.confirmed)
    assert sidecar.end()[0] == 0
    assert server.holder() is None
    assert untrusting.end()[0] == 1


def _forward_but_for_a_releases_reply(listener: socket.socket, port: int, released: threading.Event) -> None:
    sha = hashlib.sha1((PACKAGE / "stores/redis/scripts/release.lua").read_bytes()).hexdigest().encode()  # noqa: S324
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer, socket.create_connection(("127.0.0.1", port)) as store, contextlib.suppress(OSError):
            while request := peer.recv(65_536):
                store.sendall(request)
                reply = store.recv(65_536)
                if reply == b":1\r\n" and (sha in request or b"Give a permit back" in request):
                    released.set()
                    break
                peer.sendall(reply)


def test_a_release_whose_reply_was_lost_is_repeated(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    server.acquire("other")
    released = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener, server.port, released)
        thread = threading.Thread(target=_forward_but_for_a_releases_reply, args=arguments, daemon=True)
        thread.start()
        sidecar = new_sidecar(f"127.0.0.1:{listener.getsockname()[1]}")
        until(server.confirmed)
        # Not before it has read the answer, too: a signal in the middle of a call costs it its connection.
        sidecar.says("confirmed the permit")
        assert sidecar.end()[0] == 0
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert released.is_set()
    assert sidecar.lines()[-1]["message"] == "gave the permit back, most likely by a try that got no answer"
    assert sidecar.lines("warning") == []
    assert server.client.zrange(INFLIGHT, 0, -1) == ["other"]


NONSENSE = [b"?\r\n", b"+OK\r\n", b":-5\r\n", b"$9999999999\r\n", b"+" + b"a" * 70_000, b""]


def _talk_nonsense(listener: socket.socket, nonsense: bytes) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer, contextlib.suppress(OSError):
            peer.recv(4096)
            peer.sendall(nonsense)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass


def test_a_server_that_talks_nonsense_is_unavailable(new_sidecar: Starter) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in NONSENSE]
    threads = [
        threading.Thread(target=_talk_nonsense, args=pair, daemon=True)
        for pair in zip(listeners, NONSENSE, strict=True)
    ]
    for thread in threads:
        thread.start()
    sidecars = [new_sidecar(f"127.0.0.1:{listener.getsockname()[1]}", GRACE, "0.1") for listener in listeners]
    for sidecar in sidecars:
        sidecar.says("the store is unavailable")
        sidecar.process.send_signal(signal.SIGTERM)
    for sidecar in sidecars:
        assert sidecar.process.wait(5) == 1
        assert "Traceback" not in sidecar.log()
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def test_a_name_that_no_one_knows_is_unavailable(new_sidecar: Starter) -> None:
    sidecar = new_sidecar("nowhere.invalid:6379", GRACE, "0.1")
    sidecar.says("the store is unavailable")
    assert sidecar.end()[0] == 1


def test_closed_standard_streams(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, redirections="<&- >&- 2>&-")
    until(server.confirmed)
    assert sidecar.end()[0] == 0
    assert server.holder() is None
