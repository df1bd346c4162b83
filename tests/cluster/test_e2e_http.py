"""The webhook's HTTP face, and what its process says of the API server and its variant."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from devcluster.process import free_port
from devcluster.webhook import WebhookProcess
from tests.cluster.e2e import PREFIX, SIDECAR, Caller, admit, eventually, flags, metric, opted_in, pod, review

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import SharedWebhooks

pytestmark = pytest.mark.cluster

LIMIT = 3 * 1024 * 1024
MIB = 1024 * 1024
JSON_TYPE = "application/json"


@pytest.fixture(scope="module")
def served(shared_webhooks: SharedWebhooks) -> WebhookProcess:
    return shared_webhooks("redlock-ordinary")


def test_idle_clients_do_not_hold_up_the_end(tmp_path: Path, store: RedisServer) -> None:
    with WebhookProcess(tmp_path, flags=[f"--queue-redis-address={store.address}"]) as webhook:
        # It never reads, and so never learns that the server closes the connection.
        with (
            socket.create_connection(("127.0.0.1", webhook.port)) as plain,
            webhook.client_context().wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            started = time.monotonic()
            webhook.process.terminate()
            assert time.monotonic() - started < 5
        assert "webhook stopped" in webhook.log()
        assert "graceful shutdown exceeded" not in webhook.log()


def dry(name: str = "one") -> bytes:
    """Return a review that changes nothing."""
    return review(pod(name, opted_in("http", 3)), "team", dry_run=True)


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        ("--port={taken}", 1, "cannot listen on 127.0.0.1:{taken}"),
        ("--metrics-bind-address=127.0.0.1:{taken}", 1, "cannot listen on 127.0.0.1:{taken}"),
        ("--host=no.such.host.invalid", 1, "cannot listen on no.such.host.invalid"),
        ("--redis-addresses=127.0.0.1:1,127.0.0.1:2", 2, "--redis-addresses: a redlock needs 1, 3 or 5"),
        ("--cert-dir=/nowhere", 2, "--certDir: /nowhere"),
    ],
)
def test_what_keeps_it_from_starting_is_said_without_a_traceback(
    tmp_path: Path, wrong: str, code: int, says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        webhook = WebhookProcess(tmp_path, flags=[wrong.format(taken=taken)])
        run = subprocess.run(webhook.process.argv, capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode == code, run.stderr
    assert says.format(taken=taken) in run.stderr
    assert "Traceback" not in run.stderr
    assert "webhook serves" not in run.stderr


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body", "status", "says"),
    [
        ("POST", "/", JSON_TYPE, b"{}", 404, "'/'"),
        ("POST", "/mutate/", JSON_TYPE, b"{}", 404, "/mutate"),
        ("GET", "/metrics", JSON_TYPE, None, 404, "no such path"),
        ("GET", "/mutate", JSON_TYPE, None, 405, "POSTed"),
        ("PUT", "/mutate", JSON_TYPE, b"{}", 405, "POSTed"),
        ("POST", "/mutate", "text/plain", b"{}", 415, "application/json"),
        ("POST", "/mutate", "application/yaml", b"{}", 415, "application/json"),
        ("POST", "/mutate", JSON_TYPE, b"", 400, "the request body"),
        ("POST", "/mutate", JSON_TYPE, b"{", 400, "the request body"),
        ("POST", "/mutate", JSON_TYPE, b"[" * 100_000, 400, "the request body"),
        ("POST", "/mutate", JSON_TYPE, b"\xff\xfe", 400, "the request body"),
        ("POST", "/mutate", JSON_TYPE, b'{"apiVersion": "v1", "kind": "Pod"}', 400, "the request body"),
        ("POST", "/mutate", JSON_TYPE, dry().replace(b"k8s.io/v1", b"k8s.io/v1beta1"), 400, "v1beta1"),
        ("POST", "/mutate", JSON_TYPE, b" " * (LIMIT + 1), 413, "larger"),
    ],
)
def test_what_is_no_admission_is_refused(
    served: WebhookProcess, method: str, path: str, content_type: str, body: bytes | None, status: int, says: str
) -> None:
    before = metric(served, "bad_requests_total", status=str(status))
    with Caller(served.port, served.client_context()) as caller:
        reply = caller.send(method, path, body, content_type=content_type)

        assert reply.status == status
        assert says in reply.message
        assert reply.headers.get("allow") == ("POST" if status == 405 else None)
        if status != 413:  # the connection goes on
            assert caller.admit(dry())["allowed"]
    assert metric(served, "bad_requests_total", status=str(status)) == before + 1


def test_the_largest_body_is_taken(served: WebhookProcess) -> None:
    body = dry()
    assert admit(served, body + b" " * (LIMIT - len(body)))["allowed"]


@contextlib.contextmanager
def raw(webhook: WebhookProcess) -> Iterator[ssl.SSLSocket]:
    """Open a TLS connection to be written to byte by byte."""
    plain = socket.create_connection(("127.0.0.1", webhook.port), timeout=10)
    with webhook.client_context().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        yield connection


def head(*lines: str) -> bytes:
    """Return a request's first lines."""
    return "\r\n".join(
        ["POST /mutate HTTP/1.1", "host: webhook", f"content-type: {JSON_TYPE}", *lines, "", ""]
    ).encode()


def answer_to(connection: ssl.SSLSocket, chunk: bytes, most: int) -> tuple[bytes, int]:
    """Write a chunk over and over, slowly, until an answer comes; return it, and how much was written by then."""
    written = 0
    while written < most:
        connection.settimeout(10)
        connection.sendall(chunk)
        written += len(chunk)
        connection.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            return connection.recv(65536), written
    raise AssertionError(f"no answer to {written} bytes")


def expect_closed(connection: ssl.SSLSocket) -> None:
    """Expect that the server closes the connection soon, however much is still sent."""
    connection.settimeout(10)
    deadline = time.monotonic() + 10
    try:
        while time.monotonic() < deadline:
            connection.sendall(b" " * 4096)
            time.sleep(0.001)
    except (ConnectionError, ssl.SSLEOFError):
        return
    raise AssertionError("the server reads on and on")


def test_a_body_of_100_mib_is_refused_without_being_read(served: WebhookProcess) -> None:
    with raw(served) as connection:
        connection.sendall(head(f"content-length: {100 * MIB}"))

        answer, written = answer_to(connection, b" " * 16384, 100 * MIB)

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        assert written < MIB
        expect_closed(connection)


def test_a_chunked_body_is_refused_once_it_is_over_the_limit(served: WebhookProcess) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with raw(served) as connection:
        connection.sendall(head("transfer-encoding: chunked"))

        answer, written = answer_to(connection, chunk, 100 * MIB)

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert LIMIT < written < LIMIT + 2 * MIB
        expect_closed(connection)


def test_a_chunked_admission_is_answered(served: WebhookProcess) -> None:
    body = dry()
    with raw(served) as connection:
        connection.sendall(head("transfer-encoding: chunked"))
        for part in (body[:100], body[100:]):
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_slow_clients_hold_up_nobody(served: WebhookProcess) -> None:
    body = dry("slow")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(raw(served)) for _ in range(30)]
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 10)) for _ in range(30)]
        for connection in slow:
            connection.sendall(head(f"content-length: {len(body)}") + body[:50])
        for plain in half:
            plain.sendall(b"\x16\x03\x01")  # a handshake that doesn't go on
        started = time.monotonic()
        for _ in range(10):
            assert admit(served, dry())["allowed"]
        assert time.monotonic() - started < 5

        for connection in slow:
            connection.sendall(body[50:])
        assert all(connection.recv(65536).startswith(b"HTTP/1.1 200 ") for connection in slow)


@pytest.mark.parametrize("port", ["probe_port", "metrics_port"])
def test_the_side_ports_serve_their_pages_and_nothing_else(served: WebhookProcess, port: str) -> None:
    page = {"probe_port": "/healthz", "metrics_port": "/metrics"}[port]
    number = getattr(served, port)
    assert served.get(number, page)[0] == 200
    for other in ("/", "/mutate", {"/healthz": "/metrics", "/metrics": "/healthz"}[page]):
        assert served.get(number, other)[0] == 404


class TestApiServer:
    def test_a_webhook_that_reaches_it_says_so(
        self, control_plane: ControlPlane, store: RedisServer, new_webhook: Callable[..., WebhookProcess]
    ) -> None:
        webhook = new_webhook(*flags("redlock", store, store), f"--kubeconfig={control_plane.kubeconfig}")
        eventually(lambda: "pods watched" in webhook.log(), "it says that it watches")
        eventually(lambda: metric(webhook, "kubernetes_api_up") == 1, "it is measured")

    @pytest.mark.parametrize("given", [False, True], ids=["no-kubeconfig", "nobody-answers"])
    def test_a_webhook_without_one_serves_and_says_so(
        self,
        control_plane: ControlPlane,
        store: RedisServer,
        new_webhook: Callable[..., WebhookProcess],
        given: bool,
    ) -> None:
        more = []
        if given:
            kubeconfig = control_plane.kubeconfig.read_text().replace(str(control_plane.port), str(free_port()))
            nowhere = store.process.log.parent / "nowhere.kubeconfig"
            nowhere.write_text(kubeconfig)
            more = [f"--kubeconfig={nowhere}"]
        webhook = new_webhook(*flags("redlock", store, store), *more)
        said = "leader election does not get through" if given else "API server not reached: admissions are served"
        eventually(lambda: said in webhook.log(), "it says so")
        assert admit(webhook, dry())["allowed"]
        assert metric(webhook, "kubernetes_api_up") == 0


def test_a_variant_has_annotations_and_a_sidecar_of_its_own(
    store: RedisServer, new_webhook: Callable[..., WebhookProcess]
) -> None:
    webhook = new_webhook(*flags("redlock", store, store), VARIANT="foo")

    ours = admit(webhook, review(pod("ours", opted_in("variant", 3, prefix=f"foo.{PREFIX}")), "team", dry_run=True))
    theirs = admit(webhook, review(pod("theirs", opted_in("variant", 3)), "team", dry_run=True))

    assert theirs == {"uid": theirs["uid"], "allowed": True}
    token, label, operation = json.loads(base64.b64decode(ours["patch"]))
    assert token["path"] == f"/metadata/annotations/foo.{PREFIX.replace('/', '~1')}fencing-token"
    assert label["value"] == {f"foo.{PREFIX}key": "variant"}
    assert operation["value"]["name"] == f"foo-{SIDECAR}"
    bad = admit(webhook, review(pod("bad", opted_in("", 3, prefix=f"foo.{PREFIX}")), "team"))
    assert bad["status"]["code"] == 400
    assert f"annotation foo.{PREFIX}key" in bad["status"]["message"]
