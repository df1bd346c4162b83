"""SIGKILL at every crash point, so many times each: in a few runs, each with the points of its own."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from tests.chaos import crash, history
from tests.chaos.clusters import Ground
from tests.chaos.load import Kind
from tests.chaos.process_faults import WebhookCrashed
from tests.chaos.provocations import EXPIRATION_SECONDS, PROVOCATIONS, drop_leases
from tests.chaos.runs import Report, Script, perform
from tests.chaos.scene import Needs, Replica, Scene

TOPOLOGIES = ("single", "etcd")
KILLS_A_RUN = 40
ROUNDS = 3
"""How often what was missed is tried again."""
REPLICAS = 3
"""While one is starting and one is killed, one is left."""
_GIVE_UP_SECONDS = 40.0
_OFTEN_SECONDS = 1.5
_PROVOKE_SECONDS = 5.0


class Part(NamedTuple):
    """The points of one run.

    Attributes:
        number: Its seed.
        topology: What its store is.
        points: One for each kill, in order.
    """

    number: int
    topology: str
    points: list[str]


Wanted = dict[tuple[str, str], int]
"""How many kills there are to be, by store and point."""


def wanted(times: int, seed: int) -> Wanted:
    """Share `times` kills at each point out over both stores; who has one more of an odd number takes turns."""
    return {
        (topology, point): (times + (number // 2 + seed + turn) % 2) // 2
        for turn, topology in enumerate(TOPOLOGIES)
        for number, point in enumerate(crash.POINTS)
    }


def missed(done: Sequence[Report], whole: Wanted) -> Wanted:
    """Return the kills that there were not."""
    hits = Counter((report.topology, point) for report in done for point in report.crash_points)
    return {which: count - hits[which] for which, count in whole.items() if count > hits[which]}


def parts(kills: Wanted, seed: int) -> list[Part]:
    """Share kills out over runs, which are numbered from `seed` on.

    Webhooks and sidecars are never killed in one run: with both silent, leases could run out, and less could be said.
    """
    found: list[Part] = []
    for topology in TOPOLOGIES:
        for points in (crash.WEBHOOK_POINTS, crash.SIDECAR_POINTS):
            its = [point for point in points for _ in range(kills.get((topology, point), 0))]
            runs = -(-len(its) // KILLS_A_RUN)
            for index in range(runs):
                part = its[index * len(its) // runs : (index + 1) * len(its) // runs]
                number = seed + len(found)
                random.Random(number).shuffle(part)
                found.append(Part(number, topology, part))
    return found


def reports(whole: Wanted, seed: int, work: Callable[[Part], Report]) -> Iterator[Report]:
    """Yield the reports of all parts, and of more where some of the kills could not be done."""
    done: list[Report] = []
    for _ in range(ROUNDS):
        for part in parts(missed(done, whole), seed + len(done)):
            done.append(work(part))
            yield done[-1]


class PointsKilled(WebhookCrashed):
    """SIGKILL at one point after the other; whoever was killed is started again while it goes on."""

    seconds = (0.0, 0.0)

    def __init__(self, rng: random.Random, points: Sequence[str]) -> None:
        super().__init__(rng)
        self.whom = points[0].partition(":")[0]
        self.name = f"{self.whom}: {len(points)} crash points"
        self.silences = ("controller",) if self.whom == "webhook" else ("sidecar",)
        self.spans: list[tuple[str, float, float]] = []
        """For each kill its point, when it was ordered, and when it was done."""
        self._wanted = points
        self._starting: dict[Replica, Future[None]] = {}

    def inject(self, scene: Scene) -> None:
        try:
            for point in self._wanted:
                began = time.monotonic()
                if self._killed(scene, point):
                    self.hit.append(point)
                    self.spans.append((point, began, time.monotonic()))
        finally:
            self._wait()

    def heal(self, scene: Scene) -> None:
        self._start_again(scene)
        self._wait()

    def _killed(self, scene: Scene, point: str) -> bool:
        """Have the next one die that comes there, or comes there again; False where nobody does."""
        scene.crash_file.write_text(f"{point} {self.rng.choice([1, 1, 2, 3])}")
        often = True
        provoke = PROVOCATIONS.get(point.rpartition(":")[0])
        now = time.monotonic()
        began, due = now, now
        while scene.crash_file.exists():
            if now > began + _GIVE_UP_SECONDS:
                scene.crash_file.unlink(missing_ok=True)
                return False
            if often and now > began + _OFTEN_SECONDS:
                often = False  # nobody comes there several times
                scene.crash_file.write_text(f"{point} 1")
            if provoke and now >= due:
                provoke(scene, self.rng)
                due = time.monotonic() + _PROVOKE_SECONDS
            self._start_again(scene)
            scene.sleep(0.01)
            now = time.monotonic()
        self._start_again(scene)
        return True

    def _start_again(self, scene: Scene) -> None:
        """Start webhooks that have ended, in the background; nobody waits for a lease that one of them had."""
        self._starting = {replica: start for replica, start in self._starting.items() if not start.done()}
        for replica in scene.replicas:
            if replica not in self._starting and not replica.process.process.alive:
                drop_leases(scene, replica.process.log())
                self._starting[replica] = scene.start(replica.start)

    def _wait(self) -> None:
        for start in self._starting.values():
            start.result()


def semaphores(rng: random.Random) -> list[Kind]:
    """Draw semaphores whose leases outlive a kill, a restart and what is provoked."""
    return [
        # Whose owner is woken: now and then one is too many, and one goes all the same.
        Kind("deny-1", 3, "deny", 4, EXPIRATION_SECONDS, owner="deny-1"),
        Kind("deny-2", 3, "deny", 3, EXPIRATION_SECONDS, "sigterm"),
        Kind("gate-1", rng.randint(3, 4), "gate", 6, EXPIRATION_SECONDS),
        Kind("gate-2", 2, "gate", 4, EXPIRATION_SECONDS, "exit"),
    ]


def run(part: Part, directory: Path, ground: Ground) -> Report:
    """Run a part; its logs and data go to `directory`."""
    rng = random.Random(part.number)
    fault = PointsKilled(rng, part.points)
    replicas = REPLICAS if fault.whom == "webhook" else 2
    needs = Needs(topology=part.topology, native=rng.random() < 0.7, replicas=replicas)
    report = perform(Script(part.number, rng, [fault], semaphores(rng), needs), directory, ground)
    report.operations_at = dict(_operations(fault, directory))
    return report


def _operations(fault: PointsKilled, directory: Path) -> Iterator[tuple[str, int]]:
    began = [operation.invoked for operation in history.load(directory / "history.jsonl")]
    counts: Counter[str] = Counter()
    for point, start, end in fault.spans:
        counts[point] += sum(start <= moment < end for moment in began)
    yield from counts.items()
