"""What stores of several servers have in common: they come to each other by links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devcluster.errors import DevClusterError
from tests.chaos.proxy import Link, Loop
from tests.chaos.topology import start_again


class _Gate:
    """Reads along on a connection between servers, and ends it where it says what is not let through."""

    def __init__(self, stops: Callable[[bytes], bool]) -> None:
        self._stops = stops

    def asked(self, data: bytes) -> None:
        if self._stops(data):
            raise ConnectionAbortedError

    def forwarded(self) -> None:
        pass

    def answered(self, data: bytes) -> None:
        pass

    def ended(self) -> None:
        pass


class LinkedGroup:
    """Servers that are started and ended together.

    Attributes:
        peers: The links by which the others come to a server, by its port.
    """

    group: Any

    def __init__(self, loop: Loop) -> None:
        self.peers: dict[int, Link] = {}
        self._loop = loop

    def stops(self, data: bytes) -> bool:
        """Say whether what came by a link between servers ends its connection."""
        raise NotImplementedError

    def link(self, port: int) -> int:
        """Make the link to a server's port, and return its own."""
        self.peers[port] = Link(self._loop, [port], tap=lambda: _Gate(self.stops))
        return self.peers[port].port

    def start(self) -> None:
        start_again(self._begin)

    def _begin(self) -> None:
        try:
            self.group.start()
        except DevClusterError:
            self.group.stop()
            raise

    def close(self) -> None:
        self.group.stop()
        for link in self.peers.values():
            link.close()

    def note(self) -> None:
        """Nothing is lost of what they have written."""
