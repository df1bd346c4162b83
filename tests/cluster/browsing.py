"""A real browser for the status page: Chromium, headless and without a way out, driven by selenium."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDE, NARROW = (1200, 900), (390, 844)

CONTRAST = """
// The ratio of luminances of text and ground (WCAG 2.1, 1.4.3), of all elements that show text of their own.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3]) return colour;
  }
  return [255, 255, 255, 255];
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.closest(".unseen, noscript, script, thead")) continue;
  const style = getComputedStyle(element);
  const [one, other] = [rgba(element.closest("svg") ? style.fill : style.color), ground(element)].map(luminance);
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (ratio < 4.5) found.push([element.outerHTML.slice(0, 90), ratio.toFixed(2)]);
}
for (const element of document.querySelectorAll("[placeholder]")) {
  const [one, other] = [rgba(getComputedStyle(element, "::placeholder").color), ground(element)].map(luminance);
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (ratio < 4.5) found.push(["placeholder", ratio.toFixed(2)]);
}
return found;
"""

UNNAMED = """
// Controls, regions and pictures without a name for a screen reader, headers without a scope, references to nothing.
const found = [];
const named = (element) => element.getAttribute("aria-label") || element.textContent.trim() || (element.labels?.length);
for (const element of document.querySelectorAll("button, input, select, a, [role=region], [role=img], svg"))
  if (element.getAttribute("aria-hidden") !== "true" && !named(element)) found.push(element.outerHTML.slice(0, 90));
for (const element of document.querySelectorAll("th:not([scope]), table:not(:has(caption))"))
  found.push(element.outerHTML.slice(0, 90));
for (const element of document.querySelectorAll("[aria-controls]"))
  if (!document.getElementById(element.getAttribute("aria-controls"))) found.push(element.outerHTML.slice(0, 90));
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
found.push(...ids.filter((id, number) => ids.indexOf(id) !== number));
for (const [selector, count] of [["main", 1], ["h1", 1], ["html[lang]", 1], ["title", 1]])
  if (document.querySelectorAll(selector).length !== count) found.push(selector);
return found;
"""


@contextmanager
def browser(directory: Path) -> Iterator[webdriver.Chrome]:
    """Run a browser that has nothing but the loopback interface; skip where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium or chromedriver is not installed: make test installs them")
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


def pictures(driver: webdriver.Chrome, directory: Path) -> None:
    """Take pictures of the page, wide and narrow, light and dark."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, size in (("wide", WIDE), ("narrow", NARROW)):
        for scheme in ("light", "dark"):
            emulate(driver, size, scheme)
            driver.save_screenshot(str(directory / f"{name}-{scheme}.png"))
    emulate(driver, WIDE, "light")


def complaints(driver: Any) -> list[str]:
    """Return what the browser has complained of since it was asked last."""
    return [entry["message"] for entry in driver.get_log("browser") if "favicon" not in entry["message"]]
