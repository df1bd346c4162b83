"""skaffold.yaml, held against Skaffold's published schema and against the files that it names.

Skaffold itself is no package of any registry that this project builds from; the schema comes with its Go module.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from devcluster.binaries import module_dir
from tests.cluster.manifests import PROJECT, Object, named, objects, path_of, webhook_container

# Named, as its list of versions can't be had everywhere; the newest schema of this version is the one we name.
SKAFFOLD = ("github.com/GoogleContainerTools/skaffold/v2", "v2.16.1")

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def config() -> Object:
    loaded: Object = yaml.safe_load((PROJECT / "skaffold.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def validator(config: Object) -> jsonschema.Draft7Validator:
    version = config["apiVersion"].removeprefix("skaffold/")
    schema = module_dir(*SKAFFOLD) / "docs-v2/content/en/schemas" / f"{version}.json"
    return jsonschema.Draft7Validator(json.loads(schema.read_text()))


def test_it_follows_the_schema(config: Object, validator: jsonschema.Draft7Validator) -> None:
    validator.validate(config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bild": {}},
        {"build": {"artifacts": [{"image": "a", "docker": {"dockerFile": "Dockerfile"}}]}},
        {"portForward": [{"resourceType": "service", "localPort": "8080"}]},
    ],
)
def test_the_schema_refuses_what_is_wrong(config: Object, validator: jsonschema.Draft7Validator, wrong: Object) -> None:
    assert not validator.is_valid(config | wrong)


def test_it_builds_a_target_that_is_there(config: Object) -> None:
    (artifact,) = config["build"]["artifacts"]
    dockerfile = (PROJECT / artifact["docker"]["dockerfile"]).read_text()
    assert re.search(rf"^FROM \S+ AS {artifact['docker']['target']}$", dockerfile, re.MULTILINE)
    # Its name is how Skaffold knows which images of the manifests are the one that it built.
    assert webhook_container("dev")["image"] == artifact["image"]


def test_sidecars_run_what_was_built(config: Object) -> None:
    (artifact,) = config["build"]["artifacts"]
    sidecar = named("dev", "ConfigMap", "at-least-semaphore-pod-sidecar")
    assert sidecar["data"] == {"image": artifact["image"]}
    assert {"groupKind": "ConfigMap", "image": [".data.image"]} in config["resourceSelector"]["allow"]


def test_saved_sources_are_synced_to_where_they_are_run_from(config: Object) -> None:
    (artifact,) = config["build"]["artifacts"]
    rules = artifact["sync"]["manual"]
    synced = {path for rule in rules for path in PROJECT.glob(rule["src"])}
    package = PROJECT / "src/at_least_semaphore_pod_hook"
    sources = {path for path in package.rglob("*") if path.is_file() and path.suffix in {".py", ".lua"}}
    assert synced == sources
    for rule in rules:
        assert rule["dest"] == "/src"
        assert all(str(path.relative_to(PROJECT)).startswith(rule["strip"]) for path in synced)
    dockerfile = (PROJECT / artifact["docker"]["dockerfile"]).read_text()
    assert "COPY --chown=65532:65532 src /src" in dockerfile
    assert "PYTHONPATH=/src" in dockerfile
    container = webhook_container("dev")
    assert container["securityContext"]["readOnlyRootFilesystem"] is False
    assert container["command"][:2] == ["sh", "-c"]
    assert "watchfiles" in container["command"][2]


def test_it_deploys_the_dev_overlay_and_the_examples(config: Object) -> None:
    paths = {PROJECT / path for path in config["manifests"]["kustomize"]["paths"]}
    assert paths == {path_of("dev"), path_of("examples")}


def test_it_forwards_ports_that_are_there(config: Object) -> None:
    services = {each["metadata"]["name"]: each for each in objects("dev") if each["kind"] == "Service"}
    assert len(config["portForward"]) == 3
    for forward in config["portForward"]:
        service = services[forward["resourceName"]]
        assert forward["resourceType"] == "service"
        assert forward["namespace"] == service["metadata"]["namespace"]
        assert forward["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_the_image_is_given_what_its_dockerfile_copies() -> None:
    # .dockerignore lets nothing through but what is named.
    allowed = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    dockerfile = (PROJECT / "deploy/Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", dockerfile, re.MULTILINE):
        for source in line.split():
            assert (PROJECT / source).exists()
            assert any(Path(source).match(pattern) for pattern in allowed), source
