"""The shipped manifests as kustomize renders them, read for tests."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from devcluster.binaries import find_or_build

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Object = dict[str, Any]

PROJECT = Path(__file__).resolve().parents[2]
OVERLAYS = tuple(sorted(path.name for path in (PROJECT / "deploy/kustomize/overlays").iterdir()))
EXAMPLES = "examples"
NAMESPACE = "at-least-semaphore-pod-hook"
EXAMPLES_NAMESPACE = "at-least-semaphore-pod-examples"
PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"


def path_of(name: str) -> Path:
    """Return the directory of an overlay, or of the examples."""
    return PROJECT / "deploy" / (EXAMPLES if name == EXAMPLES else f"kustomize/overlays/{name}")


@functools.cache
def render(name: str) -> str:
    """Render an overlay or the examples as a user would."""
    kubectl = find_or_build(["kubectl"])["kubectl"]
    done = subprocess.run([kubectl, "kustomize", path_of(name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return done.stdout


def objects(name: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(render(name)) if found]


def named(name: str, kind: str, object_name: str) -> Object:
    (found,) = (o for o in objects(name) if o["kind"] == kind and o["metadata"]["name"] == object_name)
    return found


def webhook_container(name: str) -> Object:
    (found,) = named(name, "Deployment", NAMESPACE)["spec"]["template"]["spec"]["containers"]
    container: Object = found
    return container


def pod_templates(found: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """Yield each workload's name and the template that its pods are made of."""
    for each in found:
        spec = each.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield f"{each['kind']} {each['metadata']['name']}", template


def flags(args: Iterable[str]) -> dict[str, str]:
    """Split `--name=value` arguments; a flag that stands alone has an empty value."""
    return {name: value for name, _, value in (arg.partition("=") for arg in args) if name.startswith("--")}
