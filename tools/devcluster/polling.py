"""Waiting for what nobody announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from devcluster.errors import DevClusterError

Found = TypeVar("Found")

PATIENCE_SECONDS = 20.0
_POLL_SECONDS = 0.02


def until(probe: Callable[[], Found | None], what: str, timeout: float = PATIENCE_SECONDS) -> Found:
    """Ask until there is an answer that is true, and return it; DevClusterError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise DevClusterError(f"not within {timeout:g} s: {what}")
        time.sleep(_POLL_SECONDS)
    return found
