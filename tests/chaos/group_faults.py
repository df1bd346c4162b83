"""Faults of etcd, and of what a single server holds."""

from __future__ import annotations

import functools
import random
import time

from devcluster.binaries import find_or_build, program_version
from devcluster.topologies_etcd import EtcdMember
from tests.chaos.fault import Fault, OfGroup, Verdict
from tests.chaos.groups import Etcd
from tests.chaos.process_faults import StoreKilled, single, under_way
from tests.chaos.scene import Needs, Scene

COPY_SECONDS = 4.0
"""How old an older copy is; less than what a verdict of WRITES allows."""


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


ETCD_KINDS: list[type[Fault]] = [
    EtcdLeaderKilled,
    EtcdLeaderStopped,
    EtcdLeaderFrozen,
    EtcdFollowerKilled,
    EtcdLeaderCutOff,
    EtcdCompacted,
]
