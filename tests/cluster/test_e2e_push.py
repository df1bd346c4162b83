"""Hand-overs whose news does not arrive: the store's messages are swallowed on their way to the controller."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from devcluster.process import Process
from tests.cluster.e2e import ORDINARY, PATIENCE_SECONDS, Namespace, Semaphore, client_of, eventually, opted_in, pod
from tests.cluster.gating import History, bind, replica, serving, uid
from tests.cluster.watching import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

KEY = "seats"
TOLD_SECONDS = 1.5
LOOK_SECONDS = 5.0
QUIET_SECONDS = 0.3
MARGIN_SECONDS = 2.0
"""What a slow machine may take for the hand-over itself, once the controller has looked."""


class MutedProxy(Proxy):
    """A proxy to a store that can be told to swallow what subscribers are sent."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.muted = False
        self.swallowed = 0

    def passes(self, data: bytes) -> bool:
        """Say whether these bytes go on: a subscriber's connection carries nothing but messages."""
        if b"pmessage" not in data or not self.muted:
            return True
        self.swallowed += 1
        return False


@contextmanager
def muted_proxy(port: int) -> Iterator[tuple[MutedProxy, str]]:
    """Run a proxy in a thread; yields it and its address."""
    proxy = MutedProxy(port)
    addresses: queue.Queue[str] = queue.Queue()
    ended: Future[None] = Future()

    async def serve() -> None:
        async with proxy.serving() as url:
            addresses.put(url.removeprefix("https://"))
            await asyncio.wrap_future(ended)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield proxy, addresses.get(timeout=PATIENCE_SECONDS)
    finally:
        ended.set_result(None)
        thread.join(PATIENCE_SECONDS)


@contextmanager
def sidecar(directory: Path, store: RedisServer, namespace: Namespace, name: str) -> Iterator[Process]:
    """Run the sidecar of a pod that has no kubelet, so that it gives its permit back and the API does not show it."""
    program = [sys.executable, "-m", "at_least_semaphore_pod_hook", "sidecar", f"--queue-redis-address={store.address}"]
    permit = uid(namespace.get(name))
    environment = {**os.environ, "POD_NAME": name, "POD_UID": permit}
    argv = [*program, f"{namespace.name}/{KEY}", permit]
    with Process("sidecar", argv, directory / f"{name}.log", env=environment) as process:
        yield process


def settle(store: RedisServer) -> None:
    """Wait until the controller has done what a pod's deletion makes it do: it has no script called any more."""
    client = client_of(store)

    def calls() -> int:
        called: int = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        return called

    seen, since = calls(), time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        if (now := calls()) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > QUIET_SECONDS

    eventually(quiet, "the store is left alone")


def test_a_permit_is_handed_over_though_nobody_hears_that_it_is_free(
    namespace: Namespace,
    store: RedisServer,
    account: Path,
    history: History,
    control_plane: ControlPlane,
    registration: Registration,
    tmp_path: Path,
) -> None:
    with (
        muted_proxy(store.port) as (proxy, address),
        # An ordinary sidecar gives its permit back at SIGTERM, while the API shows no change for a long time.
        serving(
            replica(tmp_path / "webhook", store, account, f"--queue-redis-address={address}", sidecars=ORDINARY)
        ) as webhook,
    ):
        registration.use(webhook)
        semaphore = Semaphore(store, namespace.name, KEY)
        names = ["told", "untold", "last"]
        for name in names:
            namespace.create(pod(name, opted_in(KEY, 1, 600)))
        took = {}
        for number, name in enumerate(names[:2]):
            history.until_served(number + 1)
            bind(namespace, name, control_plane.node)
            with sidecar(tmp_path, store, namespace, name) as process:
                eventually(lambda: semaphore.confirmed() == 1, "the sidecar renews")
                namespace.delete(name, grace=30)
                settle(store)
                proxy.muted = name == "untold"
                process.terminate()
                given_back = time.monotonic()
                assert process.exit_code == 0
                history.until_served(number + 2)
                took[name] = time.monotonic() - given_back
        for name in names:
            namespace.delete(name, grace=0)

    assert history.served == names
    assert took["told"] < TOLD_SECONDS
    assert proxy.swallowed
    assert took["untold"] < LOOK_SECONDS + MARGIN_SECONDS
