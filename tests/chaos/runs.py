"""One run: a scene under load, faults drawn from a seed, healing, and what must hold after it."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from devcluster.polling import until
from tests.chaos import checking, history
from tests.chaos.checker import Final, check_final
from tests.chaos.clusters import Cluster, Ground, RealCluster, StandInCluster, admission
from tests.chaos.fault import Fault, Verdict, verdict_of
from tests.chaos.faults import ground as where
from tests.chaos.faults import plan
from tests.chaos.load import Kind, Load, is_live, permit
from tests.chaos.process_faults import WebhookCrashed
from tests.chaos.scene import Needs, Scene
from tests.cluster.gating import GATE, gates

ROOM_BYTES = 2**30
ENOUGH_PER_SECOND = 100
"""A run with fewer recorded operations a second before its fault says nothing."""
_WARM_SECONDS = 1.2
_WARM_TRIES = 3
_CONVERGE_SECONDS = 30.0
_SETTLE_SECONDS = 0.3


@dataclass
class Report:
    """What came of a run."""

    seed: int
    faults: list[str] = field(default_factory=list)
    verdict: Verdict = Verdict.NONE
    operations: int = 0
    per_second: float = 0.0
    unknown: int = 0
    over_admissions: int = 0
    permits_lost: int = 0
    crash_points: list[str] = field(default_factory=list)
    """One for each kill."""
    operations_at: dict[str, int] = field(default_factory=dict)
    """How many began while somebody was to be killed at a point."""
    violations: list[str] = field(default_factory=list)
    converged_seconds: float = 0.0
    seconds: float = 0.0
    real: bool = False
    topology: str = "single"

    @property
    def counts(self) -> bool:
        """Whether there was enough load for the run to say something."""
        return self.per_second >= ENOUGH_PER_SECOND

    def line(self) -> str:
        """Say it in one line."""
        where = f"{self.topology}, " + ("API server, " if self.real else "")
        state = "VIOLATION" if self.violations else "ok" if self.counts else "too little load"
        return (
            f"seed {self.seed}: {state}; {where}{' + '.join(self.faults)}; {self.operations} operations,"
            f" {self.per_second:.0f}/s, {self.unknown} unknown, converged after {self.converged_seconds:.1f} s,"
            f" {self.seconds:.1f} s in all"
        )


class Script(NamedTuple):
    """What a run is made of.

    Attributes:
        seed: Its name.
        rng: Draws what is left to draw.
        faults: What befalls it.
        kinds: The semaphores that pods come and go in.
        needs: What the scene is, before the faults have asked for theirs.
        real: Whether the API server is a real one.
    """

    seed: int
    rng: random.Random
    faults: Sequence[Fault]
    kinds: Sequence[Kind]
    needs: Needs
    real: bool = False


def semaphores(rng: random.Random) -> list[Kind]:
    """Draw the semaphores of a run: some deny, some let pods wait."""
    expiration = rng.choice([3, 3, 4])
    return [
        Kind("deny-1", rng.randint(4, 6), "deny", 6, expiration),
        Kind("deny-2", rng.randint(3, 4), "deny", 4, expiration, "sigterm"),
        Kind("gate-1", rng.randint(4, 6), "gate", 9, expiration),
        Kind("gate-2", rng.randint(2, 3), "gate", 5, expiration, "exit"),
    ]


def run(seed: int, directory: Path, ground: Ground) -> Report:
    """Run a seed; its logs and data go to `directory`."""
    rng = random.Random(seed)
    on = where(seed)
    faults = plan(rng, on)
    needs = Needs(topology=on.topology, native=rng.random() < 0.7)
    return perform(Script(seed, rng, faults, semaphores(rng), needs, on.real), directory, ground)


def perform(script: Script, directory: Path, ground: Ground) -> Report:
    """Do what a script says; its logs and data go to `directory`."""
    began = time.monotonic()
    seed, rng, faults, kinds, needs, real = script
    report = Report(seed, [fault.name for fault in faults], verdict_of(faults), real=real, topology=needs.topology)
    for fault in faults:
        needs = fault.needs(needs)
    loop = ground.loop

    def cluster() -> Cluster:
        return RealCluster(loop, ground.plane) if real else StandInCluster(loop, directory, random.Random(seed))

    with Scene(directory, rng, loop, needs, cluster) as scene:
        admissions = [admission(replica.process) for replica in scene.replicas]
        load = Load(scene.cluster.api, scene.cluster.namespace, admissions, kinds, random.Random(seed))
        loop.run(load.start())
        try:
            span = _trouble(scene, load, faults, report)
            lengths = {kind.key: kind.length for kind in kinds}
            report.violations += _converge(scene, load, lengths, report)
            report.violations += _not_rebuilt(scene, load, lengths, faults)
        finally:
            loop.run(load.stop())
            loop.run(load.close())
    operations = scene.operations()
    report.operations = len(operations)
    report.unknown = sum(operation.outcome == "unknown" for operation in operations)
    report.permits_lost = len(checking.lost(operations))
    report.crash_points = [point for fault in faults if isinstance(fault, WebhookCrashed) for point in fault.hit]
    report.over_admissions += sum(load.over.values())
    if report.verdict is Verdict.NONE:
        report.violations += [f"{key}: {over} pods too many at once" for key, over in load.over.items()]
    report.violations += checking.violations(operations, report.verdict, span, report.topology)
    history.dump(operations, directory / "history.jsonl")
    report.seconds = time.monotonic() - began
    return report


def run_kept(name: str, kept: Path, work: Callable[[Path], Report]) -> Report:
    """Run in a directory of its own; what it leaves is kept as `name` below `kept` where it fails."""
    place = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-", dir=in_memory()))
    try:
        report = work(place)
    except BaseException:
        _keep(place, kept / name)
        raise
    if report.violations:
        _keep(place, kept / name)
    else:
        shutil.rmtree(place)
    return report


def in_memory() -> str | None:
    """Name a directory in memory, where there is one with room; None for the usual one.

    What a power cut takes along is cut off by hand, so that waiting for a disk would only lower the load.
    """
    place = Path("/dev/shm")
    enough = place.is_dir() and shutil.disk_usage(place).free > ROOM_BYTES
    return str(place) if enough else None


def _keep(place: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, kept)


def _trouble(scene: Scene, load: Load, faults: Sequence[Fault], report: Report) -> checking.Span:
    """Bring faults about under load, and end them; returns when."""
    until(lambda: load.answers["created"] >= 12, "pods are created")
    for _ in range(_WARM_TRIES):
        before, since = len(scene.operations()), time.monotonic()
        scene.sleep(_WARM_SECONDS)
        report.per_second = (len(scene.operations()) - before) / (time.monotonic() - since)
        if report.counts:
            break
    at = time.monotonic()
    ends = []
    for fault in faults:
        fault.inject(scene)
        ends.append((fault.lasts, fault))
        scene.sleep(scene.rng.random() * 0.3)
    for lasts, fault in sorted(ends, key=lambda end: end[0]):
        scene.sleep(max(0.0, at + lasts - time.monotonic()))
        fault.heal(scene)
    scene.sleep(_SETTLE_SECONDS)
    return checking.Span(at, time.monotonic())


def _converge(scene: Scene, load: Load, lengths: dict[str, int], report: Report) -> list[str]:
    """Stop the load, and wait until store and API agree; returns what they still do not agree on."""
    scene.loop.run(load.stop())
    since = time.monotonic()
    while True:
        disagreements = _disagreements(scene, load, lengths, report)
        report.converged_seconds = time.monotonic() - since
        if not disagreements:
            # It must be so for longer than the moment.
            time.sleep(_SETTLE_SECONDS)
            if not _disagreements(scene, load, lengths, report):
                return []
        if report.converged_seconds > _CONVERGE_SECONDS:
            return [f"not within {_CONVERGE_SECONDS:g} s: {disagreement}" for disagreement in disagreements]
        time.sleep(0.1)


def _disagreements(scene: Scene, load: Load, lengths: dict[str, int], report: Report) -> list[str]:
    pods = scene.loop.run(load.pods())
    found = [f"{pod['metadata']['name']} is still being deleted" for pod in pods if _deleting(pod)]
    held, stored = scene.topology.held()
    report.over_admissions = 0
    for key, length in lengths.items():
        of_key = [pod for pod in pods if checking.key_of(pod) == key and not _deleting(pod)]
        live = {permit(pod) for pod in of_key if is_live(pod)}
        over = len(live) - length
        waiting = frozenset(permit(pod) for pod in of_key if GATE in gates(pod))
        holders = held.get(key, set())
        if over > 0:
            report.over_admissions += over
            if report.verdict is Verdict.NONE:
                found.append(f"{key}: {len(live)} pods are live, and there are {length} permits")
            elif not (holders <= live and len(holders) == length):
                found.append(f"{key}: of {len(live)} live pods {len(holders)} of {length} hold a permit")
        else:
            final = Final(key, frozenset(holders), frozenset(live), waiting, length)
            found += [f"{key}: {', '.join(wrong.permits)} {wrong.message}" for wrong in check_final(final)]
        if stored.get(key) != length and of_key:
            found.append(f"{key}: its length is {stored.get(key)}, not {length}")
    found += [f"{key}: held without a pod: {sorted(holders)}" for key, holders in held.items() if key not in lengths]
    return found


def _not_rebuilt(scene: Scene, load: Load, lengths: dict[str, int], faults: Sequence[Fault]) -> list[str]:
    """Return of which semaphores more was lost than what nobody could put back."""
    unseen = checking.in_flight(scene.operations(), faults)
    if unseen is None:
        return []
    pods = scene.loop.run(load.pods())
    live = Counter(checking.key_of(pod) for pod in pods if is_live(pod))
    return [
        f"{key}: {live[key]} pods are live, there are {length} permits, and {unseen[key]} pods were in flight"
        for key, length in lengths.items()
        if live[key] > length + unseen[key]
    ]


def _deleting(pod: dict[str, object]) -> bool:
    return "deletionTimestamp" in pod["metadata"]  # type: ignore[operator]
