"""The recipes hold: their pods pass the product's admission, and their values the chart's schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from at_least_semaphore_pod_hook.addresses import REDIS_PORT, REDIS_SCHEMES, parse_address, parse_store_url
from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.admission.handler import Decision
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from tests.unit.fakes import PREFIX
from tests.unit.webhook import Webhook, apply, sidecars

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/at-least-semaphore-pod-hook"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PAGES = sorted((ROOT / "docs/recipes").glob("*.md"))
VALUES = "# values.yaml\n"
TEMPLATES = {
    "Pod": (),
    "Job": ("spec", "template"),
    "Deployment": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
OF_OTHERS = {"Application", "GitRepository", "HelmRelease"}


def fences(text: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a page, without the chart's values."""
    blocks = [block for block in fences(text) if not block.startswith(VALUES)]
    return [each for block in blocks for each in yaml.safe_load_all(block)]


def values(text: str) -> list[dict[str, Any]]:
    """Return the chart's values of a page, also those that stand in another's object."""
    found = [yaml.safe_load(block) for block in fences(text) if block.startswith(VALUES)]
    for each in objects(text):
        if each["kind"] == "Application":
            found.append(each["spec"]["source"]["helm"]["valuesObject"])
        if each["kind"] == "HelmRelease":
            found.append(each["spec"]["values"])
    return found


def pods() -> list[tuple[str, str, dict[str, Any]]]:
    """Return a pod of each workload, with a name for it and its namespace."""
    found = []
    for page in PAGES:
        for each in objects(page.read_text()):
            if each["kind"] in OF_OTHERS:
                continue
            pod = each
            for step in TEMPLATES[each["kind"]]:
                pod = pod[step]
            metadata = dict(pod["metadata"])
            metadata |= {"name": each["metadata"]["name"], "namespace": each["metadata"]["namespace"]}
            found.append((f"{page.stem}-{metadata['name']}", metadata["namespace"], pod | {"metadata": metadata}))
    return found


PODS = pods()


def test_every_recipe_has_something_to_copy() -> None:
    assert len(PODS) >= 7
    bare = [page.name for page in PAGES if page.stem != "index" and not fences(page.read_text())]
    assert not bare


@pytest.mark.parametrize(("namespace", "pod"), [each[1:] for each in PODS], ids=[each[0] for each in PODS])
async def test_a_recipes_pod_passes_admission(namespace: str, pod: dict[str, Any]) -> None:
    webhook = Webhook(native=True)
    response = await webhook.ask(pod, namespace=namespace)
    assert (response["decision"], response.get("warnings")) == (Decision.PATCHED, None)
    admitted = apply(pod, response)
    ((_, sidecar),) = sidecars(admitted)
    given = pod["metadata"]["annotations"]
    key = SemaphoreKey(namespace, given[PREFIX + pod_annotations.KEY])
    assert sidecar["args"][-2] == str(key)
    waits = given.get(PREFIX + pod_annotations.WHEN_FULL) == "gate"
    assert bool(admitted["spec"].get("schedulingGates")) is waits
    assert bool(await webhook.held(key)) is not waits


@pytest.mark.parametrize("pod", [each[2] for each in PODS], ids=[each[0] for each in PODS])
def test_a_recipes_annotations_are_ones_that_are_read(pod: dict[str, Any]) -> None:
    ours = {name.removeprefix(PREFIX) for name in pod["metadata"]["annotations"] if name.startswith(PREFIX)}
    assert ours <= {read.name for read in pod_annotations.READ}


def test_pods_of_a_key_agree_on_its_length() -> None:
    lengths: dict[tuple[str, str], set[str]] = {}
    for _, namespace, pod in PODS:
        given = pod["metadata"]["annotations"]
        key = (namespace, given[PREFIX + pod_annotations.KEY])
        lengths.setdefault(key, set()).add(given[PREFIX + pod_annotations.LENGTH])
    assert not [key for key, given in lengths.items() if len(given) > 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipes_values_are_accepted_by_the_chart(page: Path) -> None:
    for given in values(page.read_text()):
        jsonschema.validate(given, SCHEMA)
        external = given.get("store", {}).get("external", {})
        if url := external.get("queueUrl"):
            assert parse_store_url(url)
        for address in external.get("redisAddresses", []):
            assert parse_address(address, REDIS_SCHEMES, REDIS_PORT)
