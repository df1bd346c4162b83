"""The version of what is stored, so that no program writes into data that it does not understand.

A store has one mark, beside the semaphores. It is read when a process begins to use the store, and now and then after
that, never with a call of its own for an admission.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from at_least_semaphore_pod_hook.errors import DataVersionError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from at_least_semaphore_pod_hook.semaphore.contracts import Store

logger = logging.getLogger(__name__)

DATA_VERSION = 1
"""What this program writes. It raises with every change of what is stored that a program of before would get wrong."""
_CALLS = (
    *("acquire", "renew", "keep", "release", "reclaim"),
    *("begin", "set_length", "adopt", "state", "forget_denied"),
)
_STREAMS = ("changes", "semaphores")


def read_mark(text: str) -> int:
    """Return the version that a mark says; 0 for none.

    Raises:
        DataVersionError: It says none.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()):
        raise DataVersionError(f"the store's data is marked with {text[:80]!r}, which is no version")
    return int(text)


def check_version(version: int) -> None:
    """Raise DataVersionError where data of this version is not understood.

    Data without a mark (0) is that of a store in its first use, of one that has lost it all, or of a program from
    before there were marks, which wrote what version 1 is.
    """
    if version > DATA_VERSION:
        raise DataVersionError(
            f"the store's data is of version {version}, and this program knows versions up to {DATA_VERSION}: "
            "run the program that wrote it, or a later one"
        )


class VersionedStore:
    """A store that is used only while its data is understood.

    As long as that has not been looked at, each call looks first. Afterwards calls are those of the store itself.

    Args:
        store: What is used.
        marks: Whether to mark data that has no mark, or an older one.

    Attributes:
        store: What to use in its place.
    """

    def __init__(self, store: Store, *, marks: bool = True) -> None:
        self._store = store
        self._marks = marks
        self._calls: dict[str, Any] = {name: getattr(store, name) for name in (*_CALLS, *_STREAMS)}
        self._gate = _Gate(self._calls, self.check)
        for name in ("version", "mark", "close"):
            setattr(self._gate, name, getattr(store, name))
        self.store = cast("Store", self._gate)

    async def check(self) -> None:
        """Look at the mark, and mark the data where that is needed.

        Raises:
            DataVersionError: The data is not understood. Nothing was changed, and nothing will be before another look.
            StoreUnavailableError: The store does not answer.
        """
        try:
            version = await self._store.version()
            check_version(version)
        except DataVersionError:
            for name in self._calls:
                vars(self._gate).pop(name, None)
            raise
        vars(self._gate).update(self._calls)
        if not self._marks or version == DATA_VERSION:
            return
        try:
            await self._store.mark(DATA_VERSION)
        except StoreUnavailableError as error:
            # It is understood all the same. A store that takes no writes says so of grants as well.
            logger.warning("data not marked with its version", extra={"version": DATA_VERSION, "reason": str(error)})
        else:
            logger.info("data marked with its version", extra={"version": DATA_VERSION, "before": version})


class _Gate:
    """Looks at the mark before each call that has not been put in as an attribute."""

    def __init__(self, calls: dict[str, Any], check: Callable[[], Awaitable[None]]) -> None:
        self._calls = calls
        self._check = check

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in _STREAMS:

            async def stream() -> AsyncIterator[Any]:
                await self._check()
                async for each in self._calls[name]():
                    yield each

            return stream
        if name not in _CALLS:
            raise AttributeError(name)

        async def call(*args: Any, **options: Any) -> Any:
            await self._check()
            return await self._calls[name](*args, **options)

        return call
