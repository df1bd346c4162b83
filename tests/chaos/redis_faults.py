"""Faults of a primary with replicas and Sentinels, and of a Redis Cluster."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection
from typing import Any, ClassVar

import redis

from devcluster.stores import RedisServer
from devcluster.topologies import client
from tests.chaos.fault import Fault, OfGroup, Verdict
from tests.chaos.network_faults import LOST_SHARE
from tests.chaos.process_faults import under_way
from tests.chaos.proxy import NONE, Trouble, Way
from tests.chaos.redis_groups import Cluster, Sentinel
from tests.chaos.scene import Needs, Scene
from tests.chaos.topology import start_again

ASIDE_SECONDS = 0.5


class _MayFailOver(OfGroup):
    """What may make Sentinels promote one of the two replicas."""

    topologies = frozenset({"sentinel"})
    silences = ("sidecar", "controller")
    expected: ClassVar[dict[int, Verdict]] = {
        0: Verdict.WRITES,
        # One of the two has a grant. Sentinels compare how far each replica has come, but by what it said seconds ago:
        # they may promote the other one, should it have been reached later.
        1: Verdict.WRITES,
        # Whichever is promoted has every grant. Renewals and releases wait for nobody, so that leases can be shorter,
        # and permits be held again, until it is rebuilt.
        2: Verdict.GRANTS,
    }
    """What may be lost, by how many replicas must have a grant."""

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


class _OfSentinel(_MayFailOver):
    seconds = (2.0, 3.5)
    primary: RedisServer

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
        sentinel.settle()

    def mend(self, scene: Scene) -> None:
        raise NotImplementedError


class PrimaryKilled(_OfSentinel):
    """SIGKILL of the primary.

    What it has sent to one replica by the time at which it reads that replica's word, it has sent to the other as well.
    """

    name = "sentinel: primary SIGKILL"
    expected: ClassVar[dict[int, Verdict]] = {**_MayFailOver.expected, 1: Verdict.GRANTS}

    def harm(self, scene: Scene) -> None:
        with under_way(scene):
            self.primary.kill()

    def mend(self, scene: Scene) -> None:
        start_again(self.primary.start)


class PrimaryStopped(_OfSentinel):
    """SIGSTOP of the primary until another one is promoted; as with SIGKILL, one replica's word is enough."""

    name = "sentinel: primary SIGSTOP"
    expected = PrimaryKilled.expected

    def harm(self, scene: Scene) -> None:
        with under_way(scene):
            self.primary.pause()

    def mend(self, scene: Scene) -> None:
        self.primary.resume()


class PrimaryIsolated(_OfSentinel):
    """The primary is cut off from replicas and Sentinels, and clients still reach it."""

    name = "sentinel: primary isolated"

    def harm(self, scene: Scene) -> None:
        self.sentinel(scene).isolate(self.primary)

    def mend(self, scene: Scene) -> None:
        self.sentinel(scene).rejoin(self.primary)


class PrimaryCutOff(_OfSentinel):
    """Nothing passes between the primary and anybody, and it lives on; what was on its way may arrive late."""

    name = "sentinel: primary cut off"

    def harm(self, scene: Scene) -> None:
        self.links = [self.sentinel(scene).peers[self.primary.port], *scene.ways(self.primary.port)]
        for link in self.links:
            link.trouble(Trouble(held=frozenset(Way)))

    def mend(self, scene: Scene) -> None:
        lost = self.rng.random() < LOST_SHARE
        for link in self.links:
            if lost:
                link.reset()
            link.trouble(NONE)


class PrimaryPeers(_MayFailOver):
    """Trouble on the link by which replicas and Sentinels come to the primary; its clients come by others."""

    sort = "peers"

    def heal(self, scene: Scene) -> None:
        super().heal(scene)
        self.sentinel(scene).settle()


class MasterReplica(OfGroup):
    """Trouble on the link by which a replica comes to its master; masters still hear each other on their bus."""

    sort = "peers"
    topologies = frozenset({"cluster"})


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
        with under_way(scene):
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


REDIS_KINDS: list[type[Fault]] = [
    PrimaryKilled,
    PrimaryStopped,
    PrimaryIsolated,
    PrimaryCutOff,
    MasterKilled,
    MasterStopped,
    ConnectionsKilled,
]
