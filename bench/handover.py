"""How fast and how surely permits change hands, on a real control plane: each figure beside its floor.

Everything runs on one machine: API server, etcd, store, webhook with controller, sidecars, and the bench itself. It
exits with 1 where a floor is missed or an invariant is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import handover_cost
import handover_exit
import handover_fault
import handover_gate
import handover_order
import handover_rate
import handover_wake
from admissions import compile_as_image
from cluster_scene import Stage
from devcluster.errors import DevClusterError
from devcluster.session import StoppedError, scratch, until_signalled
from handover_report import Row, failed, table

Case = Callable[[Stage, argparse.Namespace], list[Row]]

CASES: dict[str, Case] = {
    "throughput": lambda stage, flags: handover_rate.throughput(stage, flags.pods, flags.rounds),
    "gate-sigterm": lambda stage, flags: handover_gate.sigterm(stage, flags.handovers),
    "gate-dead": lambda stage, flags: handover_gate.dead(stage, flags.handovers),
    "order": lambda stage, _: handover_order.measure(stage),
    "wake": lambda stage, flags: handover_wake.measure(stage, flags.owners),
    "utilization": lambda stage, _: handover_rate.utilization(stage),
    "exit": lambda stage, _: handover_exit.measure(stage),
    "silence": lambda stage, _: handover_fault.silence(stage),
    "failover": lambda stage, flags: handover_fault.failover(stage, flags.kills),
    "memory": lambda stage, _: handover_cost.memory(stage),
    "idle": lambda stage, flags: handover_cost.idle(stage, flags.idle_seconds),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="CASE[,CASE]", help=f"of {', '.join(CASES)}")
    parser.add_argument("--handovers", type=int, default=60, help="of each way to end, in gate mode")
    parser.add_argument("--owners", type=int, default=25, help="denied owners of each kind")
    parser.add_argument("--pods", type=int, default=500, help="of a round of throughput")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput; medians are shown")
    parser.add_argument("--kills", type=int, default=3, help="of the active controller")
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="over which idle CPU is measured")
    parser.add_argument("--logs", type=Path, help="a directory to keep all logs in; it must not exist")
    flags = parser.parse_args(arguments)
    names = list(dict.fromkeys(flags.only.split(","))) if flags.only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    compile_as_image()
    with until_signalled() as check, scratch("handover-") as directory:
        try:
            with Stage.open(directory) as stage:
                rows = [row for name in names for row in _run(name, stage, flags, check)]
        finally:
            if flags.logs:
                _keep(directory, flags.logs)
    print(f"\n{table(rows)}")
    return 0 if all(row.met for row in rows) else 1


def _run(name: str, stage: Stage, flags: argparse.Namespace, check: Callable[[], None]) -> list[Row]:
    """Run one case; where it breaks down, that is its row."""
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    try:
        rows = CASES[name](stage, flags)
    except* (DevClusterError, OSError, TimeoutError) as group:
        check()
        print(group.exceptions[0], file=sys.stderr, flush=True)
        rows = [failed(name, group.exceptions[0])]
    check()
    print(table(rows).partition("\n")[2])
    print(f"{name} took {time.monotonic() - started:.0f} s", flush=True)
    return rows


def _keep(directory: Path, target: Path) -> None:
    for log in directory.rglob("*.log"):
        place = target / log.relative_to(directory)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, place)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        try:
            sys.exit(main())
        except StoppedError as stopped:
            sys.exit(stopped.exit_code)
