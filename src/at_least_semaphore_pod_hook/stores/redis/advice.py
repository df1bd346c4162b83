"""What of a server's configuration can cost grants, said once, when the first connection is made."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


def shortcomings(info: Mapping[bytes, bytes], *, fails_over: bool, wait_replicas: int) -> list[str]:
    """Return what can go wrong with a primary that says this of itself.

    Args:
        info: The fields of its INFO. It has `min_slaves_good_slaves` only where `min-replicas-to-write` is set; one
            that hides a field is not accused.
        fails_over: Whether a replica may take its place.
        wait_replicas: How many replicas must have a grant before it counts.
    """
    replicas = info.get(b"connected_slaves")
    missing = []
    if wait_replicas and replicas == b"0":
        missing.append(f"no replica is connected, and wait-replicas={wait_replicas}")
    if not wait_replicas:
        missing.append("the store's URL has no wait-replicas")
    if replicas is not None and b"min_slaves_good_slaves" not in info:
        missing.append("min-replicas-to-write is 0")
    found = [f"a failover can lose the last grants: {what}" for what in missing if fails_over]
    if info.get(b"aof_enabled") == b"0":
        found.append("a restart can lose the last grants: appendonly is off")
    return found


class Advisor:
    """Is told what INFO says on each new connection, and logs what the first one shows."""

    def __init__(self, where: str, *, fails_over: bool = False, wait_replicas: int = 0) -> None:
        self._where = where
        self._fails_over = fails_over
        self._wait_replicas = wait_replicas
        self._said = False

    def __call__(self, info: Mapping[bytes, bytes]) -> None:
        """Log, the first time."""
        if self._said:
            return
        self._said = True
        for text in shortcomings(info, fails_over=self._fails_over, wait_replicas=self._wait_replicas):
            logger.warning(text, extra={"store": self._where})
