"""The dashboard as the pictures show it."""

from __future__ import annotations

import json
from typing import Any

from devcluster.webhook import ROOT
from pictures.panels import Panel, of_rows, panels

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
LABELS = ("namespace", "key", "reason", "decision", "status", "instance")


def shown() -> tuple[list[Panel], list[str]]:
    """The panels with one answer to each query, and the queries."""
    asked: list[str] = []

    def ask(expression: str) -> list[dict[str, Any]]:
        asked.append(expression)
        values = [[1.0, "2"], [3.0, "NaN"], [5.0, "+Inf"]]
        return [{"metric": dict.fromkeys(LABELS, name), "values": values} for name in ("b", "a")]

    return panels(DASHBOARD, ask, "30s"), asked


def test_every_query_is_asked_without_a_variable_and_named_by_its_labels() -> None:
    found, asked = shown()
    assert len(asked) == sum(len(panel.get("targets", ())) for panel in DASHBOARD["panels"])
    assert not [expression for expression in asked if "$" in expression]
    assert any("[30s]" in expression for expression in asked)
    assert not [series.name for panel in found for series in panel.series if "{" in series.name]
    held = next(panel for panel in found if panel.title == "Held and length")
    assert [series.name for series in held.series] == ["a/a held", "b/b held", "a/a length", "b/b length"]
    assert {tuple(series.points) for panel in found for series in panel.series} == {((1.0, 2.0),)}


def test_a_picture_has_whole_rows_from_its_top_on() -> None:
    found, _ = shown()
    (title,) = (panel.title for panel in found if panel.kind == "row" and panel.title == "Speed")
    speed = of_rows(found, [title])
    assert (speed[0].title, speed[0].place[:2]) == (title, (0, 0))
    assert [panel.title for panel in speed] == [panel.title for panel in found[-len(speed) :]]
    assert of_rows(found, [panel.title for panel in found if panel.kind == "row"]) == found
