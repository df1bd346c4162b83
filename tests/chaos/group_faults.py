"""Faults of stores of several servers, and of what a single one holds."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Collection
from typing import Any, ClassVar

import redis

from devcluster.binaries import find_or_build, program_version
from devcluster.stores import RedisServer
from devcluster.topologies import client
from devcluster.topologies_etcd import EtcdMember
from tests.chaos.fault import Fault, Verdict
from tests.chaos.groups import Cluster, Etcd, Sentinel
from tests.chaos.process_faults import StoreKilled, single, under_way
from tests.chaos.scene import Needs, Scene
from tests.chaos.topology import start_again

COPY_SECONDS = 4.0
"""How old an older copy is; less than what a verdict of WRITES allows."""
ASIDE_SECONDS = 0.5


class StoreFlushed(StoreKilled):
    """Somebody flushes the store."""

    name = "store: flushed"
    verdict = Verdict.WRITES
    rebuilt = True
    seconds = (0.1, 0.3)

    def inject(self, scene: Scene) -> None:
        with under_way(scene), single(scene).client() as asked:
            began = time.monotonic()
            asked.flushall()
            self.lost = began, time.monotonic()

    def heal(self, scene: Scene) -> None:
        pass


class StoreOlderCopy(StoreKilled):
    """The store comes back with the data that it had seconds ago."""

    name = "store: older copy"
    verdict = Verdict.WRITES
    rebuilt = True

    def inject(self, scene: Scene) -> None:
        scene.sleep(COPY_SECONDS)
        with under_way(scene):
            began = time.monotonic()
            single(scene).kill()
        single(scene).forget(COPY_SECONDS)
        self.lost = began, time.monotonic()


class OfGroup(Fault):
    """A fault of a store of several servers."""


class _OfEtcd(OfGroup):
    topologies = frozenset({"etcd"})
    member: EtcdMember

    @staticmethod
    def etcd(scene: Scene) -> Etcd:
        assert isinstance(scene.topology, Etcd)
        return scene.topology


class EtcdLeaderKilled(_OfEtcd):
    """SIGKILL of the member that leads."""

    name = "etcd: leader SIGKILL"
    seconds = (0.3, 2.0)

    def pick(self, etcd: Etcd) -> EtcdMember:
        return etcd.leader()

    def inject(self, scene: Scene) -> None:
        etcd = self.etcd(scene)
        self.member = self.pick(etcd)
        with under_way(scene):
            self.member.kill()

    def heal(self, scene: Scene) -> None:
        self.etcd(scene).restart(self.member)


class EtcdFollowerKilled(EtcdLeaderKilled):
    """SIGKILL of a member that follows."""

    name = "etcd: follower SIGKILL"

    def pick(self, etcd: Etcd) -> EtcdMember:
        leader = etcd.leader()
        return self.rng.choice([member for member in etcd.group.members if member is not leader])


class EtcdLeaderStopped(EtcdLeaderKilled):
    """SIGSTOP of the member that leads, for longer than an election, and shorter than what is left of any lease."""

    name = "etcd: leader SIGSTOP"
    silences = ("controller",)
    seconds = (0.9, 1.3)

    def inject(self, scene: Scene) -> None:
        self.member = self.pick(self.etcd(scene))
        with under_way(scene):
            self.member.pause()

    def heal(self, scene: Scene) -> None:
        self.member.resume()


@functools.cache
def _heeds_old_leaders() -> bool:
    """Whether etcd ends the leases that have run out by the clock of a leader that has just been replaced.

    It does before 3.4.31 and 3.5.13 (etcd's pull request 16822).
    """
    version = program_version(find_or_build(["etcd"])["etcd"]) or (0, 0, 0)
    return version < (3, 4, 31) or (3, 5, 0) <= version < (3, 5, 13)


class EtcdLeaderFrozen(EtcdLeaderStopped):
    """SIGSTOP of the member that leads, for longer than any lease."""

    name = "etcd: leader SIGSTOP for longer than a lease"
    seconds = (3.5, 4.5)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.verdict = Verdict.CLOCK if _heeds_old_leaders() else Verdict.NONE


class EtcdLeaderCutOff(EtcdLeaderKilled):
    """The member that leads is cut off from its peers, and clients still reach it."""

    name = "etcd: leader cut off from its peers"
    silences = ("controller",)
    seconds = (1.5, 4.0)

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(peers=True)

    def inject(self, scene: Scene) -> None:
        etcd = self.etcd(scene)
        self.member = self.pick(etcd)
        with under_way(scene):
            etcd.isolate(self.member)

    def heal(self, scene: Scene) -> None:
        self.etcd(scene).rejoin()


class EtcdCompacted(_OfEtcd):
    """Compactions in the midst of everything."""

    name = "etcd: compacted"

    def inject(self, scene: Scene) -> None:
        etcd = self.etcd(scene)
        for _ in range(5):
            revision = etcd.post("/v3/kv/range", {"key": "AA=="})["header"]["revision"]
            etcd.post("/v3/kv/compaction", {"revision": revision, "physical": True})
            scene.sleep(0.2)

    def heal(self, scene: Scene) -> None:
        pass


class _OfSentinel(OfGroup):
    topologies = frozenset({"sentinel"})
    silences = ("sidecar", "controller")
    expected: ClassVar[dict[int, Verdict]] = {
        0: Verdict.WRITES,
        # The replica that is promoted has every grant. Renewals and releases wait for nobody, so that leases can be
        # shorter, and permits be held again, until it is rebuilt.
        1: Verdict.WRITES,
    }
    """What may be lost, by how many replicas must have a grant."""
    seconds = (2.0, 3.5)
    primary: RedisServer

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._wait = rng.choice(list(self.expected))
        self.verdict = self.expected[self._wait]

    @staticmethod
    def sentinel(scene: Scene) -> Sentinel:
        assert isinstance(scene.topology, Sentinel)
        return scene.topology

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(wait_replicas=self._wait)

    def inject(self, scene: Scene) -> None:
        self.primary = self.sentinel(scene).group.primary()
        self.harm(scene)

    def harm(self, scene: Scene) -> None:
        raise NotImplementedError

    def heal(self, scene: Scene) -> None:
        sentinel = self.sentinel(scene)
        sentinel.group.wait_for_another(self.primary)
        self.mend(scene)
        # For a moment it takes itself for the primary that it was. Sentinels let that be for eight seconds.
        scene.sleep(ASIDE_SECONDS)
        sentinel.follow(self.primary)
        sentinel.whole()

    def mend(self, scene: Scene) -> None:
        raise NotImplementedError


class PrimaryKilled(_OfSentinel):
    """SIGKILL of the primary."""

    name = "sentinel: primary SIGKILL"

    def harm(self, scene: Scene) -> None:
        self.primary.kill()

    def mend(self, scene: Scene) -> None:
        start_again(self.primary.start)


class PrimaryStopped(_OfSentinel):
    """SIGSTOP of the primary until another one is promoted."""

    name = "sentinel: primary SIGSTOP"

    def harm(self, scene: Scene) -> None:
        self.primary.pause()

    def mend(self, scene: Scene) -> None:
        self.primary.resume()


class PrimaryIsolated(_OfSentinel):
    """The primary is cut off from replicas and Sentinels, and clients still reach it."""

    name = "sentinel: primary isolated"

    def harm(self, scene: Scene) -> None:
        self.sentinel(scene).group.isolate(self.primary)

    def mend(self, scene: Scene) -> None:
        self.sentinel(scene).group.rejoin(self.primary)


class _OfCluster(OfGroup):
    topologies = frozenset({"cluster"})
    verdict = Verdict.WRITES
    silences = ("sidecar", "controller")
    seconds = (2.0, 3.5)

    @staticmethod
    def cluster(scene: Scene) -> Cluster:
        assert isinstance(scene.topology, Cluster)
        return scene.topology

    def inject(self, scene: Scene) -> None:
        self.master = self.rng.choice(self.cluster(scene).masters())
        self.harm()

    def harm(self) -> None:
        raise NotImplementedError


class MasterKilled(_OfCluster):
    """SIGKILL of a master, whose replica takes over, or which is back before that."""

    name = "cluster: master SIGKILL"
    seconds = (0.3, 3.5)

    def harm(self) -> None:
        self.master.kill()

    def heal(self, scene: Scene) -> None:
        start_again(self.master.start)
        self.cluster(scene).whole()


class MasterStopped(_OfCluster):
    """SIGSTOP of a master, for longer or shorter than its replica waits."""

    name = "cluster: master SIGSTOP"
    seconds = (0.5, 3.5)

    def harm(self) -> None:
        self.master.pause()

    def heal(self, scene: Scene) -> None:
        self.master.resume()
        # For a moment it takes itself for the master that it was.
        scene.sleep(ASIDE_SECONDS)
        self.cluster(scene).whole()


class ConnectionsKilled(OfGroup):
    """Every connection to every server ends, again and again."""

    name = "store: connections cut"
    topologies = frozenset({"sentinel", "cluster"})

    def inject(self, scene: Scene) -> None:
        for _ in range(6):
            for asked in self._servers(scene):
                with contextlib.suppress(redis.exceptions.RedisError, OSError), asked:
                    asked.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            scene.sleep(0.2)

    @staticmethod
    def _servers(scene: Scene) -> Collection[Any]:
        if isinstance(scene.topology, Sentinel):
            return [scene.topology.group.client(server) for server in scene.topology.group.servers]
        assert isinstance(scene.topology, Cluster)
        return [client(server.port) for server in scene.topology.group.servers]

    def heal(self, scene: Scene) -> None:
        pass


GROUP_KINDS: list[type[Fault]] = [
    EtcdLeaderKilled,
    EtcdLeaderStopped,
    EtcdLeaderFrozen,
    EtcdFollowerKilled,
    EtcdLeaderCutOff,
    EtcdCompacted,
    PrimaryKilled,
    PrimaryStopped,
    PrimaryIsolated,
    MasterKilled,
    MasterStopped,
    ConnectionsKilled,
]
