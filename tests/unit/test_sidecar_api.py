"""A sidecar at the webhook's port, as far as no webhook is needed: what it makes of answers that are none."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from binascii import crc32
from typing import TYPE_CHECKING, Any, cast

import pytest
import trustme

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.settings import PermitApi
from at_least_semaphore_pod_hook.sidecar.api import ApiStore
from tests.unit.test_sidecar_connection import Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from at_least_semaphore_pod_hook.sidecar.signals import Signals

SEMAPHORE = "ns/key"


class Server:
    """Answers each request with what comes next, over TLS, and closes the connection after it where asked to."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.answers: list[tuple[int, Any]] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.issue(self.authority)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.closes = False

    def issue(self, authority: trustme.CA) -> None:
        authority.issue_cert("127.0.0.1").configure_cert(self.context)

    def serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(peer, server_side=True) as tls:
                    self._exchange(tls)
            except OSError:
                continue

    def _exchange(self, tls: ssl.SSLSocket) -> None:
        while self.answers and (received := tls.recv(65_536)):
            head, _, body = received.partition(b"\r\n\r\n")
            self.requests.append((head.decode(), json.loads(body)))
            status, answer = self.answers.pop(0)
            said = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            tls.sendall(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(said), said))
            if self.closes:
                return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    thread.join()


@pytest.fixture
def store(server: Server, tmp_path: Path) -> Iterator[ApiStore]:
    (tmp_path / "token").write_text("first\n")
    address = Address("127.0.0.1", server.listener.getsockname()[1], True)
    api = PermitApi(address, server.authority.cert_pem.bytes().decode(), str(tmp_path / "token"))
    store = ApiStore(api, SEMAPHORE, cast("Signals", Quiet()))
    yield store
    store.close()


def soon() -> float:
    return time.monotonic() + 5


def test_each_request_carries_the_token_of_the_moment(server: Server, store: ApiStore, tmp_path: Path) -> None:
    server.answers = [(200, {"lease_ms": 60_000}), (200, {"lease_ms": -1}), (200, {"released": 1})]
    assert store.renew("p1", "pod-1", soon()) == 60_000
    (tmp_path / "token").write_text("second")
    assert store.renew("p1", "pod-1", soon()) == -1
    assert store.release("p1", "pod-1", soon()) == 1
    assert [body["permit"] for _, body in server.requests] == ["p1"] * 3
    assert "POST /v1/permits/renew" in server.requests[0][0]
    assert "Authorization: Bearer first\r\n" in f"{server.requests[0][0]}\r\n"
    assert "Authorization: Bearer second\r\n" in f"{server.requests[1][0]}\r\n"
    assert "POST /v1/permits/release" in server.requests[2][0]
    assert store.unanswered == 0


def test_a_permit_of_another_pod_is_not_ours(server: Server, store: ApiStore) -> None:
    server.answers = [(403, {"message": "permit p1 is not the one of pod pod-1"})] * 2
    assert store.renew("p1", "pod-1", soon()) == 0
    assert store.release("p1", "pod-1", soon()) == 0
    assert store.unanswered == 0


@pytest.mark.parametrize(
    ("status", "answer", "said", "in_doubt"),
    [
        (401, {"message": "this token has ended"}, "it says: this token has ended", 0),
        (503, {"message": "the store is away"}, "it says: the store is away", 1),
        (502, b"<html>", "HTTP status 502", 1),
        (200, b"<html>", "the answer is not the webhook's", 1),
        (200, {"lease_ms": "much"}, "the answer's lease_ms is not a number", 0),
        (200, b"{", "Expecting property name", 1),
    ],
)
def test_what_is_no_answer_is_said(
    server: Server, store: ApiStore, status: int, answer: Any, said: str, in_doubt: int
) -> None:
    server.answers = [(status, answer)]
    with pytest.raises(StoreUnavailableError, match=said):
        store.renew("p1", "pod-1", soon())
    assert store.unanswered == in_doubt


def test_without_a_token_nothing_is_sent(server: Server, store: ApiStore, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(StoreUnavailableError, match="token: No such file"):
        store.renew("p1", "pod-1", soon())
    assert (server.requests, store.unanswered) == ([], 0)


def test_authorities_that_an_answer_brings_are_trusted_beside_those_before(server: Server, store: ApiStore) -> None:
    old, new = server.authority.cert_pem.bytes().decode(), trustme.CA()
    said = new.cert_pem.bytes().decode()
    server.closes = True
    server.answers = [(200, {"lease_ms": 1_000, "authorities": said})] + [(200, {"lease_ms": 1_000})] * 2
    store.renew("p1", "pod-1", soon())
    # A replica that has not changed over yet, and one that has.
    for authority in (server.authority, new):
        server.issue(authority)
        store.close()
        assert store.renew("p1", "pod-1", soon()) == 1_000
    assert [body["authorities"] for _, body in server.requests] == [crc32(text.encode()) for text in (old, said, said)]


@pytest.mark.parametrize("said", ["none", 17, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_authorities_that_are_none_are_left(server: Server, store: ApiStore, said: Any) -> None:
    server.closes = True
    server.answers = [(200, {"lease_ms": 1_000, "authorities": said}), (200, {"lease_ms": 1_000})]
    store.renew("p1", "pod-1", soon())
    store.close()
    assert store.renew("p1", "pod-1", soon()) == 1_000


def test_a_stranger_is_shown_no_token(server: Server, store: ApiStore) -> None:
    server.issue(trustme.CA())
    server.answers = [(200, {"lease_ms": 1_000})]
    with pytest.raises(StoreUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        store.renew("p1", "pod-1", soon())
    assert server.requests == []
