"""The connection to the API server: requests and streams by aiohttp, and errors of our own.

lightkube's verbs are not used: its lists keep whole objects, its watch knows neither bookmarks nor an end of silence,
its patches ask for the whole object back, and each of its requests takes three times as long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import urllib.request
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec
from yarl import URL

from at_least_semaphore_pod_hook.connector import Connector
from at_least_semaphore_pod_hook.controller.configuration import Configuration, Headers, configure
from at_least_semaphore_pod_hook.controller.status import (
    BAD_REQUEST,
    CONFLICT,
    NOT_FOUND,
    TERMINATING,
    UNAUTHORIZED,
    UNPROCESSABLE,
    Status,
    decode_status,
    refusal,
)
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

REQUEST_SECONDS = 10.0
"""Within which a request is answered, its wait for a free connection included."""
CONNECT_SECONDS = 5.0
MAX_REQUESTS = 16
"""Requests in flight; further ones wait. Watches do not count."""
KEEP_ALIVE_SECONDS = 60.0
"""How long an idle connection is kept: the API server keeps it for 90 s."""
SILENCE_GRACE_SECONDS = 5.0
"""How much later than announced a watch may end before its connection counts as dead."""

_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""By these the kernel gives a connection up within 20 s of the other machine's last sign of life."""

JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""To ask for as an answer where the answer is of no interest: a tenth of the object."""


class Answer(NamedTuple):
    """An answer. `status` is what the API server says of a refusal, None where it did as it was asked."""

    body: bytes
    status: Status | None

    def is_missing(self, resource: str, name: str) -> bool:
        """Whether it is the API server itself that knows of no such object: a 404 of a proxy's proves nothing."""
        status = self.status
        if status is None or status.code != NOT_FOUND or status.reason != "NotFound" or status.details is None:
            return False
        return (status.details.kind, status.details.name) == (resource, name)

    def done(self, what: str) -> bytes:
        """Return the body; raises ApiUnavailableError, naming what was asked for, where it is a refusal."""
        if self.status is not None:
            raise refusal(what, self.status)
        return self.body


class Connection:
    """Requests and streams of one cluster. Made within a running event loop."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._shown: Headers | None = None
        connector = Connector(options=_OPTIONS, ssl=configuration.tls, limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        # Looking for a proxy costs each request; there is none within a cluster.
        proxied = bool(urllib.request.getproxies())
        self._http = aiohttp.ClientSession(connector=connector, trust_env=proxied, skip_auto_headers=("User-Agent",))
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    @classmethod
    def open(cls, kubeconfig: str) -> Connection:
        """Set a connection up; nothing is sent yet.

        Args:
            kubeconfig: A file's path; empty for the service account of the pod that we run in.

        Raises:
            ApiUnavailableError: There is no such file or service account, or it is not what it should be.
        """
        return cls(configure(kubeconfig))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Answer:
        """Send one request and return the answer, also where it is a refusal that only the caller can judge.

        Args:
            method: GET, POST, PUT or PATCH.
            path: From /api or /apis on.
            params: The query.
            body: Anything that becomes JSON.
            content_type: What the body is.
            accept: What the answer shall be.

        Returns:
            The answer, its status set for a 404, 409 or 422, and for a namespace that is going.

        Raises:
            ApiForbiddenError: RBAC or admission forbids it.
            ApiGoneError: A version or a continue token is not known any more.
            ApiUnavailableError: No answer within REQUEST_SECONDS, or any other that is none.
        """
        what = f"{method} {path}"
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        content = None
        if body is not None:
            headers["Content-Type"] = content_type
            content = msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        with self._translated(what):
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                self._slots,
                self._send(method, self._url(path, params), timeout, headers, content) as response,
            ):
                code, answer = response.status, await response.read()
        if code < BAD_REQUEST:
            return Answer(answer, None)
        status = decode_status(answer, code)
        if code in {NOT_FOUND, CONFLICT, UNPROCESSABLE} or status.has_cause(TERMINATING):
            return Answer(answer, status)
        raise refusal(what, status)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], seconds: float
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        """Send a GET whose answer goes on for `seconds`; yield its lines as they come.

        Raises:
            ApiForbiddenError: RBAC forbids it.
            ApiGoneError: The version to start from is not known any more.
            ApiUnavailableError: Refused, broken off, or silent for longer than `seconds` and a grace.
        """
        silence = seconds + SILENCE_GRACE_SECONDS
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        headers = {"Accept": JSON, "Accept-Encoding": "identity"}
        with self._translated(f"watch {path}"):
            async with self._send("GET", self._url(path, params), timeout, headers) as response:
                if response.status >= BAD_REQUEST:
                    raise refusal(f"watch {path}", decode_status(await response.read(), response.status))
                yield _lines(response.content.iter_any())

    def _url(self, path: str, params: Mapping[str, str] | None) -> URL:
        query = f"?{urlencode(params)}" if params else ""
        return URL(f"{self._configuration.server}{path}{query}", encoded=True)

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        url: URL,
        timeout: aiohttp.ClientTimeout,
        headers: dict[str, str],
        content: bytes | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request, and once more where a newer token than the one that is refused is to be had."""
        identity = self._configuration.identity
        if self._shown is None:
            self._shown = await identity.headers(refused=False)
        for last in (False, True):
            shown = self._shown
            async with self._http.request(
                method, url, timeout=timeout, headers=headers | shown, data=content, allow_redirects=False
            ) as response:
                if response.status == UNAUTHORIZED and not last:
                    self._shown = await identity.headers(refused=True)
                    if self._shown != shown:
                        continue
                yield response
                return

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            with translated(what):
                yield
        except ApiUnavailableError as error:
            configuration = self._configuration
            if configuration.authority and _distrusted(error):
                # The authority may have been rotated: what its file says now is trusted from the next try on.
                with translated("the API server's certificate authority"):
                    configuration.tls.load_verify_locations(configuration.authority)
            raise


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what aiohttp and the operating system raise into ApiUnavailableError."""
    try:
        yield
    except (aiohttp.ClientError, msgspec.MsgspecError) as error:
        raise ApiUnavailableError(f"{what}: {type(error).__name__}: {error}") from error
    except TimeoutError as error:
        raise ApiUnavailableError(f"{what}: no answer within {REQUEST_SECONDS:g} s") from error
    except OSError as error:
        raise ApiUnavailableError(f"{what}: {type(error).__name__}: {error}") from error


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    rest: list[bytes] = []
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            if line := b"".join(rest):
                yield line
            rest = [other]


def _distrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def path_of(*parts: Any) -> str:
    """Join a path's parts; what comes from an object's name cannot lead elsewhere."""
    return "/" + "/".join(str(part).replace("%", "%25").replace("/", "%2F").replace("?", "%3F") for part in parts)
