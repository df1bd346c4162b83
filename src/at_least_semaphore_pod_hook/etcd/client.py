"""Calls to etcd, at whichever endpoint answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import msgspec

from at_least_semaphore_pod_hook.connector import Connector
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError
from at_least_semaphore_pod_hook.etcd import wire
from at_least_semaphore_pod_hook.etcd.errors import EtcdRefusedError, EtcdUnavailableError
from at_least_semaphore_pod_hook.etcd.outcomes import UnansweredError, UnreachedError, decode, failure_of, told_apart
from at_least_semaphore_pod_hook.etcd.tls import TlsContext
from at_least_semaphore_pod_hook.etcd_permits import (
    AUTHENTICATE,
    KEEP_ALIVE,
    LEASE_GRANT,
    LEASE_REVOKE,
    LOGIN_AGAIN,
    TXN,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address

_T = TypeVar("_T")

_CONNECTIONS: Final = 64
_OK: Final = 200
_ROUND_SECONDS: Final = 0.1
_WATCH_CHECK_SECONDS: Final = 5.0
_ENCODER: Final = msgspec.json.Encoder()


class Client:
    """One etcd cluster.

    A call goes to the endpoint that answered last, and to the next one where that cannot be reached. One that was sent
    but not answered is sent again only where doing it twice is the same as doing it once.

    Args:
        addresses: The cluster's client endpoints. The first user that is named logs in, at whichever endpoint; the
            files with its name and password are read with each login. With TLS the certificate is checked against the
            address's authorities, else the system's, or those that SSL_CERT_FILE names.
        timeout: Seconds that one endpoint has for an answer, connecting included.
        patience: Seconds for which the endpoints are gone through again and again where one of them could be reached,
            as while the cluster elects a leader. Where none could, a call fails at once.

    Attributes:
        restored: Whether the cluster's revision was seen to go back: an older copy of its data was put in place. Set
            to False by whoever has dealt with it.
        trouble: What endpoints said that did not answer, for who gives up meanwhile; empty once one has answered.

    Raises (every method):
        EtcdUnavailableError: No endpoint answered.
        EtcdRefusedError: etcd refused.
    """

    def __init__(self, addresses: Sequence[Address], *, timeout: float = 2.0, patience: float = 0.0) -> None:
        if not addresses:
            raise InvalidInputError("etcd needs at least one address")
        self.restored = False
        self.trouble = ""
        self._endpoints = list(addresses)
        self._current = 0
        self._timeout = timeout
        self._patience = patience
        self._seen = wire.Header()
        self._tls = {address: TlsContext(address) for address in addresses if address.tls}
        self._user = next((address for address in addresses if address.username or address.username_file), None)
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
        seen = self._seen
        answer = await self._call(TXN, request, wire.TxnResponse, repeatable=repeatable)
        self._witness(answer.header, seen)
        return answer

    async def exchange(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request of `etcd_permits`, which may be repeated, and return the answer to it."""
        try:
            return await self._call(path, body, dict[str, Any])
        except EtcdRefusedError as refusal:
            if refusal.code != EtcdRefusedError.NOT_FOUND:
                raise
            return {"code": refusal.code}

    async def grant(self, ttl: int, lease: int = 0) -> wire.LeaseResponse:
        """Get a lease of `ttl` seconds; etcd may make it longer.

        With a number of one's own as `lease`, repetitions get the same one. Else one too many ends by itself.
        """
        try:
            return await self._call(LEASE_GRANT, wire.LeaseRequest(id=lease, ttl=ttl), wire.LeaseResponse)
        except EtcdRefusedError as refusal:
            if not lease or "already exists" not in str(refusal):
                raise
            return wire.LeaseResponse(id=lease, ttl=ttl)

    async def time_to_live(self, lease: int) -> wire.TimeToLiveResponse:
        """Say how much of a lease is left."""
        request = wire.TimeToLiveRequest(id=lease)
        return await self._call("/v3/lease/timetolive", request, wire.TimeToLiveResponse)

    async def keep_alive(self, lease: int) -> int:
        """Start a lease's time anew. Returns its seconds to live; 0 where it has ended."""
        frame = await self._call(KEEP_ALIVE, wire.LeaseRequest(id=lease), wire.KeepAliveFrame)
        return frame.result.ttl

    async def revoke(self, lease: int) -> None:
        """End a lease, and with it the keys that were put under it; one that has ended is fine."""
        try:
            await self._call(LEASE_REVOKE, wire.LeaseRequest(id=lease), wire.PutResponse)
        except EtcdRefusedError as refusal:
            if refusal.code != EtcdRefusedError.NOT_FOUND:
                raise

    async def watch(self, request: wire.Watch) -> AsyncGenerator[wire.WatchResponse, None]:
        """Yield news until the connection or the watch ends: the caller looks what it has missed and watches again.

        An endpoint that has frozen, or has no leader, is noticed after some seconds. Close it (`contextlib.aclosing`)
        where it is left early.
        """
        token = await self._logged_in()
        body = _ENCODER.encode(wire.WatchRequest(request))
        failures = []
        for _ in range(max(2, len(self._endpoints))):
            endpoint = self._endpoints[self._current]
            try:
                async with contextlib.aclosing(self._lines(endpoint, "/v3/watch", body, token)) as lines:
                    async for line in lines:
                        news = decode(line, wire.WatchFrame).result
                        yield news
                        if news.canceled:
                            break
            except UnreachedError as failure:
                failures.append(str(failure))
                self._next_after(endpoint)
            except UnansweredError:
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
            return decode(await self._at_any(path, body, token, repeatable=repeatable), kind)
        except EtcdRefusedError as refusal:
            if self._user is None or not any(text in str(refusal) for text in LOGIN_AGAIN):
                raise
        # Who is not known is refused before anything is applied: this is no repetition.
        token = await self._logged_in(stale=token)
        return decode(await self._at_any(path, body, token, repeatable=repeatable), kind)

    async def _logged_in(self, stale: str | None = None) -> str:
        """Return a token other than `stale`, from a login where nobody else has just had one."""
        if self._user is None:
            return ""
        async with self._login_lock:
            if self._token is None or self._token == stale:
                try:
                    body = _ENCODER.encode(wire.Credentials(*self._user.credentials()))
                except UnavailableError as error:
                    raise EtcdUnavailableError(f"etcd: {error}") from error
                try:
                    answer = await self._at_any(AUTHENTICATE, body, "", repeatable=True)
                    self._token = decode(answer, wire.Token).token
                except EtcdRefusedError as refusal:
                    if refusal.code != EtcdRefusedError.FAILED_PRECONDITION:
                        raise
                    self._token = ""  # authentication is not enabled
            return self._token

    async def _at_any(self, path: str, body: bytes, token: str, *, repeatable: bool) -> bytes:
        give_up = asyncio.get_running_loop().time() + self._patience
        while True:
            failures = []
            reached = False
            # A lone endpoint is asked twice as well: a connection from before its restart is found dead by using it.
            for _ in range(max(2, len(self._endpoints))):
                endpoint = self._endpoints[self._current]
                try:
                    answer = await self._post(endpoint, path, body, token)
                except (UnreachedError, UnansweredError) as failure:
                    failures.append(str(failure))
                    self.trouble = "etcd: " + "; ".join(dict.fromkeys(failures))
                    self._next_after(endpoint)
                    if isinstance(failure, UnansweredError):
                        reached = repeatable
                        if not repeatable:
                            break
                else:
                    self.trouble = ""
                    return answer
            if not reached or asyncio.get_running_loop().time() >= give_up:
                raise EtcdUnavailableError(self.trouble)
            await asyncio.sleep(_ROUND_SECONDS * (0.5 + random.random()))  # noqa: S311 - to spread callers

    def _witness(self, header: wire.Header, before: wire.Header) -> None:
        """Compare a linearizable answer's revision with the highest that was known when the question was sent."""
        same = header.cluster_id == before.cluster_id
        if same and header.revision < before.revision:
            self.restored = True
            self._seen = header
        elif header.cluster_id != self._seen.cluster_id or header.revision > self._seen.revision:
            self._seen = header

    def _next_after(self, endpoint: Address) -> None:
        # Of many calls that fail together only the first moves on: the others would skip endpoints nobody has tried.
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    async def _post(self, endpoint: Address, path: str, body: bytes, token: str) -> bytes:
        if self._calls is None:
            self._calls = self._session(aiohttp.ClientTimeout(total=self._timeout), _CONNECTIONS)
        with told_apart(endpoint):
            async with self._calls.post(**self._request(endpoint, path, body, token)) as response:
                answer = await response.read()
        if response.status != _OK:
            raise failure_of(endpoint, response.status, answer)
        return answer

    async def _lines(self, endpoint: Address, path: str, body: bytes, token: str) -> AsyncGenerator[bytes, None]:
        if self._watches is None:
            # Each watch keeps a connection of its own for long: with the calls' limit they would block all calls.
            self._watches = self._session(aiohttp.ClientTimeout(total=None, sock_connect=self._timeout), 0)
        with told_apart(endpoint):
            async with self._watches.post(**self._request(endpoint, path, body, token)) as response:
                if response.status != _OK:
                    raise failure_of(endpoint, response.status, await response.read())
                rest = b""
                while chunk := await self._chunk(response.content, endpoint, token):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield line

    async def _chunk(self, content: aiohttp.StreamReader, endpoint: Address, token: str) -> bytes:
        """Read on; where there is nothing for long, find out whether the endpoint has frozen or lost its leader."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_CHECK_SECONDS):
                    return await content.readany()
            with contextlib.suppress(EtcdRefusedError):
                await self._post(endpoint, "/v3/kv/range", _ENCODER.encode(wire.Range(b"epoch", keys_only=True)), token)

    def _request(self, endpoint: Address, path: str, body: bytes, token: str) -> dict[str, Any]:
        request: dict[str, Any] = {
            "url": f"{'https' if endpoint.tls else 'http'}://{endpoint}{path}",
            "data": body,
            "headers": {"Authorization": token} if token else {},
        }
        if endpoint.tls:
            request["ssl"] = self._tls[endpoint].current()
            request["server_hostname"] = endpoint.server_name or None
        return request

    def _session(self, timeout: aiohttp.ClientTimeout, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=Connector(limit=connections),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
