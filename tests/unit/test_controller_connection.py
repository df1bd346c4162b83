"""The connection to the API server: tokens, certificates, configuration, and what does not come."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from at_least_semaphore_pod_hook.controller import configuration, connection
from at_least_semaphore_pod_hook.controller.connection import Connection, path_of
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.errors import ApiUnavailableError
from tests.unit.api_server import Server, serving, status, stream, watched
from tests.unit.views import DECODER, document


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as served:
        yield served


async def test_a_rotated_token_is_read_anew(server: Server, tmp_path: Path) -> None:
    valid = "first"

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != f"Bearer {valid}":
            return web.json_response(status(401, "Unauthorized"), status=401)
        if "watch" in request.query:
            return await stream({"type": "ADDED", "object": document()})(request)
        return web.json_response(document())

    server.handler = handler
    await server.kube.get_pod("default", "web-0")
    valid = "second"
    with pytest.raises(ApiUnavailableError, match="401"):
        await server.kube.get_pod("default", "web-0")
    (tmp_path / "token").write_text(valid)
    assert len(await watched(server)) == 1
    await server.kube.get_pod("default", "web-0")
    valid = "third"
    (tmp_path / "token").write_text(valid)
    await server.kube.get_pod("default", "web-0")


async def test_an_answer_that_does_not_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.1)

    async def handler(_request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    server.handler = handler
    with pytest.raises(ApiUnavailableError, match=r"no answer within 0\.1 s"):
        await server.kube.get_pod("default", "web-0")


async def test_nobody_answers(server: Server) -> None:
    text = server.kubeconfig.read_text()
    port = json.loads(text)["clusters"][0]["cluster"]["server"].rpartition(":")[2]
    server.kubeconfig.write_text(text.replace(port, "1"))
    kube = Kube(Connection.open(str(server.kubeconfig)), DECODER)
    with pytest.raises(ApiUnavailableError, match="Cannot connect"):
        await kube.list_pods("ours=true")
    with pytest.raises(ApiUnavailableError, match="Cannot connect"):
        [event async for event in kube.watch_pods("ours=true", "1")]
    await kube.close()


async def test_a_rotated_certificate_authority_is_trusted_from_the_next_try_on(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.issue_cert("127.0.0.1").configure_cert(context)
    application = web.Application()

    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(document())

    application.router.add_get("/{path:.*}", handler)
    authority = tmp_path / "ca.crt"
    old.cert_pem.write_to_path(str(authority))
    http = TestServer(application, host="127.0.0.1", scheme="https")
    await http.start_server(ssl=context)
    cluster = {"server": str(http.make_url("")).rstrip("/"), "certificate-authority": str(authority)}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    kube = Kube(Connection.open(str(tmp_path / "kubeconfig")), DECODER)
    for _ in range(2):
        with pytest.raises(ApiUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await kube.get_pod("default", "web-0")
    new.cert_pem.write_to_path(str(authority))
    with pytest.raises(ApiUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        await kube.get_pod("default", "web-0")
    assert await kube.get_pod("default", "web-0") is not None
    await kube.close()
    await http.close()


@pytest.mark.parametrize("text", [None, "{}", "a: [", '{"current-context": "c", "clusters": [], "contexts": []}'])
async def test_a_configuration_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config").write_text(text)
    with pytest.raises(ApiUnavailableError, match="configuration"):
        Connection.open(str(tmp_path / "config"))


async def test_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ApiUnavailableError, match="configuration"):
        Connection.open("")


async def test_the_service_account_of_our_own_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("first\n")
    accepted = "first"

    async def handler(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {accepted}":
            return web.json_response(status(401, "Unauthorized"), status=401)
        return web.json_response(document())

    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    http = TestServer(application, host="127.0.0.1", scheme="https")
    await http.start_server(ssl=context)
    monkeypatch.setattr(configuration, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(http.port))
    kube = Kube(Connection.open(""), DECODER)
    assert await kube.get_pod("default", "web-0") is not None
    accepted = "second"
    with pytest.raises(ApiUnavailableError, match="401"):
        await kube.get_pod("default", "web-0")
    (tmp_path / "token").write_text("second\n")
    assert await kube.get_pod("default", "web-0") is not None
    accepted = "third"
    (tmp_path / "token").unlink()
    with pytest.raises(ApiUnavailableError, match="token"):
        await kube.get_pod("default", "web-0")
    await kube.close()
    await http.close()


def test_a_name_cannot_lead_elsewhere() -> None:
    assert path_of("api", "a/../b?c", "%2e") == "/api/a%2F..%2Fb%3Fc/%252e"
