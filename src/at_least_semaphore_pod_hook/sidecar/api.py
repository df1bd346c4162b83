"""The permits of one semaphore as the webhook serves them: a sidecar that talks to it knows no store."""

from __future__ import annotations

import json
from binascii import crc32

from at_least_semaphore_pod_hook.errors import StoreUnavailableError, UnavailableError
from at_least_semaphore_pod_hook.sidecar import http
from at_least_semaphore_pod_hook.sidecar.connection import Connection, printable
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from at_least_semaphore_pod_hook.settings import PermitApi
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

OK, FORBIDDEN = 200, 403
BAD_REQUEST, INTERNAL_ERROR = 400, 500


class ApiStore:
    """One semaphore's permits, at the webhook.

    The sidecar trusts the authorities that it was started with. Where the webhook has others by now, it says so in an
    answer: over a connection whose certificate was trusted, so that they can be trusted as well. Those before them
    stay, for a replica of the webhook that has not changed over yet.

    `unanswered` counts the requests that were sent and got no answer: each may or may not have been applied.
    """

    def __init__(self, api: PermitApi, semaphore: str, signals: Signals) -> None:
        self.unanswered = 0
        self._semaphore = semaphore
        self._token_file = api.token_file
        self._authorities = api.authorities
        self._connection = Connection(api.address, signals)
        self._connection.authorities = api.authorities
        self.idle = self._connection.idle
        self.close = self._connection.close

    def renew(self, permit: str, pod: str, deadline: float) -> int:  # noqa: ARG002 - the token says which pod it is
        """See `stores.Store.renew`."""
        return self._ask("renew", permit, "lease_ms", deadline)

    def release(self, permit: str, pod: str, deadline: float) -> int:  # noqa: ARG002
        """See `stores.Store.release`."""
        return self._ask("release", permit, "released", deadline)

    def _ask(self, operation: str, permit: str, wanted: str, deadline: float) -> int:
        """Send a request that may be repeated; returns what is wanted of its answer, 0 where the permit is not ours."""
        connection = self._connection
        known = crc32(self._authorities.encode())
        body = {"semaphore": self._semaphore, "permit": permit, "authorities": known}
        path, content = f"/v1/permits/{operation}", json.dumps(body).encode()

        def exchange() -> dict[str, Any]:
            # Read anew each time: the kubelet puts another one there long before it ends.
            request = http.post(str(connection.address), path, content, f"Bearer {_token(self._token_file)}")
            self.unanswered += 1
            return self._understood(http.exchange(connection, request))

        answer = connection.through(exchange, deadline)
        if said := answer.get("authorities"):
            self._trust(said)
        value = answer.get(wanted, 0)
        if not isinstance(value, int):
            raise MalformedReplyError(f"{connection.address}: the answer's {wanted} is not a number")
        return int(value)

    def _understood(self, answer: http.Answer) -> dict[str, Any]:
        said = json.loads(answer.body) if answer.body.startswith(b"{") else {}
        if BAD_REQUEST <= answer.status < INTERNAL_ERROR:
            self.unanswered -= 1
        if answer.status == FORBIDDEN:
            return {}
        if answer.status != OK:
            text = said.get("message")
            raise StoreUnavailableError(f"it says: {printable(str(text))}" if text else f"HTTP status {answer.status}")
        if not said:
            raise MalformedReplyError("the answer is not the webhook's")
        self.unanswered -= 1
        return dict(said)

    def _trust(self, authorities: object) -> None:
        """Trust the authorities that the webhook has by now, beside those that it had before."""
        from at_least_semaphore_pod_hook.sidecar import tls  # noqa: PLC0415 - it is loaded: this came over TLS

        if not isinstance(authorities, str):
            return
        before, after = self._authorities, authorities
        try:
            tls.trust(self._connection.address, after)
        except StoreUnavailableError:
            return
        self._authorities = after
        self._connection.authorities = f"{after}\n{before}" if before else after


def _token(file: str) -> str:
    try:
        # Not pathlib: another 200 kB in each pod.
        with open(file, encoding="ascii") as opened:  # noqa: PTH123
            return opened.read().strip()
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{file}: {getattr(error, 'strerror', None) or 'not a token'}") from error
