"""Draws the documentation's pictures as SVG files: `make drawings`.

They have a background of their own and follow the reader's colour scheme, so that they can be read wherever they are
shown. Nothing in them is fetched from anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as Xml

DIRECTORY = Path(__file__).resolve().parents[1] / "docs/pictures"
STYLE = """
.back { fill: #ffffff; stroke: #c9d1d9; }
text { fill: #1f2328; font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.small { font-size: 12.5px; }
.strong { font-weight: 600; }
.box { fill: #e8f4f2; stroke: #1f7a6d; stroke-width: 1.5; }
.held { fill: #1f7a6d; stroke: #1f7a6d; }
.on-held { fill: #ffffff; }
.bad { fill: #fbe9e7; stroke: #b3261e; stroke-width: 1.5; }
.frame { fill: none; stroke: #8b949e; stroke-dasharray: 5 4; }
.line { fill: none; stroke: #57606a; stroke-width: 1.5; }
.life { stroke: #b6bec8; stroke-dasharray: 3 4; }
.reply { stroke-dasharray: 6 4; }
.head { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  .back { fill: #161b22; stroke: #3d444d; }
  text { fill: #e6edf3; }
  .box { fill: #12312d; stroke: #4db6a5; }
  .held { fill: #4db6a5; stroke: #4db6a5; }
  .on-held { fill: #06201c; }
  .bad { fill: #3b1714; stroke: #f2857c; }
  .frame { stroke: #8b949e; }
  .line { stroke: #adb7c2; }
  .life { stroke: #57606a; }
  .head { fill: #adb7c2; }
}
"""
ROW = 34
"""The height of a step of a sequence."""


class Canvas:
    """A picture of so many pixels; `title` is read out to who does not see it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        box = f"0 0 {width} {height}"
        self._root = Xml.Element(
            "svg", xmlns="http://www.w3.org/2000/svg", viewBox=box, width=str(width), height=str(height), role="img"
        )
        Xml.SubElement(self._root, "title").text = title
        Xml.SubElement(self._root, "style").text = STYLE
        definitions = Xml.SubElement(self._root, "defs")
        options = {"viewBox": "0 0 10 10", "refX": "9", "refY": "5", "markerWidth": "7", "markerHeight": "7"}
        marker = Xml.SubElement(definitions, "marker", options, id="tip", orient="auto-start-reverse")
        Xml.SubElement(marker, "path", {"class": "head", "d": "M0 0 10 5 0 10z"})
        self.box(0.5, 0.5, width - 1, height - 1, style="back", round_=8)

    def box(self, x: float, y: float, width: float, height: float, *, style: str = "box", round_: int = 6) -> None:
        """Draw a rectangle."""
        place = {"x": x, "y": y, "width": width, "height": height, "rx": round_}
        Xml.SubElement(self._root, "rect", {"class": style} | {name: f"{value:g}" for name, value in place.items()})

    def text(self, x: float, y: float, *lines: str, style: str = "", anchor: str = "middle") -> None:
        """Write lines, 17 pixels apart, the first one's baseline at `y`."""
        for number, line in enumerate(lines):
            options = {"x": f"{x:g}", "y": f"{y + 17 * number:g}", "text-anchor": anchor}
            Xml.SubElement(self._root, "text", options | ({"class": style} if style else {})).text = line

    def labelled(self, x: float, y: float, width: float, height: float, *lines: str, style: str = "box") -> None:
        """Draw a rectangle with lines in its middle."""
        self.box(x, y, width, height, style=style)
        on = "on-held strong" if style == "held" else "strong"
        self.text(x + width / 2, y + height / 2 + 5 - 8.5 * (len(lines) - 1), *lines, style=on)

    def path(self, shape: str, *, style: str = "line", tip: bool = True) -> None:
        """Draw a line, with a tip at its end."""
        Xml.SubElement(self._root, "path", {"class": style, "d": shape} | ({"marker-end": "url(#tip)"} if tip else {}))

    def svg(self) -> str:
        """Return the file's text."""
        Xml.indent(self._root)
        return Xml.tostring(self._root, encoding="unicode") + "\n"


class Step(NamedTuple):
    """A message of a sequence; where `to` is None, a note at a participant."""

    by: int
    to: int | None
    text: str
    reply: bool = False


class Alternative(NamedTuple):
    """What holds for the steps that follow, up to the next one."""

    text: str


def sequence(title: str, participants: list[str], steps: list[Step | Alternative], gap: int = 190) -> Canvas:
    """Draw who tells whom what, from top to bottom."""
    width, height = gap * len(participants), 76 + ROW * len(steps)
    canvas = Canvas(width, height, title)
    places = [gap / 2 + gap * number for number in range(len(participants))]
    for place, name in zip(places, participants, strict=True):
        canvas.path(f"M{place:g} 50V{height - 14}", style="line life", tip=False)
        canvas.labelled(place - gap * 0.43, 14, gap * 0.86, 36, name)
    for number, step in enumerate(steps):
        y = 92 + ROW * number
        if isinstance(step, Alternative):
            canvas.path(f"M14 {y - 19}H{width - 14}", style="frame", tip=False)
            canvas.text(22, y, step.text, style="strong small", anchor="start")
        elif step.to is None:
            # As wide as the text is, more or less: there is nothing here to measure it with.
            wide = 6.7 * len(step.text) + 24
            left = min(max(places[step.by] - wide / 2, 14), width - 14 - wide)
            canvas.box(left, y - 16, wide, 24)
            canvas.text(left + wide / 2, y + 1, step.text, style="small")
        else:
            near = 4 if places[step.to] > places[step.by] else -4
            canvas.path(
                f"M{places[step.by]:g} {y}H{places[step.to] - near:g}", style="line reply" * step.reply or "line"
            )
            canvas.text((places[step.by] + places[step.to]) / 2, y - 6, step.text, style="small")
    return canvas


def admission() -> Canvas:
    """A pod's way from its creation to the end of its permit."""
    controller, api, webhook, store, sidecar = range(5)
    return sequence(
        "Acquire, renew, release: from the creation of a pod to the end of its permit",
        ["Controller or user", "API server", "Webhook", "Store", "Sidecar in the pod"],
        [
            Step(controller, api, "create pod"),
            Step(api, webhook, "AdmissionReview"),
            Step(webhook, store, "acquire: one atomic step"),
            Alternative("a permit is free"),
            Step(store, webhook, "reserved for one lease", reply=True),
            Step(webhook, api, "patch: add the sidecar", reply=True),
            Step(api, controller, "created", reply=True),
            Step(sidecar, store, "renew: confirms it"),
            Step(sidecar, None, "the main containers run"),
            Step(sidecar, store, "renew, each third of a lease"),
            Step(sidecar, store, "release, when work is over"),
            Alternative("all are held"),
            Step(store, webhook, "full, and held by whom", reply=True),
            Step(webhook, api, "denied: 403", reply=True),
            Step(api, controller, "no semaphore available", reply=True),
        ],
    )


def gate() -> Canvas:
    """How a waiter is let in."""
    sidecar, store, controller, api = range(4)
    return sequence(
        "Hand-over: a permit is given back, and the first in line is let in",
        ["Sidecar of a holder", "Store", "Controller", "API server"],
        [
            Step(api, controller, "watch: the pod waits"),
            Step(sidecar, store, "release"),
            Step(store, controller, "a permit is free"),
            Step(controller, None, "who came first?"),
            Step(controller, store, "acquire, under the pod's UID"),
            Step(store, controller, "granted, with a token", reply=True),
            Step(controller, api, "patch: gate off, token on"),
            Step(api, None, "the scheduler finds a node"),
        ],
        gap=215,
    )


def life() -> Canvas:
    """The states of a permit."""
    canvas = Canvas(860, 300, "Life of a permit: free, reserved, confirmed, and free again")
    canvas.labelled(40, 110, 150, 64, "free")
    canvas.labelled(355, 110, 150, 64, "held:", "reserved", style="held")
    canvas.labelled(670, 110, 150, 64, "held:", "confirmed", style="held")
    canvas.path("M190 130H351")
    canvas.text(272, 106, "granted: at the admission,", "or to the first in line", style="small")
    canvas.path("M505 142H666")
    canvas.text(587, 118, "first renewal,", "by the pod's sidecar", style="small")
    canvas.path("M355 160H194")
    canvas.text(273, 182, "never stored: 15 s;", "or the lease ends", style="small")
    canvas.path("M745 174V240H115V178")
    canvas.text(430, 258, "released by the sidecar; reclaimed where the pod is gone or has finished; or the lease ends")
    canvas.path("M700 110C690 60 800 60 790 106")
    canvas.text(745, 56, "renewed: the lease begins anew", style="small")
    canvas.path("M390 110C380 60 490 60 480 106")
    canvas.text(435, 56, "the controller renews, too", style="small")
    return canvas


def line() -> Canvas:
    """Holders, waiters and what lets them in."""
    canvas = Canvas(860, 250, "The line: two pods hold the permits, three wait behind their gates in order of arrival")
    canvas.box(30, 56, 236, 164, style="frame")
    canvas.text(148, 40, "semaphore team-a/database, length 2", style="small strong")
    for number, name in enumerate(("import-a", "import-b")):
        canvas.labelled(56, 76 + 68 * number, 184, 54, name, "runs, holds a permit", style="held")
    canvas.box(426, 56, 404, 164, style="frame")
    canvas.text(628, 40, "waiters: created, not scheduled", style="small strong")
    for number, name in enumerate(("import-c", "import-d", "import-e")):
        canvas.labelled(446 + 126 * number, 100, 112, 60, name, f"position {number + 1}")
        canvas.text(502 + 126 * number, 182, "gate", style="small")
    canvas.path("M442 130H272")
    canvas.text(350, 90, "a permit is free:", "the gate is removed", style="small")
    canvas.text(628, 210, "first come, first served", style="small")
    return canvas


def loss() -> Canvas:
    """What happens to a pod whose sidecar cannot renew, over time."""
    canvas = Canvas(880, 330, "A permit is lost: what happens when, with a lease of 60 seconds")
    left, second = 150, 9.6

    def at(moment: float) -> float:
        return left + second * moment

    canvas.path(f"M{left} 70H{at(72):g}")
    moments = {0: "0 s", 20: "20 s", 50: "50 s", 60: "60 s"}
    for moment, label in moments.items():
        canvas.path(f"M{at(moment):g} 64V308", style="line life", tip=False)
        canvas.text(at(moment), 56, label, style="small")
    canvas.text(at(0), 36, "last renewal", style="small")
    canvas.text(at(20), 36, "store out of reach", style="small")
    canvas.text(at(49), 36, "margin begins", style="small")
    canvas.text(at(61.5), 36, "lease ends", style="small")
    rows = (
        ("the lease", [(0, 60, "held", "held")]),
        ("the sidecar", [(0, 20, "quiet", "box"), (20, 72, "tries on; logs it", "bad")]),
        ("the work", [(0, 72, "goes on, from 60 s on perhaps beside a successor", "bad")]),
        ("the work, --fence", [(0, 50, "goes on", "box"), (50, 53, "", "bad")]),
        ("the successor", [(60, 72, "may start", "held")]),
    )
    for number, (name, bars) in enumerate(rows):
        y = 84 + 45 * number
        canvas.text(left - 14, y + 22, name, anchor="end", style="strong small")
        for begin, end, label, style in bars:
            canvas.labelled(at(begin), y, second * (end - begin), 34, label, style=style)
    canvas.text(at(53) + 6, 84 + 45 * 3 + 22, "stopped within 3 s", anchor="start", style="small")
    return canvas


PICTURES = {
    "admission.svg": admission,
    "gate.svg": gate,
    "life.svg": life,
    "line.svg": line,
    "loss.svg": loss,
}


def main() -> None:
    """Draw all of them."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (DIRECTORY / name).write_text(draw().svg())


if __name__ == "__main__":
    main()
