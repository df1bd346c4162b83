"""What the Grafana dashboard's panels show, as far as their queries are answered by Prometheus."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Object = dict[str, Any]
Ask = Callable[[str], list[Object]]
"""Takes an expression and returns its series, each with `metric` and `values`."""

_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Series:
    """A line: its name in the legend, and points of seconds since the epoch and value."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A row's heading, one number, or a plot; `place` is x, y, width and height in the dashboard's own units."""

    kind: str
    title: str
    unit: str
    place: tuple[int, int, int, int]
    series: list[Series] = field(default_factory=list)


def panels(dashboard: Object, ask: Ask, interval: str) -> list[Panel]:
    """Return the panels of a dashboard with all of its variables at their `allValue`; `interval` is for rates."""
    variables = {each["name"]: each["allValue"] for each in dashboard["templating"]["list"] if "allValue" in each}
    return [_panel(each, ask, variables | {"__rate_interval": interval}) for each in dashboard["panels"]]


def of_rows(shown: Sequence[Panel], rows: Sequence[str]) -> list[Panel]:
    """Return the panels of the rows of these titles, the first one at the top."""
    found: list[Panel] = []
    wanted = False
    for panel in shown:
        wanted = panel.title in rows if panel.kind == "row" else wanted
        found += [panel] if wanted else []
    return [replace(each, place=(each.place[0], each.place[1] - found[0].place[1], *each.place[2:])) for each in found]


def _panel(panel: Object, ask: Ask, variables: Mapping[str, str]) -> Panel:
    grid = panel["gridPos"]
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none")
    series = [one for target in panel.get("targets", ()) for one in _series(target, ask, variables)]
    return Panel(panel["type"], panel["title"], unit, (grid["x"], grid["y"], grid["w"], grid["h"]), series)


def _series(target: Object, ask: Ask, variables: Mapping[str, str]) -> Sequence[Series]:
    expression = re.sub(r"\$(\w+)", lambda name: variables[name[1]], target["expr"])
    found = (
        Series(_legend(target["legendFormat"], each["metric"]), _points(each["values"])) for each in ask(expression)
    )
    return sorted(found, key=lambda one: one.name)


def _legend(text: str, labels: Mapping[str, str]) -> str:
    return _LABEL.sub(lambda label: labels.get(label[1], ""), text)


def _points(values: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    """Return what can be drawn; a ratio of nothing to nothing is no number."""
    return [(at, number) for at, text in values if math.isfinite(number := float(text))]
