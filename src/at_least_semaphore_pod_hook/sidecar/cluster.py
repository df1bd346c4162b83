"""The node of a Redis Cluster that has a semaphore's slot, wherever that is at the moment."""

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

MAX_REDIRECTIONS = 5
MAX_PLACES = 16
ELSEWHERE = frozenset({"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"})
"""What a node answers that has not, or not yet, taken its place in the cluster."""


class Home(Moving):
    """Runs scripts at the node that has their keys, which all belong to one slot.

    It is found by asking any node. Nodes that were once told of are remembered beside those of the URL: they may be
    the ones that are left.
    """

    def __init__(self, url: StoreUrl, signals: Signals) -> None:
        super().__init__(signals)
        self._places: list[Address] = list(url.addresses)
        self._kept = len(self._places)

    def call(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
        """Run a script that returns a number; see `Server.call`."""
        # Each place once: a node that is gone must not keep us from asking the next one.
        for index, _ in enumerate(tuple(self._places)):
            now = time.monotonic()
            left = len(self._places) - index
            # A node that is dead must not eat what the next one needs.
            share = now + max(0.0, deadline - now) / min(left, 2)
            try:
                return self._follow(script, keys, arguments, share)
            except RefusedError as refused:
                if refused.reply.code not in ELSEWHERE:
                    raise
                self._forget()
                if left == 1:
                    raise
            except StoreUnavailableError:
                self._forget()
                if left == 1 or time.monotonic() >= deadline:
                    raise
        raise StoreUnavailableError("no node of the cluster is known")

    def _follow(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
        asked: Server | None = None
        try:
            for _ in range(MAX_REDIRECTIONS):
                if self._server is None:
                    self._server = Server(self._places[0], self._signals)
                at = asked or self._server
                try:
                    return at.call(script, keys, arguments, deadline, asking=asked is not None)
                except RefusedError as refused:
                    if refused.reply.code not in {"MOVED", "ASK"}:
                        raise
                    place = _place(refused, at.address)
                    if asked is not None:
                        asked.close()
                        asked = None
                    if refused.reply.code == "MOVED":
                        self._go_to(place)
                    else:
                        asked = Server(place, self._signals)
            raise StoreUnavailableError(f"{at.address}: it sends us around in circles")
        finally:
            if asked is not None:
                self._unanswered += asked.unanswered
                asked.close()

    def _go_to(self, place: Address) -> None:
        self.close()
        if place in self._places:
            self._places.remove(place)
        self._places.insert(0, place)
        del self._places[self._kept + MAX_PLACES :]

    def _forget(self) -> None:
        """Begin elsewhere the next time."""
        self.close()
        self._places.append(self._places.pop(0))


def _place(refused: RefusedError, told_by: Address) -> Address:
    """Read `MOVED slot host:port`. Without a host it is that of the node that says so."""
    host, _, port = refused.reply.text.rpartition(" ")[2].rpartition(":")
    if not port.isdigit() or not host.isascii():
        raise MalformedReplyError(f"{told_by}: {refused.reply.code} names no node")
    return told_by._replace(host=host or told_by.host, port=int(port))


def open_cluster(url: StoreUrl, semaphore: str, signals: Signals) -> RedisStore:
    """Open the store that is a cluster."""
    return RedisStore(Home(url, signals), semaphore)
