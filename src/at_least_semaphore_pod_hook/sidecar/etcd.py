"""The permits of one semaphore in etcd, as a sidecar sees them: `etcd_permits` over its own connections."""

from __future__ import annotations

import json
import time

from at_least_semaphore_pod_hook import etcd_permits
from at_least_semaphore_pod_hook.errors import StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.sidecar import http
from at_least_semaphore_pod_hook.sidecar.connection import Connection, printable
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl
    from at_least_semaphore_pod_hook.etcd_permits import Body, Flow
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

OK = 200
REQUEST_SECONDS = 1.0
"""How long one endpoint has for an answer, where there are others."""
REVOKE_SECONDS = 0.25
FAILED_PRECONDITION = 9


class _RefusedError(Exception):
    """etcd has answered that it did not do it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class EtcdStore:
    """One semaphore's permits, at whichever endpoint answers.

    `unanswered` counts the writes that were sent and got no reply: each may or may not have been applied.
    """

    def __init__(self, url: StoreUrl, semaphore: str, signals: Signals) -> None:
        self.unanswered = 0
        self._semaphore = semaphore
        self._signals = signals
        self._connections = [Connection(address, signals) for address in url.addresses]
        self._user: Address | None = None
        for address in url.addresses:
            if self._user is None and (address.username or address.username_file):
                self._user = address
        self._token: str | None = None
        self._lease = 0

    def renew(self, permit: str, pod: str, deadline: float) -> int:
        """See `stores.Store.renew`."""
        renewed = self._drive(etcd_permits.renew(self._semaphore, permit, pod, self._lease), deadline)
        self._lease = renewed.lease
        lease_ms: int = renewed.lease_ms
        return lease_ms

    def release(self, permit: str, pod: str, deadline: float) -> int:
        """See `stores.Store.release`. The etcd lease is ended as well; where that fails, it ends by itself."""
        released = self._drive(etcd_permits.release(self._semaphore, permit, pod), deadline)
        if released.lease:
            self._revoke(released.lease, min(deadline, time.monotonic() + REVOKE_SECONDS))
        return int(released.released)

    def _revoke(self, lease: int, deadline: float) -> None:
        try:
            self._ask(etcd_permits.LEASE_REVOKE, {"ID": str(lease)}, deadline)
        except StoreUnavailableError:
            return

    def idle(self, until: float) -> None:
        """Let time pass; raises StopRequested."""
        self._connections[0].idle(until)

    def close(self) -> None:
        """Let go of connections."""
        for connection in self._connections:
            connection.close()

    def _drive(self, flow: Flow, deadline: float) -> Any:
        try:
            path, body = next(flow)
            while True:
                path, body = flow.send(self._ask(path, body, deadline))
        except StopIteration as end:
            return end.value

    def _ask(self, path: str, body: Body, deadline: float) -> dict[str, Any]:
        """Send a request that may be repeated, and return the answer."""
        token = self._logged_in(deadline)
        try:
            return self._at_any(path, body, token, deadline)
        except _RefusedError as refusal:
            if refusal.code == etcd_permits.NOT_FOUND:
                return {"code": refusal.code}
            if not token or not any(text in str(refusal) for text in etcd_permits.LOGIN_AGAIN):
                raise StoreUnavailableError(self._says(refusal)) from refusal
        self._token = None
        try:
            return self._at_any(path, body, self._logged_in(deadline), deadline)
        except _RefusedError as refusal:
            raise StoreUnavailableError(self._says(refusal)) from refusal

    def _logged_in(self, deadline: float) -> str:
        if self._user is None:
            return ""
        if self._token is None:
            try:
                name, password = self._user.credentials()
                who = {"name": name, "password": password}
                self._token = str(self._at_any(etcd_permits.AUTHENTICATE, who, "", deadline).get("token", ""))
            except _RefusedError as refusal:
                if refusal.code != FAILED_PRECONDITION:
                    raise StoreUnavailableError(self._says(refusal)) from refusal
                self._token = ""  # authentication is not enabled
            except UnavailableError as error:
                raise StoreUnavailableError(str(error)) from error
        return self._token

    def _says(self, refusal: _RefusedError) -> str:
        return f"{self._connections[0].address}: it says: {printable(str(refusal))}"

    def _at_any(self, path: str, body: Body, token: str, deadline: float) -> dict[str, Any]:
        """Ask the endpoint that answered last, and then the others."""
        failures: list[str] = []
        for index in range(len(self._connections)):
            connection = self._connections[0]
            now = time.monotonic()
            left = len(self._connections) - index
            share = deadline if left == 1 else now + min(REQUEST_SECONDS, (deadline - now) / left)
            try:
                return self._at(connection, path, body, token, share)
            except StoreUnavailableError as error:
                failures.append(str(error))
                self._connections.append(self._connections.pop(0))
        raise StoreUnavailableError("; ".join(failures))

    def _at(self, connection: Connection, path: str, body: Body, token: str, deadline: float) -> dict[str, Any]:
        request = http.post(str(connection.address), path, json.dumps(body).encode(), token)
        writes = "compare" in body
        answer = connection.through(lambda: self._exchange(connection, request, writes), deadline)
        if isinstance(answer, _RefusedError):
            raise answer
        return answer

    def _exchange(self, connection: Connection, request: bytes, writes: bool) -> dict[str, Any] | _RefusedError:
        self.unanswered += writes
        answer = http.exchange(connection, request)
        said = json.loads(answer.body) if answer.body.startswith(b"{") else {}
        if answer.status == OK:
            if not said:
                raise MalformedReplyError("the answer is not etcd's JSON")
            self.unanswered -= writes
            return dict(said)
        text, code = said.get("message") or said.get("error") or "", said.get("code", 0)
        if not text or code in etcd_permits.IN_DOUBT:
            raise StoreUnavailableError(f"it says: {printable(text)}" if text else f"HTTP status {answer.status}")
        self.unanswered -= writes
        return _RefusedError(text, code)


def open_etcd(url: StoreUrl, semaphore: str, signals: Signals) -> EtcdStore:
    """Open the store in an etcd cluster."""
    return EtcdStore(url, semaphore, signals)
