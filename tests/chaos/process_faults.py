"""Processes that are killed, frozen, or whose clocks go wrong."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from typing import ClassVar

from devcluster.errors import DevClusterError
from tests.chaos import crash
from tests.chaos.fault import Fault, Verdict
from tests.chaos.proxy import NONE, Trouble
from tests.chaos.scene import Needs, Replica, Scene
from tests.chaos.topology import FLUSH_SECONDS, Single, start_again

REACH_SECONDS = 1.2
"""How long it is waited for that somebody comes to a point."""


def some_sidecars(scene: Scene, rng: random.Random, most: int) -> list[tuple[str, str]]:
    """Draw pods, by namespace and name, whose sidecars run."""
    running = [key for key, run in scene.runner._latest.items() if run.sidecar_pid is not None]
    return rng.sample(running, min(len(running), rng.randint(1, most)))


@contextlib.contextmanager
def under_way(scene: Scene) -> Iterator[None]:
    """Slow the ways to the store down a little, so that whatever ends meanwhile ends in the midst of calls."""
    links = [link for group in (scene.sidecars, *(replica.stores for replica in scene.replicas)) for link in group]
    quiet = [link for link in links if link.quiet]
    for link in quiet:
        link.trouble(Trouble(delay=0.03, jitter=0.03))
    scene.sleep(0.1)
    yield
    for link in quiet:
        link.trouble(NONE)


def single(scene: Scene) -> Single:
    """Return the store that is a single server."""
    assert isinstance(scene.topology, Single)
    return scene.topology


class SidecarsKilled(Fault):
    """SIGKILL of sidecars, which the stand-in kubelet starts again."""

    name = "sidecars: SIGKILL"
    silences = ("sidecar",)

    def inject(self, scene: Scene) -> None:
        for where in some_sidecars(scene, self.rng, 6):
            with contextlib.suppress(DevClusterError):  # it has ended by itself
                scene.runner.kill_sidecar(*where)


class SidecarsStopped(Fault):
    """SIGSTOP of sidecars for longer than a lease."""

    name = "sidecars: SIGSTOP"
    silences = ("sidecar",)
    seconds = (3.5, 4.5)

    def inject(self, scene: Scene) -> None:
        self._stopped = some_sidecars(scene, self.rng, 6)
        self._signal(scene, signal.SIGSTOP)

    def heal(self, scene: Scene) -> None:
        self._signal(scene, signal.SIGCONT)

    def _signal(self, scene: Scene, number: int) -> None:
        for where in self._stopped:
            with contextlib.suppress(DevClusterError):
                scene.runner.kill_sidecar(*where, number)


class OfReplica(Fault):
    silences = ("controller",)

    def pick(self, scene: Scene) -> Replica:
        return self.rng.choice(scene.replicas)

    def inject(self, scene: Scene) -> None:
        self.replica = self.pick(scene)
        with under_way(scene):
            self.harm(self.replica)

    def harm(self, replica: Replica) -> None:
        raise NotImplementedError


class _OfLeader(OfReplica):
    def pick(self, scene: Scene) -> Replica:
        return scene.leader() or self.rng.choice(scene.replicas)


class WebhookKilled(OfReplica):
    """SIGKILL of a webhook."""

    name = "webhook: SIGKILL"

    def harm(self, replica: Replica) -> None:
        replica.process.process.kill()

    def heal(self, scene: Scene) -> None:
        scene.revive()


class LeaderKilled(_OfLeader, WebhookKilled):
    """SIGKILL of the webhook whose controller works."""

    name = "leader: SIGKILL"


class WebhookStopped(OfReplica):
    """SIGSTOP of a webhook in the midst of admissions, for longer than a lease."""

    name = "webhook: SIGSTOP"
    seconds = (2.5, 4.0)

    def harm(self, replica: Replica) -> None:
        replica.process.process.stop()

    def heal(self, scene: Scene) -> None:
        self.replica.process.process.cont()


class LeaderStopped(_OfLeader, WebhookStopped):
    """SIGSTOP of the leader for so long that the other one takes over."""

    name = "leader: SIGSTOP"
    seconds = (5.0, 5.5)


class StoreStopped(Fault):
    """SIGSTOP of the store for longer than a lease: its clock goes on, and nobody renews."""

    topologies = ("single",)
    name = "store: SIGSTOP"
    verdict = Verdict.LEASES
    silences = ("sidecar", "controller")
    seconds = (1.0, 4.5)

    def inject(self, scene: Scene) -> None:
        single(scene).pause()

    def heal(self, scene: Scene) -> None:
        single(scene).resume()


class StoreKilled(Fault):
    """SIGKILL of the store's process, which keeps all it has written, with any appendfsync."""

    topologies = ("single",)
    verdict = Verdict.LEASES
    seconds = (0.1, 1.5)
    sync = "always"

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(sync=self.sync)

    def inject(self, scene: Scene) -> None:
        with under_way(scene):
            single(scene).kill()

    def heal(self, scene: Scene) -> None:
        single(scene).revive()


class StorePowerCut(StoreKilled):
    """The store's machine loses power, and with it what was not synced."""

    def inject(self, scene: Scene) -> None:
        # How much had been written so long ago is known only from here on.
        scene.sleep(FLUSH_SECONDS[self.sync] + 0.2)
        with under_way(scene):
            single(scene).cut_power()


class LockMinorityLost(Fault):
    """One of three lock servers is down."""

    topologies = ("single", "sentinel", "cluster")
    name = "locks: minority lost"

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(locks=3)

    def inject(self, scene: Scene) -> None:
        self._server = self.rng.choice(scene.locks)
        self._server.kill()

    def heal(self, scene: Scene) -> None:
        start_again(self._server.start)


class LockMinorityEmptied(LockMinorityLost):
    """One of three lock servers forgets all, again and again."""

    name = "locks: minority emptied"

    def inject(self, scene: Scene) -> None:
        self._server = self.rng.choice(scene.locks)
        for _ in range(4):
            self._server.kill()
            start_again(self._server.start)
            scene.sleep(0.1)

    def heal(self, scene: Scene) -> None:
        pass


class WebhookCrashed(Fault):
    """SIGKILL of webhooks, one after the other, each at a point of its own doing."""

    name = "webhook: crash point"
    silences = ("controller",)
    seconds = (0.0, 0.2)
    points: ClassVar[list[str]] = crash.WEBHOOK_POINTS
    whom = "webhook"
    times = 2

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.hit: list[str] = []

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(crashing=frozenset({*needs.crashing, self.whom}))

    def inject(self, scene: Scene) -> None:
        for point in self.rng.sample(self.points, self.times):
            scene.crash_file.write_text(f"{point} {self.rng.choice([1, 1, 2, 3])}")
            end = time.monotonic() + REACH_SECONDS
            while scene.crash_file.exists() and time.monotonic() < end:
                scene.sleep(0.02)
            try:
                scene.crash_file.unlink()
            except FileNotFoundError:
                self.hit.append(point)
            scene.revive()

    def heal(self, scene: Scene) -> None:
        scene.revive()


class SidecarCrashed(WebhookCrashed):
    """SIGKILL of sidecars, each at a point of its own doing."""

    name = "sidecar: crash point"
    silences = ("sidecar",)
    points = crash.SIDECAR_POINTS
    whom = "sidecar"
    times = 4


class WebhookClock(Fault):
    """The wall clock of the webhooks jumps, or runs at another rate."""

    name = "webhook: clock"
    seconds = (2.0, 3.0)

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(clocks=frozenset({*needs.clocks, "webhook"}))

    def inject(self, scene: Scene) -> None:
        for replica in scene.replicas:
            assert replica.clock is not None
            replica.clock.set(self.rng.choice(["+300s", "-300s", "+0s x1.3", "+0s x0.7"]))

    def heal(self, scene: Scene) -> None:
        for replica in scene.replicas:
            assert replica.clock is not None
            replica.clock.set("+0s")


class StoreClock(Fault):
    """The wall clock of the store jumps ahead, in the end.

    Either by five minutes, or it is set back and put right again. Where it stays behind, a reservation whose pod was
    never stored is held for as much longer, and nothing converges until then.
    """

    topologies = ("single",)
    name = "store: clock jumps"
    verdict = Verdict.CLOCK
    seconds = (2.0, 3.0)
    settings: ClassVar[tuple[tuple[str, str], ...]] = (("+300s", "+300s"), ("-300s", "+0s"))

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._wrong, self._healed = rng.choice(self.settings)

    def needs(self, needs: Needs) -> Needs:
        return needs._replace(clocks=frozenset({*needs.clocks, "store"}))

    def inject(self, scene: Scene) -> None:
        assert scene.store_clock is not None
        scene.store_clock.set(self._wrong)

    def heal(self, scene: Scene) -> None:
        assert scene.store_clock is not None
        scene.store_clock.set(self._healed)


class StoreClockSkewed(StoreClock):
    """The wall clock of the store runs at another rate: leases are shorter or longer than they say."""

    name = "store: clock skewed"
    settings = (("+0s x1.3", "+0s"), ("+0s x0.7", "+0s"))
