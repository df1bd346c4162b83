"""A small asynchronous Kubernetes client for the stand-in kubelet: requests with retries, and a reflector."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import yaml

from at_least_semaphore_pod_hook.connector import Connector
from devcluster.errors import DevClusterError

Object = dict[str, Any]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]

_CONNECTIONS = 64
_PAGE = 500
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60)
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_GONE = 410
STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class ApiError(DevClusterError):
    """The API server refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubeApi:
    """One cluster, reached as a kubeconfig's current context says (token or client certificate)."""

    def __init__(self, kubeconfig: Path) -> None:
        """Read the kubeconfig; DevClusterError where it can't be read or names no server."""
        self._server, self._headers, self._ssl = _connection(kubeconfig)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = Connector(limit=_CONNECTIONS, ssl=self._ssl)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open HTTP session; DevClusterError outside `async with`."""
        if self._session is None:
            raise DevClusterError("the Kubernetes client is not open")
        return self._session

    async def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> Object:
        """Send a request until it is answered, however long the API server is away or overloaded.

        ApiError where it is refused (4xx other than 429). Every request sent here may be repeated.
        """
        attempt = 0
        while True:
            try:
                return await self._once(method, path, body, content_type)
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1

    async def _once(self, method: str, path: str, body: object, content_type: str) -> Object:
        data = None if body is None else json.dumps(body).encode()
        async with self.session.request(
            method, self._server + path, data=data, headers={"Content-Type": content_type}, timeout=_REQUEST_TIMEOUT
        ) as answer:
            text = await answer.read()
            if answer.status >= 400:
                raise ApiError(answer.status, f"{method} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
            return dict(json.loads(text))

    async def follow(
        self, path: str, on_event: Callable[[EventType, Object], None], listed: Callable[[], None]
    ) -> None:
        """Call `on_event` with every object of the collection `path` and every change, for ever; `listed` after a list.

        After a lost version (410) the collection is listed again, and what changed or vanished meanwhile is told as
        events. ApiError where the API server refuses the list.
        """
        known: dict[str, Object] = {}
        while True:
            version = await self._relist(path, known, on_event)
            listed()
            async for kind, item in self._watch(path, version):
                uid = item["metadata"]["uid"]
                if kind == "DELETED":
                    known.pop(uid, None)
                else:
                    known[uid] = {"metadata": _identity(item)}
                on_event(kind, item)

    async def _relist(self, path: str, known: dict[str, Object], on_event: Callable[[EventType, Object], None]) -> str:
        seen: set[str] = set()
        token = ""
        while True:
            more = f"&continue={token}" if token else ""
            page = await self.request("GET", f"{path}?limit={_PAGE}{more}")
            for item in page.get("items") or []:
                identity = _identity(item)
                uid = identity["uid"]
                seen.add(uid)
                before = known.get(uid)
                known[uid] = {"metadata": identity}
                if before is None:
                    on_event("ADDED", item)
                elif before["metadata"] != identity:
                    on_event("MODIFIED", item)
            token = page["metadata"].get("continue") or ""
            if not token:
                break
        for uid in [uid for uid in known if uid not in seen]:
            on_event("DELETED", known.pop(uid))
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self, path: str, version: str) -> AsyncIterator[tuple[EventType, Object]]:
        """Yield changes after `version`, resuming after every broken connection; ends when the version is gone."""
        while True:
            url = f"{self._server}{path}?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
            try:
                async with self.session.get(url, timeout=_WATCH_TIMEOUT) as answer:
                    if answer.status == _GONE:
                        return
                    if answer.status != 200:
                        await asyncio.sleep(_RETRY_SECONDS[-1])
                        continue
                    async for line in _lines(answer.content):
                        event = json.loads(line)
                        item: Object = event["object"]
                        if event["type"] == "ERROR":
                            if item.get("code") == _GONE:
                                return
                            break
                        version = item["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["type"], item
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(_RETRY_SECONDS[0])


def _identity(item: Object) -> Object:
    metadata = item["metadata"]
    return {name: metadata.get(name) for name in ("namespace", "name", "uid", "resourceVersion")}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length (the stream's own readline has a limit that a large pod exceeds)."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _connection(kubeconfig: Path) -> tuple[str, Mapping[str, str], ssl.SSLContext | bool]:
    try:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        server = str(cluster["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DevClusterError(f"{kubeconfig} is not a kubeconfig that can be used: {error!r}") from error
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    if server.startswith("http://"):
        return server, headers, False
    authority = _material(cluster, "certificate-authority")
    verified = ssl.create_default_context(cadata=authority.decode() if authority else None)
    certificate, key = _material(user, "client-certificate"), _material(user, "client-key")
    if certificate and key:
        # OpenSSL reads a certificate from a file only.
        with tempfile.NamedTemporaryFile() as both:
            both.write(certificate + b"\n" + key)
            both.flush()
            verified.load_cert_chain(both.name)
    return server, headers, verified


def _named(config: Object, collection: str, name: str) -> Object:
    for entry in config[collection]:
        if entry["name"] == name:
            return dict(entry)
    raise KeyError(f"{collection}: {name}")


def _material(entry: Object, name: str) -> bytes | None:
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"])
    return Path(entry[name]).read_bytes() if name in entry else None
