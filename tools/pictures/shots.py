"""The pictures themselves: the status page, a terminal, and a model of the dashboard, each as a browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from selenium.webdriver.common.by import By

from devcluster.browser import emulate
from devcluster.errors import DevClusterError
from devcluster.local import SOURCE, LocalCluster
from devcluster.polling import until
from pictures.panels import Panel

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_SIZE = (1200, 1000)
_COLUMNS = 120
_MOST_BYTES = 150_000
_WEBP_QUALITY = 90
_WAIT_SECONDS = 30.0
_PAGE = Path(__file__).with_name("dashboard.html")
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 14px 18px; width: max-content; background: {background}; color: {foreground}; }}
pre {{ margin: 0; font: 13px/1.45 "DejaVu Sans Mono", monospace; }}
{stylesheet}</style><body><pre>{code}</pre></body>"""


class Shots:
    """Takes pictures with a browser, and writes them into a directory."""

    def __init__(self, driver: Chrome, directory: Path) -> None:
        self._driver = driver
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def status_page(self, port: int, opened: Sequence[str]) -> None:
        """Take the status page, light and dark, with the details of some semaphores."""
        emulate(self._driver, _SIZE, "light")
        self._driver.get(f"http://127.0.0.1:{port}/status")
        for name in opened:
            until(functools.partial(self._open, name), f"the page shows {name}", _WAIT_SECONDS)
        # The plots of what was opened come a moment later.
        drawn = "document.querySelectorAll('.plot path.held[d*=H]').length"
        self._until(f"return {drawn} === {len(opened)}", "the plots are drawn")
        for scheme in ("light", "dark"):
            emulate(self._driver, _SIZE, scheme)
            # What has changed is marked for a moment.
            self._until("return document.getAnimations().length === 0", "nothing changes on the page")
            self._take(f"status-page-{scheme}.png")

    def terminal(self, cluster: LocalCluster, commands: Sequence[Sequence[str]]) -> None:
        """Take what commands of the product print, one below the other."""
        printed = Text()
        for words in commands:
            printed.append(f"$ at-least-semaphore-pod-hook {' '.join(words)}\n", style="bold")
            printed.append_text(Text.from_ansi(_printed(cluster, words).rstrip("\n") + "\n"))
            printed.append("\n")
        printed.rstrip()
        console = Console(record=True, width=_COLUMNS, file=io.StringIO())
        console.print(printed)
        page = console.export_html(theme=MONOKAI, code_format=_TERMINAL)
        emulate(self._driver, _SIZE, "dark")
        self._driver.get(f"data:text/html;base64,{base64.b64encode(page.encode()).decode()}")
        self._take("status-terminal.png")

    def dashboard(self, name: str, title: str, panels: Sequence[Panel], start: float, end: float, step: float) -> None:
        """Take a model of a dashboard's panels between two moments, in seconds since the epoch."""
        model = {"title": title, "panels": [dataclasses.asdict(each) for each in panels]}
        day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end))
        about = (
            f"a model of the dashboard: its queries, answered by Prometheus, {(end - start) / 60:.0f} minutes to {day}"
        )
        emulate(self._driver, _SIZE, "light")
        self._driver.get(_PAGE.as_uri())
        more = {"about": about, "start": start, "end": end, "gap": 2.5 * step}
        self._driver.execute_script("draw(arguments[0])", model | more)
        self._take(name)

    def _open(self, name: str) -> bool:
        found = [one for one in self._driver.find_elements(By.CLASS_NAME, "opener") if one.text == name]
        if found:
            # Not by the mouse, which would stay there.
            self._driver.execute_script("arguments[0].click()", found[0])
        return bool(found)

    def _until(self, script: str, what: str) -> None:
        until(lambda: self._driver.execute_script(script), what, _WAIT_SECONDS)

    def _take(self, name: str) -> None:
        """Take all of the page, whatever its size, in the format that the name ends with: png or webp."""
        command: Any = self._driver.execute_cdp_cmd
        body = self._driver.execute_script("return document.body.getBoundingClientRect().toJSON()")
        clip = {"x": 0, "y": 0, "width": body["right"], "height": body["bottom"], "scale": 1}
        form: dict[str, Any] = {"format": name.rpartition(".")[2], "captureBeyondViewport": True, "clip": clip}
        if form["format"] == "webp":
            form["quality"] = _WEBP_QUALITY
        taken = command("Page.captureScreenshot", form)
        picture = base64.b64decode(taken["data"])
        if len(picture) > _MOST_BYTES:
            raise DevClusterError(f"{name} takes {len(picture)} bytes, more than {_MOST_BYTES}")
        (self._directory / name).write_bytes(picture)
        print(f"pictures: {name}, {len(picture) / 1000:.0f} kB", flush=True)


def _printed(cluster: LocalCluster, words: Sequence[str]) -> str:
    """Return what a command of the product prints to a terminal with colours."""
    environment = os.environ | {
        "PYTHONPATH": str(SOURCE),
        "AT_LEAST_SEMAPHORE_QUEUE_REDIS_ADDRESS": cluster.store.address,
        "AT_LEAST_SEMAPHORE_KUBECONFIG": str(cluster.control_plane.kubeconfig),
    }
    argv = [sys.executable, "-m", "at_least_semaphore_pod_hook", *words, "--color=always"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DevClusterError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
