"""A watch of a namespace's pods in a process of its own, so that nothing that the bench does delays its clock.

As a program, `cluster_watch.py <kubeconfig> <namespace>`, it prints a line for each event, until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from cluster_history import Object, Seen, seen
from devcluster.errors import DevClusterError
from devcluster.kubeapi import EventType, KubeApi

_START_SECONDS = 20.0
_END_SECONDS = 5.0

Found = TypeVar("Found")


class Watcher:
    """The events of a namespace's pods from the start on; a context manager.

    The monotonic clock is the same in all processes of a machine, so that the events' times compare with ours.
    """

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._argv = [sys.executable, __file__, str(kubeconfig), namespace]
        self._popen: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._read, name=f"watch-{namespace}", daemon=True)
        self._changed = threading.Condition()
        self._events: list[Seen] = []
        self._listed = False
        self._ended = False

    @property
    def events(self) -> list[Seen]:
        """All events so far."""
        with self._changed:
            return list(self._events)

    def wait(self, probe: Callable[[list[Seen]], Found | None], timeout: float, what: str) -> Found:
        """Call `probe` with the events so far, and again after each new one, until it returns something true.

        DevClusterError after `timeout` seconds, or where the watch has ended.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = probe(self._events)
                if found:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    raise DevClusterError(f"not seen within {timeout:g} s: {what}")
                self._changed.wait(left)

    def first(self, wanted: Callable[[Seen], bool], since: int, timeout: float, what: str) -> Seen:
        """Return the first event from the index `since` on that is wanted, waiting for it; see `wait`."""
        at = since

        def probe(events: list[Seen]) -> Seen | None:
            nonlocal at
            while at < len(events):
                at += 1
                if wanted(events[at - 1]):
                    return events[at - 1]
            return None

        return self.wait(probe, timeout, what)

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        with self._changed:
            while not self._listed and not self._ended and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
        if not self._listed:
            self._close()
            raise DevClusterError("the watch did not begin")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._popen is None or self._popen.stdin is None:
            return
        self._popen.stdin.close()
        try:
            self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._popen is not None  # noqa: S101 - the thread starts after it
        assert self._popen.stdout is not None  # noqa: S101 - as it was asked for
        with self._popen.stdout as lines:
            for line in lines:
                fields = json.loads(line)
                with self._changed:
                    if fields is None:
                        self._listed = True
                    else:
                        self._events.append(Seen(*fields))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


async def follow(kubeconfig: Path, namespace: str) -> None:
    """Print each event, and null once the first list is through; return when the input ends."""

    def write(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def on_event(kind: EventType, pod: Object) -> None:
        write(seen(time.monotonic(), kind, pod))

    loop = asyncio.get_running_loop()
    async with KubeApi(kubeconfig) as api:
        watch = loop.create_task(
            api.follow(f"/api/v1/namespaces/{namespace}/pods", on_event, lambda: write(None)), name="watch"
        )
        loop.add_reader(sys.stdin.fileno(), watch.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await watch


if __name__ == "__main__":
    asyncio.run(follow(Path(sys.argv[1]), sys.argv[2]))
