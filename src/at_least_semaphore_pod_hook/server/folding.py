"""Log lines that clients can cause at will: of each kind at most one a second, with how many there were."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

logger = logging.getLogger(__name__)

FOLD_SECONDS = 1.0


class Folded:
    """Logs the first of a kind at once, and what comes within a second after it as one line with a `count`.

    A second line has the fields of the last that it stands for. To be used within a running event loop.
    """

    def __init__(self, level: int = logging.INFO) -> None:
        self._level = level
        self._held: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}

    def say(self, message: str, kind: str, **fields: Any) -> None:
        """Log a message with fields; `kind` is one of few values."""
        key = (message, kind)
        held = self._held.get(key)
        if held is None:
            self._held[key] = (0, fields)
            logger.log(self._level, message, extra=fields)
            asyncio.get_running_loop().call_later(FOLD_SECONDS, self._tell, key)
        else:
            self._held[key] = (held[0] + 1, fields)

    def _tell(self, key: tuple[str, str]) -> None:
        count, fields = self._held.pop(key)
        if count:
            self._held[key] = (0, fields)
            logger.log(self._level, key[0], extra=fields | {"count": count})
            asyncio.get_running_loop().call_later(FOLD_SECONDS, self._tell, key)
