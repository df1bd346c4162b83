"""One run's processes, with a link that can be troubled between any two that talk."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from devcluster.errors import DevClusterError
from devcluster.podrunner import PodRunner
from devcluster.polling import until
from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess
from tests.chaos import crash, journal
from tests.chaos.clusters import Cluster
from tests.chaos.groups import Etcd
from tests.chaos.history import Operation, Recorder
from tests.chaos.proxy import Link, Loop
from tests.chaos.redis_groups import Cluster as ClusterStore
from tests.chaos.redis_groups import Sentinel
from tests.chaos.topology import Single, Topology, start_again, store_links

_LEADING = "at_least_semaphore_pod_hook_leading 1.0"
_ROOT = Path(__file__).resolve().parents[2]
_CLOCKS = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Needs(NamedTuple):
    """What a run's faults ask of its scene.

    Attributes:
        topology: What the store is: "single", "etcd", "sentinel" or "cluster".
        wait_replicas: How many replicas must have a grant before it counts.
        peers: Whether links between the store's servers can be troubled.
        locks: How many servers Redlock has.
        sync: The store's appendfsync.
        clocks: Whose clocks can be set: "webhook", "store".
        crashing: Who is started so that it can be killed at a point: "webhook", "sidecar".
        native: Whether sidecars are native ones.
        replicas: How many webhooks there are.
    """

    topology: str = "single"
    wait_replicas: int = 0
    peers: bool = False
    locks: int = 1
    sync: str = "always"
    clocks: Collection[str] = ()
    crashing: Collection[str] = ()
    native: bool = True
    replicas: int = 2


class Clock:
    """The wall clock of processes that are started with `env`: right at first, then as it is set (libfaketime)."""

    def __init__(self, file: Path) -> None:
        if not _CLOCKS:
            raise DevClusterError("there is no libfaketime: install the Debian package faketime")
        self._file = file
        self.set("+0")
        self.env = {
            "LD_PRELOAD": str(_CLOCKS[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """Set it, e.g. to "+300s", "-300s", or "+0s x1.2" to run faster; seen within a second."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(offset + "\n")
        fresh.replace(self._file)


class Replica:
    """A webhook with its controller, and the links by which it talks."""

    def __init__(
        self, process: WebhookProcess, stores: list[Link], locks: list[Link], api: Link, clock: Clock | None
    ) -> None:
        self.process = process
        self.stores = stores
        self.locks = locks
        self.api = api
        self.clock = clock

    def start(self) -> None:
        """Start it, anew where it runs already and is not ready; return once it is."""
        start_again(self._begin)

    def _begin(self) -> None:
        self.process.process.kill()
        self.process.start()

    def leads(self) -> bool:
        """Say whether its controller is the one that works."""
        return _LEADING in self.process.get(self.process.metrics_port, "/metrics")[1]


class Scene:
    """Everything that a run runs; a context manager.

    Args:
        directory: Where logs and data go.
        rng: Draws what links draw.
        loop: Where links and the stand-in run.
        needs: What the faults ask for.
        cluster: Makes its cluster.
    """

    def __init__(
        self, directory: Path, rng: random.Random, loop: Loop, needs: Needs, cluster: Callable[[], Cluster]
    ) -> None:
        self.directory = directory
        self.rng = rng
        self.loop = loop
        self.needs = needs
        self._new_cluster = cluster
        self.recorder = Recorder()
        self.crash_file = directory / "crash"
        self.store_clock = self._clock("store")
        self.journal = directory / "journal"
        self.topology = self._topology(directory / "store")
        locks = 0 if self.topology.locks else needs.locks
        self.locks = [RedisServer(directory / f"lock-{number}") for number in range(locks)]
        self.replicas: list[Replica] = []
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(8)
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stack.callback(self._pool.shutdown)
        self._stack.callback(self.topology.close)
        for server in self.locks:
            self._stack.callback(server.kill)
        self.all(self.topology.start, *(server.start for server in self.locks))
        self.cluster = self._new_cluster()
        self._stack.callback(self.cluster.close)
        self._stack.callback(self._close_links)
        self.sidecars = self._store_links("")
        for number in range(1, self.needs.replicas + 1):
            self.replicas.append(self._replica(number))
        self._stack.callback(lambda: self.all(*(replica.process.process.kill for replica in self.replicas)))
        self.all(*(replica.start for replica in self.replicas))
        self.cluster.register([replica.process for replica in self.replicas])
        self.runner = self._runner()
        self._stack.enter_context(self.runner)
        until(self.leader, "a controller leads")

    def start(self, call: Callable[[], None]) -> Future[None]:
        """Make a call in the background."""
        return self._pool.submit(call)

    def all(self, *calls: Callable[[], object]) -> None:
        """Make calls at the same time, and wait for all of them."""
        for done in [self._pool.submit(call) for call in calls]:
            done.result()

    def operations(self) -> list[Operation]:
        """Return what was recorded so far, on links or by the callers, in the order of invocation."""
        return self.recorder.operations() or journal.read(self.journal)

    def leader(self) -> Replica | None:
        """Return the replica whose controller works, if there is one."""
        return next((replica for replica in self.replicas if replica.leads()), None)

    def ways(self, port: int) -> list[Link]:
        """Return the links of all clients to one of the store's servers."""
        number = self.topology.ports.index(port)
        return [self.sidecars[number], *(replica.stores[number] for replica in self.replicas)]

    def _close_links(self) -> None:
        for link in self._links:
            link.close()

    def _topology(self, directory: Path) -> Topology:
        needs = self.needs
        if needs.topology == "etcd":
            return Etcd(directory, self.loop, peers=needs.peers)
        if needs.topology == "sentinel":
            return Sentinel(directory, self.loop, needs.wait_replicas)
        if needs.topology == "cluster":
            return ClusterStore(directory, self.loop)
        return Single(directory, needs.sync, self._environment(self.store_clock))

    def _store_links(self, process: str) -> list[Link]:
        links = store_links(self.topology, self.loop, self.recorder, process, self.rng)
        self._links += links
        return links

    def _link(self, ports: list[int]) -> Link:
        link = Link(self.loop, ports, rng=random.Random(self.rng.random()))
        self._links.append(link)
        return link

    def _clock(self, who: str) -> Clock | None:
        self.directory.mkdir(parents=True, exist_ok=True)
        return Clock(self.directory / f"{who}.clock") if who.partition("-")[0] in self.needs.clocks else None

    @staticmethod
    def _environment(clock: Clock | None) -> dict[str, str] | None:
        return os.environ | clock.env if clock else None

    def _replica(self, number: int) -> Replica:
        stores = self._store_links(f"webhook-{number}")
        locks = [self._link([server.port]) for server in self.locks]
        api = self._link([self.cluster.port])
        kubeconfig = self.cluster.kubeconfig(self.directory / f"{number}.kubeconfig", api.port)
        clock = self._clock(f"webhook-{number}")
        flags = [
            *self.topology.flags([link.address for link in stores]),
            *([f"--redis-addresses={','.join(link.address for link in locks)}"] if locks else []),
            f"--kubeconfig={kubeconfig}",
            *(["--enable-sidecar-containers"] if self.needs.native else []),
        ]
        env = (clock.env if clock else {}) | self._launched(f"webhook-{number}")
        python = (sys.executable, *self._launcher("webhook"))
        process = WebhookProcess(self.directory / f"webhook-{number}", flags=flags, env=env, python=python)
        return Replica(process, stores, locks, api, clock)

    def _launcher(self, whom: str) -> tuple[str, ...]:
        """Return what starts a process that can be killed at a point, or that writes down what it does."""
        return (crash.__file__,) if whom in self.needs.crashing or self._journals else ()

    def _launched(self, process: str) -> dict[str, str]:
        env = {crash.VARIABLE: str(self.crash_file)}
        if self._journals:
            env |= {journal.VARIABLE: str(self.journal), journal.PROCESS: process, "PYTHONPATH": str(_ROOT)}
        return env

    @property
    def _journals(self) -> bool:
        return self.topology.tap(self.recorder, "") is None

    def _runner(self) -> PodRunner:
        package = ("-m", "at_least_semaphore_pod_hook")
        links = [zip(replica.stores, self.sidecars, strict=True) for replica in self.replicas]
        return PodRunner(
            self.cluster.admin,
            self.directory / "pods",
            entrypoint=(sys.executable, *self._launcher("sidecar"), *package),
            sidecar_env=self._launched("sidecar"),
            substitutions={theirs.address: ours.address for pairs in links for theirs, ours in pairs},
            restart_sidecars=True,
        )

    def revive(self) -> None:
        """Start the webhooks again that have ended."""
        self.all(*(replica.start for replica in self.replicas if not replica.process.process.alive))

    def sleep(self, seconds: float) -> None:
        """Let time pass; the store notes how much it has synced meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.topology.note()
            time.sleep(min(0.1, left))
