"""The Redis server that Sentinels name, wherever it is at the moment."""

from __future__ import annotations

import time

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.sidecar.redis import Moving, RedisStore, RefusedError, Server
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl
    from at_least_semaphore_pod_hook.sidecar.redis import Script
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

ELSEWHERE = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
"""What a server answers that is not the primary, or not yet."""
LOOK_SECONDS = 5.0
"""How old word of who the primary is may be at a call: one that was replaced may believe in itself for long."""


class Primary(Moving):
    """Runs scripts at the primary. Where it refuses or is lost, the Sentinels are asked again, once a call."""

    def __init__(self, url: StoreUrl, signals: Signals) -> None:
        super().__init__(signals)
        self._url = url
        self._sentinels = list(url.addresses)
        self._looked = 0.0

    def call(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
        """Run a script that returns a number; see `Server.call`."""
        self._look_again(deadline)
        known = self._server is not None
        try:
            return self._run(script, keys, arguments, deadline)
        except RefusedError as refused:
            if refused.reply.code not in ELSEWHERE:
                raise
            if not known:
                raise
        except StoreUnavailableError:
            if not known or time.monotonic() >= deadline:
                raise
        return self._run(script, keys, arguments, deadline)

    def _run(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
        if self._server is None:
            self._server = self._find(deadline)
        try:
            return self._server.call(script, keys, arguments, deadline)
        except RefusedError as refused:
            if refused.reply.code in ELSEWHERE:
                self.close()
            raise
        except BaseException:
            self.close()
            raise

    def _look_again(self, deadline: float) -> None:
        """Leave a server that is not the primary any more. Where no Sentinel answers, it most likely still is."""
        now = time.monotonic()
        if self._server is None or now - self._looked < LOOK_SECONDS:
            return
        try:
            named = self._named(self._sentinels[0], now + (deadline - now) / 4)
        except StoreUnavailableError:
            self._sentinels.append(self._sentinels.pop(0))
            return
        self._looked = now
        if named != self._server.address:
            self.close()

    def _find(self, deadline: float) -> Server:
        failures = []
        for index, sentinel in enumerate(self._sentinels):
            now = time.monotonic()
            share = now + (deadline - now) / (len(self._sentinels) - index)
            try:
                server = self._checked(self._named(sentinel, share), share)
            except StoreUnavailableError as error:
                failures.append(str(error))
            else:
                # The one that knows is asked first the next time.
                self._sentinels.insert(0, self._sentinels.pop(index))
                self._looked = now
                return server
        raise StoreUnavailableError("; ".join(failures))

    def _checked(self, address: Address, deadline: float) -> Server:
        server = Server(address, self._signals)
        try:
            match server.ask(("ROLE",), deadline):
                case [b"master", *_]:
                    return server
        except BaseException:
            server.close()
            raise
        server.close()
        raise StoreUnavailableError(f"{address}: the Sentinels call it the primary, and it is not")

    def _named(self, sentinel: Address, deadline: float) -> Address:
        asked = Server(sentinel, self._signals)
        try:
            reply = asked.ask(("SENTINEL", "get-master-addr-by-name", self._url.service), deadline)
        finally:
            asked.close()
        if reply is None:
            raise StoreUnavailableError(f"{sentinel}: it knows no primary of {self._url.service}")
        match reply:
            case [bytes(host), bytes(port)] if port.isdigit() and host.isascii():
                return self._url.server._replace(host=host.decode(), port=int(port))
        raise MalformedReplyError(f"{sentinel}: what it names is no host and port")


def open_sentinel(url: StoreUrl, semaphore: str, signals: Signals) -> RedisStore:
    """Open the store that Sentinels name."""
    return RedisStore(Primary(url, signals), semaphore)
