"""The Helm chart's texts, and the alerts and the dashboard, held against each other and against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from at_least_semaphore_pod_hook import __version__
from at_least_semaphore_pod_hook.server import (  # each adds to the registry
    certificate_metrics,  # noqa: F401
    identities,  # noqa: F401
    metrics,
    permits,  # noqa: F401
    semaphore_metrics,  # noqa: F401
)

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/at-least-semaphore-pod-hook"
MONITORING = ROOT / "deploy/monitoring"
ALERTS: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def test_the_schema_knows_the_values_and_no_others() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)

    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert schema["additionalProperties"] is False
        assert set(values) == set(schema["properties"]) - {"global"}  # Helm's own
        for name, value in values.items():
            if value and "properties" in schema["properties"][name]:
                compare(value, schema["properties"][name])

    compare(VALUES, SCHEMA)


def test_the_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_users_of_the_bundled_store_are_the_shipped_ones() -> None:
    shipped = (CHART / "files/users.acl").read_text()
    assert (ROOT / "deploy/store/users.acl").read_text() == shipped
    assert 'Files.Get "files/users.acl"' in (CHART / "templates/valkey.yaml").read_text()
    users = {line.split()[1]: set(re.findall(r"[+]\S+", line)) for line in shipped.splitlines()}
    assert users["default"] == {"+ping"}
    # The webhook does nothing by a script's text but give back a lock; a sidecar has no other way.
    assert users["sidecar"] < users["webhook"]


def expressions() -> list[str]:
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return [*rules, *targets, *variables]


def samples() -> dict[str, set[str]]:
    """Return the labels of each metric by the name that it has in Prometheus."""
    found: dict[str, set[str]] = {}
    for collector in {*metrics.REGISTRY._collector_to_names}:
        for family in collector.collect():
            labels = set(getattr(collector, "_labelnames", ())) | set(getattr(family, "_labelnames", ()))
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {family.name + suffix: labels | ({"le"} if suffix == "_bucket" else set()) for suffix in suffixes}
    return found


@pytest.mark.parametrize("expression", expressions())
def test_metrics_of_alerts_and_dashboard_exist_with_their_labels(expression: str) -> None:
    known = samples()
    named = re.findall(rf"({metrics.PREFIX}\w+)(?:\{{([^}}]*)\}})?", expression)
    assert named
    for name, selectors in named:
        assert name in known
        matchers = [re.fullmatch(r'(\w+)(?:=~|!~|!=|=)"[^"]*"', each) for each in selectors.split(",") if each]
        assert {matcher and matcher[1] for matcher in matchers} <= known[name], name
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} - {"instance"} <= set().union(
            *(known[name] for name, _ in named)
        )


def test_the_dashboard_shows_every_metric() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))
    missing = [name for name in samples() if not name.endswith(("_sum", "_count")) and name not in shown]
    assert not missing


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    documented = (ROOT / "docs/monitoring.md").read_text()
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert {"summary", "description"} <= set(rule["annotations"])
            assert f"| `{rule['alert']}` |" in documented
