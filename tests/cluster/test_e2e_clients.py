"""Admissions from clients with a certificate alone, by the real API server, which shows one."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devcluster.certificates import Authority
from devcluster.controlplane import WEBHOOK_CLIENT
from tests.cluster.e2e import Caller, eventually, metric, opted_in, pod, review
from tests.cluster.gating import replica, serving

if TYPE_CHECKING:
    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration
    from tests.cluster.e2e import Namespace

pytestmark = pytest.mark.cluster


def answered(webhook: WebhookProcess, certificate: tuple[Path, Path] | None = None) -> int:
    """Send an admission that changes nothing, and return the answer's status; 0 where there was no connection."""
    context = webhook.client_context()
    if certificate:
        context.load_cert_chain(*certificate)
    body = review(pod("one", opted_in("clients", 3)), "team", dry_run=True)
    connection = http.client.HTTPSConnection("127.0.0.1", webhook.port, timeout=5, context=context)
    try:
        connection.request("POST", "/mutate", body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        return 0
    finally:
        connection.close()


def test_only_the_api_server_sends_admissions(
    control_plane: ControlPlane,
    account: Path,
    store: RedisServer,
    registration: Registration,
    namespace: Namespace,
    tmp_path: Path,
) -> None:
    named = (f"--client-ca-file={control_plane.ca_file}", f"--client-names=front-proxy-client,{WEBHOOK_CLIENT}")
    with serving(replica(tmp_path, store, account, *named)) as webhook:
        registration.use(webhook)
        stored = namespace.create(pod("let-in", opted_in("clients", 3)))
        assert "initContainers" in stored["spec"]
        before = metric(webhook, "admissions_total")
        assert answered(webhook) == 0
        strangers = tmp_path / "strangers"
        strangers.mkdir()
        assert answered(webhook, Authority(strangers).issue_client("forged", WEBHOOK_CLIENT, ())) == 0
        user = json.loads(control_plane.user_kubeconfig("somebody").read_text())["users"][0]["user"]
        assert answered(webhook, (Path(user["client-certificate"]), Path(user["client-key"]))) == 403
        assert metric(webhook, "admissions_total") == before


def test_sidecars_are_asked_for_no_certificate(
    control_plane: ControlPlane, store: RedisServer, account: Path, tmp_path: Path
) -> None:
    with replica(tmp_path, store, account, f"--client-ca-file={control_plane.ca_file}", api=True) as webhook:
        assert answered(webhook) == 0
        with Caller(webhook.permit_port, webhook.client_context()) as caller:
            assert caller.send("POST", "/v1/permits/renew", b"{}").status == 401


def test_authorities_that_are_added_are_taken_up(store: RedisServer, account: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / "first", tmp_path / "second")
    for each in (first, second):
        each.mkdir()
    older, newer = Authority(first), Authority(second)
    trusted = tmp_path / "clients.crt"
    trusted.write_bytes(older.ca_file.read_bytes())
    with serving(replica(tmp_path, store, account, f"--client-ca-file={trusted}")) as webhook:
        shown = newer.issue_client("client", "any name", ())
        assert answered(webhook, older.issue_client("client", "any name", ())) == 200
        assert answered(webhook, shown) == 0
        trusted.write_bytes(older.ca_file.read_bytes() + newer.ca_file.read_bytes())
        eventually(lambda: answered(webhook, shown) == 200, "the new authority is trusted")
