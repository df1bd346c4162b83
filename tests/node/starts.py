"""How long pods take to start."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from tests.cluster.e2e import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Scene


def start_seconds(scene: Scene, count: int = 5) -> list[float]:
    """Create pods one after the other, and return the seconds from each one's creation to its main container."""
    journal, seconds = scene.journal(), []
    for number in range(count):
        name = f"start-{number}"
        created = time.monotonic()
        scene.create_pod(name, scene.template(journal, length=count))
        eventually(functools.partial(journal.of, name), "the main container runs")
        seconds.append(journal.of(name)[0].start - created)
    return seconds
