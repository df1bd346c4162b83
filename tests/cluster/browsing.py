"""What the status page is asked in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devcluster.browser import emulate

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome

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


def pictures(driver: Chrome, directory: Path) -> None:
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
