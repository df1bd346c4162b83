"""A real browser: Chromium, headless and with nothing but the loopback interface, driven by selenium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from devcluster.errors import DevClusterError


@contextmanager
def browser(directory: Path) -> Iterator[webdriver.Chrome]:
    """Run a browser that keeps its data in a directory; DevClusterError where there is none on this machine."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        raise DevClusterError("chromium or chromedriver is not installed: make test installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={directory}"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()


def emulate(driver: webdriver.Chrome, size: tuple[int, int], scheme: str) -> None:
    """Give the page a size and a colour scheme."""
    command: Any = driver.execute_cdp_cmd
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    command("Emulation.setDeviceMetricsOverride", metrics)
    command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
