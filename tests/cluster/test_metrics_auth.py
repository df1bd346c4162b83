"""Metrics and the status page behind TLS and the API server's word on who may read them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from devcluster.webhook import shipped_rules
from tests.cluster.e2e import Caller, eventually
from tests.cluster.gating import replica, working

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess
    from tests.cluster.e2e import Namespace, Reply

pytestmark = pytest.mark.cluster

COMPONENT = "metrics-auth"
PATHS = ("/metrics", "/status", "/status.json", "/status/history.json")


@pytest.fixture(scope="module")
def webhook(
    control_plane: ControlPlane, store: RedisServer, account: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebhookProcess]:
    control_plane.kubectl("apply", "-f", "-", input=shipped_rules(COMPONENT))
    given = ("--metrics-auth=kubernetes", "--status-page=true")
    with working(replica(tmp_path_factory.mktemp("guarded"), store, account, *given)) as webhook:
        yield webhook
    control_plane.kubectl("delete", "-f", "-", input=shipped_rules(COMPONENT))


def scrape(webhook: WebhookProcess, path: str, token: str = "", method: str = "GET") -> Reply:
    given = {"authorization": f"Bearer {token}"} if token else {}
    with Caller(webhook.metrics_port, webhook.client_context()) as caller:
        return caller.send(method, path, None, **given)


def readable(webhook: WebhookProcess, path: str, token: str) -> bool:
    return scrape(webhook, path, token).status == 200


def token_of(namespace: Namespace, account: str, *given: str) -> str:
    """Make a service account, and return a token of it."""
    namespace.kubectl("create", "serviceaccount", account)
    code, token = namespace.kubectl("create", "token", account, *given)
    assert code == 0, token
    return token.strip()


@pytest.mark.parametrize("path", PATHS)
def test_whoever_shows_no_good_token_reads_nothing(webhook: WebhookProcess, namespace: Namespace, path: str) -> None:
    for_others = token_of(namespace, "anybody", "--audience=somebody-else")
    for token in ("", "none", "a.b.c", "\xff", "x" * 9000, for_others):
        reply = scrape(webhook, path, token)
        assert reply.status == 401, token
        assert reply.headers["www-authenticate"] == "Bearer"
        assert b"at_least" not in reply.body


def test_whoever_may_reads_and_nobody_else(webhook: WebhookProcess, namespace: Namespace) -> None:
    stranger, scraper = token_of(namespace, "stranger"), token_of(namespace, "scraper")
    bound = f"--serviceaccount={namespace.name}:scraper"
    role = "--clusterrole=at-least-semaphore-pod-hook-metrics"
    assert namespace.kubectl("create", "clusterrolebinding", f"{namespace.name}-scraper", role, bound)[0] == 0
    for path in PATHS:
        # It counts for a moment that he may not, where it was asked before the API server had heard of the binding.
        eventually(partial(readable, webhook, path, scraper), f"{path} is served")
        refused = scrape(webhook, path, stranger)
        assert refused.status == 403
        assert f"may not get '{path}'".encode() in refused.body
    assert b"at_least_semaphore_pod_hook_admissions_total" in scrape(webhook, "/metrics", scraper).body
    assert scrape(webhook, "/metrics", scraper, method="POST").status == 405
    namespace.kubectl("delete", "clusterrolebinding", f"{namespace.name}-scraper")


def test_probes_go_on_without_a_token(webhook: WebhookProcess) -> None:
    assert webhook.get(webhook.probe_port, "/readyz")[0] == 200
