"""Calls to etcd, at whichever endpoint answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp
import msgspec

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.etcd import wire
from at_least_semaphore_pod_hook.etcd.errors import EtcdRefusedError, EtcdUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address

_T = TypeVar("_T")

_CONNECTIONS: Final = 64
_OK: Final = 200
_IN_DOUBT: Final = (1, 2, 4, 14)
"""gRPC's codes for cancelled, unknown, deadline exceeded and unavailable: the request may still be applied."""
_LOGIN_AGAIN: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")
_ENCODER: Final = msgspec.json.Encoder()


class _UnreachedError(Exception):
    """The request did not get as far as the endpoint."""


class _UnansweredError(Exception):
    """The request was sent, and what became of it is not known."""


class Client:
    """One etcd cluster.

    A call goes to the endpoint that answered last, and to the next one where that cannot be reached. One that was sent
    but not answered is sent again only where doing it twice is the same as doing it once.

    Args:
        addresses: The cluster's client endpoints. The first user that is named logs in, at whichever endpoint. With TLS
            the certificate is checked against the system's authorities, or those that SSL_CERT_FILE names.
        timeout: Seconds that one endpoint has for an answer, connecting included.

    Raises (every method):
        EtcdUnavailableError: No endpoint answered.
        EtcdRefusedError: etcd refused.
    """

    def __init__(self, addresses: Sequence[Address], *, timeout: float = 2.0) -> None:
        if not addresses:
            raise InvalidInputError("etcd needs at least one address")
        self._endpoints = list(addresses)
        self._current = 0
        self._timeout = timeout
        self._user = next((address for address in addresses if address.username), None)
        self._token: str | None = None  # "" once etcd has said that it wants none
        self._login_lock = asyncio.Lock()
        self._calls: aiohttp.ClientSession | None = None
        self._watches: aiohttp.ClientSession | None = None

    async def range(self, request: wire.Range) -> wire.RangeResponse:
        """Read."""
        return await self._call("/v3/kv/range", request, wire.RangeResponse)

    async def put(self, request: wire.Put) -> wire.PutResponse:
        """Write; not sent again where the outcome is unknown, because another's write may have followed it."""
        return await self._call("/v3/kv/put", request, wire.PutResponse, repeatable=False)

    async def delete(self, request: wire.Delete) -> wire.DeleteResponse:
        """Delete; not sent again where the outcome is unknown, because another's write may have followed it."""
        return await self._call("/v3/kv/deleterange", request, wire.DeleteResponse, repeatable=False)

    async def txn(
        self,
        compare: list[wire.Compare],
        success: list[wire.Operation],
        failure: list[wire.Operation],
        *,
        repeatable: bool,
    ) -> wire.TxnResponse:
        """Do `success` where every comparison holds, otherwise `failure`.

        Args:
            compare: The conditions.
            success: What is done where they hold.
            failure: What is done where they don't.
            repeatable: Whether it may be sent again where the outcome is unknown: its conditions see to it then that
                the second time changes nothing.
        """
        request = wire.Txn(compare, success, failure)
        return await self._call("/v3/kv/txn", request, wire.TxnResponse, repeatable=repeatable)

    async def grant(self, ttl: int) -> wire.LeaseResponse:
        """Get a lease of `ttl` seconds; etcd may make it longer. One too many, after a repetition, ends by itself."""
        return await self._call("/v3/lease/grant", wire.LeaseRequest(ttl=ttl), wire.LeaseResponse)

    async def keep_alive(self, lease: int) -> int:
        """Start a lease's time anew. Returns its seconds to live; 0 where it has ended."""
        frame = await self._call("/v3/lease/keepalive", wire.LeaseRequest(id=lease), wire.KeepAliveFrame)
        return frame.result.ttl

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it the keys that were put under it; one that has ended is fine."""
        try:
            await self._call("/v3/lease/revoke", wire.LeaseRequest(id=lease), wire.PutResponse)
        except EtcdRefusedError as refusal:
            if refusal.code != EtcdRefusedError.NOT_FOUND:
                raise

    async def watch(self, request: wire.Watch) -> AsyncGenerator[wire.WatchResponse, None]:
        """Yield news until the connection or the watch ends: the caller looks what it has missed and watches again.

        An endpoint that freezes is not noticed here: whoever waits for an event also looks for himself at times. Close
        it (`contextlib.aclosing`) where it is left early.
        """
        token = await self._logged_in()
        body = _ENCODER.encode(wire.WatchRequest(request))
        failures = []
        for _ in range(max(2, len(self._endpoints))):
            endpoint = self._endpoints[self._current]
            try:
                async with contextlib.aclosing(self._lines(endpoint, "/v3/watch", body, token)) as lines:
                    async for line in lines:
                        news = _decode(line, wire.WatchFrame).result
                        yield news
                        if news.canceled:
                            break
            except _UnreachedError as failure:
                failures.append(str(failure))
                self._next_after(endpoint)
            except _UnansweredError:
                self._next_after(endpoint)
                return
            else:
                return
        raise EtcdUnavailableError("etcd: " + "; ".join(dict.fromkeys(failures)))

    async def close(self) -> None:
        """Let go of connections."""
        for session in (self._calls, self._watches):
            if session is not None:
                await session.close()
        self._calls = self._watches = None

    async def _call(self, path: str, request: object, kind: type[_T], *, repeatable: bool = True) -> _T:
        body = _ENCODER.encode(request)
        token = await self._logged_in()
        try:
            return _decode(await self._at_any(path, body, token, repeatable=repeatable), kind)
        except EtcdRefusedError as refusal:
            if self._user is None or not any(text in str(refusal) for text in _LOGIN_AGAIN):
                raise
        # Who is not known is refused before anything is applied: this is no repetition.
        token = await self._logged_in(stale=token)
        return _decode(await self._at_any(path, body, token, repeatable=repeatable), kind)

    async def _logged_in(self, stale: str | None = None) -> str:
        """Return a token other than `stale`, from a login where nobody else has just had one."""
        if self._user is None:
            return ""
        async with self._login_lock:
            if self._token is None or self._token == stale:
                body = _ENCODER.encode(wire.Credentials(self._user.username, self._user.password))
                try:
                    answer = await self._at_any("/v3/auth/authenticate", body, "", repeatable=True)
                    self._token = _decode(answer, wire.Token).token
                except EtcdRefusedError as refusal:
                    if refusal.code != EtcdRefusedError.FAILED_PRECONDITION:
                        raise
                    self._token = ""  # authentication is not enabled
            return self._token

    async def _at_any(self, path: str, body: bytes, token: str, *, repeatable: bool) -> bytes:
        failures = []
        # A lone endpoint is asked twice as well: a connection from before its restart is found dead by using it.
        for _ in range(max(2, len(self._endpoints))):
            endpoint = self._endpoints[self._current]
            try:
                return await self._post(endpoint, path, body, token)
            except _UnreachedError as failure:
                failures.append(str(failure))
                self._next_after(endpoint)
            except _UnansweredError as failure:
                failures.append(str(failure))
                self._next_after(endpoint)
                if not repeatable:
                    break
        raise EtcdUnavailableError("etcd: " + "; ".join(dict.fromkeys(failures)))

    def _next_after(self, endpoint: Address) -> None:
        # Of many calls that fail together only the first moves on: the others would skip endpoints nobody has tried.
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    async def _post(self, endpoint: Address, path: str, body: bytes, token: str) -> bytes:
        if self._calls is None:
            self._calls = self._session(aiohttp.ClientTimeout(total=self._timeout), _CONNECTIONS)
        with _told_apart(endpoint):
            async with self._calls.post(_url(endpoint, path), data=body, headers=_headers(token)) as response:
                answer = await response.read()
        if response.status != _OK:
            raise _failure(endpoint, response.status, answer)
        return answer

    async def _lines(self, endpoint: Address, path: str, body: bytes, token: str) -> AsyncGenerator[bytes, None]:
        if self._watches is None:
            # Each watch keeps a connection of its own for long: with the calls' limit they would block all calls.
            self._watches = self._session(aiohttp.ClientTimeout(total=None, sock_connect=self._timeout), 0)
        with _told_apart(endpoint):
            async with self._watches.post(_url(endpoint, path), data=body, headers=_headers(token)) as response:
                if response.status != _OK:
                    raise _failure(endpoint, response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield line

    def _session(self, timeout: aiohttp.ClientTimeout, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )


@contextlib.contextmanager
def _told_apart(endpoint: Address) -> Iterator[None]:
    """Tell requests that surely did not arrive from those that may have."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
        raise _UnreachedError(f"{endpoint}: {reason}") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise _UnreachedError(f"{endpoint}: no connection in time") from error
    except TimeoutError as error:
        raise _UnansweredError(f"{endpoint}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _UnansweredError(f"{endpoint}: {error or type(error).__name__}") from error


def _failure(endpoint: Address, status: int, answer: bytes) -> Exception:
    try:
        refusal = _decode(answer, wire.Refusal)
    except EtcdUnavailableError:
        refusal = wire.Refusal()
    text = refusal.message or refusal.error
    if not text or refusal.code in _IN_DOUBT:
        return _UnansweredError(f"{endpoint}: {text or f'HTTP status {status}'}")
    return EtcdRefusedError(text, refusal.code)


def _decode(answer: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise EtcdUnavailableError(f"etcd: not its JSON: {error}") from error


def _url(endpoint: Address, path: str) -> str:
    return f"{'https' if endpoint.tls else 'http'}://{endpoint}{path}"


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": token} if token else {}
