"""The connection to the API server: lightkube's configuration and authentication, and errors of our own.

lightkube's verbs are not used: its lists keep whole objects, its watch knows neither bookmarks nor an end of silence,
and its patches ask for the whole object back. What is below them is: an httpx2 client that knows the cluster's
certificates and re-reads a rotated token when it is told 401.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2
import msgspec
from lightkube import ConfigError, KubeConfig
from lightkube.config import client_adapter
from yaml import YAMLError

from at_least_semaphore_pod_hook.errors import ApiForbiddenError, ApiGoneError, ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

    from lightkube import SingleConfig

REQUEST_SECONDS = 10.0
"""Within which a request is answered, its wait for a free connection included."""
CONNECT_SECONDS = 5.0
MAX_REQUESTS = 16
"""Requests in flight; further ones wait. Watches do not count."""
KEEP_ALIVE_SECONDS = 60.0
"""How long an idle connection is kept: the API server keeps it for 90 s."""
SILENCE_GRACE_SECONDS = 5.0
"""How much later than announced a watch may end before its connection counts as dead."""

JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""To ask for as an answer where the answer is of no interest: a tenth of the object."""

BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, UNPROCESSABLE = 400, 403, 404, 409, 410, 422
TERMINATING = "NamespaceTerminating"
"""Why nothing can be created in a namespace that is being deleted (with a 403)."""


class Cause(msgspec.Struct):
    """Why, in detail."""

    reason: str = ""
    message: str = ""


class Details(msgspec.Struct):
    """What a Status is about; `kind` is a resource, e.g. pods."""

    name: str = ""
    kind: str = ""
    causes: list[Cause] | None = None


class Status(msgspec.Struct):
    """The API server's way of saying no."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: Details | None = None

    def has_cause(self, reason: str) -> bool:
        """Whether one of its causes is `reason`."""
        return any(cause.reason == reason for cause in (self.details.causes if self.details else None) or ())


class Answer(NamedTuple):
    """An answer. `status` is what the API server says of a refusal, None where it did as it was asked."""

    body: bytes
    status: Status | None


_status = msgspec.json.Decoder(Status)


class Connection:
    """Requests and streams of one cluster.

    Args:
        config: Whose cluster, and as whom.

    Raises:
        ApiUnavailableError: A certificate that the configuration names cannot be read.
    """

    def __init__(self, config: SingleConfig) -> None:
        with translated("the API server's configuration"):
            if config.user is None:
                raise ConfigError("it names no user")
            self._tls = client_adapter.verify_cluster(config.cluster, config.user, config.abs_file)
            limits = httpx2.Limits(max_keepalive_connections=MAX_REQUESTS, keepalive_expiry=KEEP_ALIVE_SECONDS)
            # The transport of httpx2's own choice drops a connection after 5 idle seconds, and then the next write
            # waits for TLS; nor would it notice that the machine at the other end has gone.
            transport = httpx2.AsyncHTTPTransport(self._tls, limits=limits, socket_options=_dead_peer_options())
            timeout = httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
            parameters = client_adapter.ConnectionParams(timeout=timeout, transport=transport)  # type: ignore[arg-type]
            self._http = client_adapter.AsyncClient(config, parameters)
        self._certificate_authority = config.cluster.certificate_auth and config.abs_file(
            config.cluster.certificate_auth
        )
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    @classmethod
    def open(cls, kubeconfig: str) -> Connection:
        """Set a connection up; nothing is sent yet.

        Args:
            kubeconfig: A file's path; empty for the service account of the pod that we run in.

        Raises:
            ApiUnavailableError: There is no such file or service account, or it is not what it should be.
        """
        with translated("the API server's configuration"):
            try:
                source = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
                config = source.get()
            except (YAMLError, AttributeError, TypeError) as error:
                raise ConfigError(f"it is no kubeconfig: {error}") from error
            if config is None:
                raise ConfigError("it names no context")
        return cls(config)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

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
        with self._translated(what):
            async with asyncio.timeout(REQUEST_SECONDS), self._slots:
                response = await self._http.request(method, path, params=params, content=content, headers=headers)
        if response.status_code < BAD_REQUEST:
            return Answer(response.content, None)
        status = decode_status(response.content, response.status_code)
        if response.status_code in {NOT_FOUND, CONFLICT, UNPROCESSABLE} or status.has_cause(TERMINATING):
            return Answer(response.content, status)
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
        timeout = httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS, read=seconds + SILENCE_GRACE_SECONDS)
        headers = {"Accept": JSON, "Accept-Encoding": "identity"}
        with self._translated(f"watch {path}"):
            async with self._http.stream("GET", path, params=params, timeout=timeout, headers=headers) as response:
                if response.status_code >= BAD_REQUEST:
                    raise refusal(f"watch {path}", decode_status(await response.aread(), response.status_code))
                yield _lines(response.aiter_raw())

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            with translated(what):
                yield
        except ApiUnavailableError as error:
            if self._certificate_authority and _distrusted(error):
                # The authority may have been rotated: what its file says now is trusted from the next try on.
                with translated("the API server's certificate authority"):
                    self._tls.load_verify_locations(self._certificate_authority)
            raise


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what httpx2 and lightkube raise into ApiUnavailableError."""
    try:
        yield
    except TimeoutError as error:
        raise ApiUnavailableError(f"{what}: no answer within {REQUEST_SECONDS:g} s") from error
    except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError, LookupError, msgspec.MsgspecError) as error:
        raise ApiUnavailableError(f"{what}: {type(error).__name__}: {error}") from error


def decode_status(body: bytes | msgspec.Raw, code: int = 0) -> Status:
    """Read a Status; where something on the way answered in its stead, `code` and the answer's beginning are all."""
    try:
        status = _status.decode(body)
    except ValueError:
        return Status(code=code, message=bytes(body[:200]).decode(errors="replace"))
    status.code = status.code or code
    return status


def refusal(what: str, status: Status) -> ApiUnavailableError:
    """Return the error that a Status means."""
    text = f"{what}: {status.code} {status.reason}: {status.message}"
    if status.code == FORBIDDEN:
        return ApiForbiddenError(text)
    # After a restored backup the API server may know only older versions than ours.
    if status.code == GONE or status.has_cause("ResourceVersionTooLarge"):
        return ApiGoneError(text)
    return ApiUnavailableError(text)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    rest: list[bytes] = []
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            if line := b"".join(rest):
                yield line
            rest = [other]


def _dead_peer_options() -> list[tuple[int, int, int]]:
    """Have the kernel give a connection up within 20 s of the other machine's last sign of life."""
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]


def _distrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def path_of(*parts: Any) -> str:
    """Join a path's parts; what comes from an object's name cannot lead elsewhere."""
    return "/" + "/".join(str(part).replace("%", "%25").replace("/", "%2F").replace("?", "%3F") for part in parts)
