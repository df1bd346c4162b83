"""Deployments of more pods than there are permits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.e2e import eventually
from tests.node.workloads import BEAT_SECONDS

if TYPE_CHECKING:
    from tests.node.conftest import Stage
    from tests.node.workloads import Journal


def handover(journal: Journal, ended: str) -> float:
    """Return the seconds between the end of a pod's work and the beginning of the newest run."""
    return journal.stretches()[-1].start - journal.of(ended)[-1].end


def deployment_keeps_to_its_length(stage: Stage, journal: Journal, when_full: str) -> str:
    """Have 3 pods want 2 permits, delete one that runs, and say how the third took its place."""
    made = stage.template(journal, 2, annotated={"when_full": when_full})
    stage.create("Deployment", "web", made, replicas=3)
    first, _ = stage.runs(journal, 2)
    if when_full == "gate":
        eventually(lambda: len(stage.gated()) == 1, "the third one waits")
    else:
        eventually(
            lambda: "no semaphore available" in stage.namespace.kubectl("get", "events")[1], "the third one is denied"
        )
    stage.namespace.delete(first)
    eventually(lambda: len(journal.stretches()) == 3, "a successor runs")
    stage.runs(journal, 2)
    assert journal.overlap(2) <= 2 * BEAT_SECONDS
    return (
        f"2 run; main container to main container {handover(journal, first):.2f} s; overlap {journal.overlap(2):.2f} s"
    )
