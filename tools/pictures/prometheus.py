"""A real Prometheus that scrapes one webhook."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from devcluster.binaries import find_or_build
from devcluster.process import Process, free_port

SCRAPE_SECONDS = 2

_READY_SECONDS = 30.0
_ANSWER_SECONDS = 10.0


class Prometheus:
    """A context manager; keeps all it writes in `directory`."""

    def __init__(self, directory: Path, port: int) -> None:
        """Scrape the port of 127.0.0.1 every SCRAPE_SECONDS."""
        directory.mkdir()
        own = free_port()
        self._url = f"http://127.0.0.1:{own}"
        targets = [{"targets": [f"127.0.0.1:{port}"]}]
        jobs = [{"job_name": "webhook", "scrape_interval": f"{SCRAPE_SECONDS}s", "static_configs": targets}]
        configuration = directory / "prometheus.yaml"
        # Intervals of a scrape may not be shorter than its timeout.
        whole = {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS}s"}
        configuration.write_text(yaml.safe_dump({"global": whole, "scrape_configs": jobs}))
        argv = [str(find_or_build(["prometheus"])["prometheus"]), f"--config.file={configuration}"]
        argv += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{own}"]
        self._process = Process("prometheus", argv, directory / "prometheus.log")

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series that an expression has between two moments, in seconds since the epoch."""
        wanted = urlencode({"query": expression, "start": start, "end": end, "step": step})
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{wanted}", timeout=_ANSWER_SECONDS) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=_ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def __enter__(self) -> Self:
        try:
            self._process.start()
            self._process.wait_until(self._ready, _READY_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
