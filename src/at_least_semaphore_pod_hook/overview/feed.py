"""One reading of all semaphores for everybody who looks on: however many viewers there are, the store is read once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.errors import SemaphoreError, UnavailableError
from at_least_semaphore_pod_hook.overview.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from at_least_semaphore_pod_hook.overview.document import Overview, SemaphoreView
    from at_least_semaphore_pod_hook.overview.history import Point
    from at_least_semaphore_pod_hook.overview.reading import Reader

logger = logging.getLogger(__name__)

VIEWED_SECONDS = 2.0
"""How often all is read while somebody looks on."""
UNVIEWED_SECONDS = 15.0
"""How often all is read for the history alone."""
COSTLY = 10.0
"""A pause is at least so many times as long as a reading: a large cluster is not kept busy by onlookers."""
ALIVE_SECONDS = 15.0
"""How often a viewer to whom there is nothing new to tell gets a sign of life."""
MOST = 1000
"""How many semaphores are shown, the first ones by name."""
NAMED = 50
"""How many holders and waiters of each are named."""
VIEWERS = 64


class TooManyViewersError(SemaphoreError):
    """There are as many viewers as are served at once."""


class Update(msgspec.Struct, frozen=True):
    """What a viewer is told.

    Attributes:
        at: When it was read, in seconds since the epoch; 0 where nothing was yet.
        sent: When it is sent, by the same clock.
        trouble: What could not be read, or an empty string; then the rest is as it was before.
        whole: Whether this is all there is, or what has changed.
        semaphores: Those that are new or other than before.
        gone: The names of those that are there no more.
        omitted: Whether there may be more semaphores than are shown.
    """

    at: float
    sent: float
    trouble: str
    whole: bool
    semaphores: tuple[msgspec.Raw, ...]
    gone: tuple[str, ...]
    omitted: bool


class _Shown(NamedTuple):
    """A semaphore as it is sent, and the number of the reading in which it came to be so."""

    number: int
    view: SemaphoreView
    body: msgspec.Raw


class Feed:
    """Reads over and over while it runs, and tells its viewers of what has changed.

    Args:
        reader: What is read.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._history = History()
        self._shown: dict[str, _Shown] = {}
        self._number = 0
        self._at = 0.0
        self._trouble = "nothing was read yet"
        self._omitted = False
        self._viewers = 0
        self._closed = False
        self._viewed = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Read until cancelled; then all viewers are let go."""
        try:
            while True:
                began = time.monotonic()
                await self._read()
                await self._pause(COSTLY * (time.monotonic() - began), began)
        finally:
            self._closed = True
            async with self._news:
                self._news.notify_all()

    def history(self, name: str) -> list[Point]:
        """Return what was seen of a semaphore over the last hour."""
        return self._history.of(name)

    def current(self) -> Update:
        """Return all there is, at most `UNVIEWED_SECONDS` and a reading old."""
        return self._update(-1, set())

    async def updates(self) -> AsyncGenerator[Update]:
        """Yield all there is, and from then on what has changed, or an empty one as a sign of life. Ends with `run`.

        Whoever takes long to take an update in gets what has happened meanwhile in one.

        Raises:
            TooManyViewersError: There are `VIEWERS` already.
        """
        if self._viewers >= VIEWERS:
            raise TooManyViewersError("too many viewers")
        self._viewers += 1
        self._viewed.set()
        number, known, trouble = -1, set[str](), ""
        try:
            while not self._closed:
                update = self._update(number, known)
                number, known, trouble = self._number, set(self._shown), self._trouble
                yield update
                await self._wait(number, trouble)
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._viewed.clear()

    async def _wait(self, number: int, trouble: str) -> None:
        """Wait for news, or until a sign of life is due."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALIVE_SECONDS), self._news:
                await self._news.wait_for(lambda: self._closed or (number, trouble) != (self._number, self._trouble))

    async def _read(self) -> None:
        try:
            overview = await self._reader.read(named=NAMED, most=MOST)
        except UnavailableError as error:
            self._trouble = str(error)
        except Exception:
            logger.exception("status page not read")
            self._trouble = "an unexpected error: see the webhook's log"
        else:
            self._take(overview)
        async with self._news:
            self._news.notify_all()

    def _take(self, overview: Overview) -> None:
        self._at = overview.at.timestamp()
        self._history.add(self._at, overview.semaphores)
        self._trouble = f"waiters and nodes are not known: {overview.api_server}" if overview.api_server else ""
        self._omitted = len(overview.semaphores) >= MOST
        now = {}
        changed = len(overview.semaphores) != len(self._shown)
        for view in overview.semaphores:
            known = self._shown.get(view.name)
            if known is None or known.view != view:
                known = _Shown(self._number + 1, view, msgspec.Raw(msgspec.json.encode(view)))
                changed = True
            now[view.name] = known
        self._shown = now
        if changed or not self._number:
            self._number += 1

    def _update(self, since: int, known: set[str]) -> Update:
        """Return what has changed since a reading; all where `since` is negative."""
        return Update(
            at=self._at,
            sent=time.time(),
            trouble=self._trouble,
            whole=since < 0,
            semaphores=tuple(shown.body for shown in self._shown.values() if shown.number > since),
            gone=tuple(sorted(known - set(self._shown))),
            omitted=self._omitted,
        )

    async def _pause(self, least: float, began: float) -> None:
        """Wait until the next reading is due, which is earlier once somebody looks on."""
        since = time.monotonic() - began
        await asyncio.sleep(max(least, VIEWED_SECONDS - since))
        try:
            async with asyncio.timeout(max(0, UNVIEWED_SECONDS - max(since, VIEWED_SECONDS))):
                await self._viewed.wait()
        except TimeoutError:
            return
