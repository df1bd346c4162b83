"""What is counted for each semaphore."""

from __future__ import annotations

from typing import Any


class _Uncounted:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


METER: Any = _Uncounted()
