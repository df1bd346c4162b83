"""`make pictures`: run a scene for some minutes, and take the documents' pictures of it."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path

from devcluster.browser import browser
from devcluster.errors import DevClusterError
from devcluster.polling import until
from devcluster.session import StoppedError, scratch, until_signalled
from devcluster.webhook import ROOT
from pictures.panels import of_rows, panels
from pictures.prometheus import SCRAPE_SECONDS, Prometheus
from pictures.scene import LAST, Scene, scene
from pictures.shots import Shots

_DASHBOARD = ROOT / "deploy/monitoring/dashboard.json"
# Not PNG, in which so many lines would take twice the room.
_DASHBOARD_PICTURES = {"dashboard.webp": ("State", "Semaphores"), "dashboard-speed.webp": ("Speed",)}
_OPENED = ("team-b/gpu",)
_COMMANDS = (("status",), ("status", "team-b/gpu"))
_WAIT_SECONDS = 60.0
# As Grafana has it: at least four scrapes.
_RATE_SECONDS = 15 * SCRAPE_SECONDS


def main() -> int:
    """Take the pictures and return the exit code."""
    parser = argparse.ArgumentParser(prog="pictures", description="take the pictures of the documents")
    parser.add_argument("--seconds", type=float, default=300, help="how long the scene runs before (300)")
    parser.add_argument("--directory", type=Path, default=ROOT / "docs/pictures", help="where they go (docs/pictures)")
    given = parser.parse_args()
    try:
        with until_signalled(), scratch("als-pictures-") as directory, scene(directory / "cluster") as played:
            _take(played, directory, given.directory, given.seconds)
    except StoppedError as stopped:
        return stopped.exit_code
    except DevClusterError as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 1
    return 0


def _take(played: Scene, directory: Path, target: Path, seconds: float) -> None:
    port = played.cluster.webhook.metrics_port
    with Prometheus(directory / "prometheus", port) as prometheus, browser(directory / "browser") as driver:
        shots = Shots(driver, target)
        print(f"pictures: the scene runs for {seconds:.0f} s", flush=True)
        started = time.time()
        played.play(seconds)
        *_, last = [(work, played.create(work)) for work in LAST]
        until(lambda: played.running(*last) == last[0].length, f"pods of {last[1]} hold and wait", _WAIT_SECONDS)
        shots.terminal(played.cluster, _COMMANDS)
        shots.status_page(port, _OPENED)
        ended, step = time.time(), max(SCRAPE_SECONDS, seconds / 100)
        ask = functools.partial(prometheus.query_range, start=started, end=ended, step=step)
        dashboard = json.loads(_DASHBOARD.read_text())
        shown = panels(dashboard, ask, f"{_RATE_SECONDS}s")
        for name, rows in _DASHBOARD_PICTURES.items():
            shots.dashboard(name, dashboard["title"], of_rows(shown, rows), started, ended, step)


if __name__ == "__main__":
    sys.exit(main())
