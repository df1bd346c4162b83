"""What the tests on real nodes share: the cluster, the product on it, a scene a test, and the table of cases."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.node import isolation
from devcluster.node.cluster import NodeCluster
from devcluster.node.product import Product, kustomized
from tests.cluster.e2e import Namespace, Semaphore, eventually
from tests.node.workloads import Journal, Object, opting_in, template, workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROWS = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture(scope="session")
def cluster() -> Iterator[NodeCluster]:
    room = isolation.room()
    if room is None:
        pytest.skip("THE PRODUCT IS NOT TESTED ON REAL NODES: run these tests with make test-node")
    with NodeCluster(room, room / "images") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def product(cluster: NodeCluster, request: pytest.FixtureRequest) -> Product:
    started = time.monotonic()
    product = Product(cluster, kustomized(cluster.plane.binaries["kubectl"]), cluster.nodes[0].name)
    product.install()
    request.config.stash.setdefault(_ROWS, []).append(
        ("the manifests applied, until every replica is available", f"{time.monotonic() - started:.1f} s")
    )
    return product


@dataclass
class StoreAddress:
    address: str


@dataclass(kw_only=True)
class Stage:
    """A namespace on real nodes, and what a test does in it."""

    cluster: NodeCluster
    namespace: Namespace
    journals: Path
    record: Callable[[str, str], None]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def journal(self) -> Journal:
        """Return a journal, whose name is a semaphore's key and a label as well."""
        return Journal(self.journals, f"{self.namespace.name}-{next(self._numbers)}")

    def template(self, journal: Journal, length: int = 1, **options: Any) -> Object:
        """Return a pod's template for the semaphore of a journal; `annotated` has further annotations of ours."""
        annotated = opting_in(journal.name, length, **options.pop("annotated", {}))
        return template(journal, self.journals, annotated, **options)

    def create(self, kind: str, name: str, made: Object, **spec: object) -> None:
        """Create a workload of a template."""
        self.namespace.apply(workload(kind, name, made, **spec))

    def create_pod(self, name: str, made: Object) -> None:
        """Create a bare pod of a template."""
        metadata = made["metadata"] | {"name": name}
        self.namespace.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made["spec"]})

    def beating(self, journal: Journal) -> list[str]:
        """Return the pods whose main containers run at this moment, as they write it themselves."""
        now = time.monotonic()
        return [one.pod for one in journal.stretches() if now - one.end < 0.5]

    def runs(self, journal: Journal, wanted: int, timeout: float = 30.0) -> list[str]:
        """Wait until as many main containers run, and return their pods."""
        eventually(lambda: len(self.beating(journal)) == wanted, f"{wanted} of {journal.name} run", timeout)
        return self.beating(journal)

    def gated(self) -> list[str]:
        """Return the pods that wait behind a gate."""
        return [each["metadata"]["name"] for each in self.namespace.pods() if each["spec"].get("schedulingGates")]

    def status(self, pod: str, container: str) -> Object:
        """Return a container's status."""
        found = self.namespace.get(pod)["status"]
        every = [*found.get("initContainerStatuses", ()), *found.get("containerStatuses", ())]
        return next((each for each in every if each["name"] == container), {})


@dataclass(kw_only=True)
class Scene(Stage):
    """The same beside a product whose store anybody may read."""

    product: Product

    def semaphore(self, journal: Journal) -> Semaphore:
        """Return a journal's semaphore, as it lies in the store."""
        address = f"{self.product.store()['status']['podIP']}:6379"
        return Semaphore(StoreAddress(address), self.namespace.name, journal.name)


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def journals(cluster: NodeCluster) -> Path:
    directory = cluster.directory / "journals"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


@pytest.fixture(scope="session")
def cron(cluster: NodeCluster, product: Product, journals: Path) -> Journal:
    """A CronJob in a namespace of its journal's name, whose minute passes while other tests run."""
    name, plane = "node-cron", cluster.plane
    journal = Journal(journals, name)
    plane.create_namespace(name)
    made = template(journal, journals, opting_in(name, 1), run=2, restartPolicy="Never")
    job = workload("Job", name, made, completions=2, parallelism=2)
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": job["spec"]}}
    document = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}
    Namespace(plane, name).apply(document)
    return journal


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Write a row of the table that is printed in the end: a case, and what was seen."""
    rows = request.config.stash.setdefault(_ROWS, [])
    return lambda case, seen: rows.append((case, seen))


@pytest.fixture
def namespace(cluster: NodeCluster) -> Iterator[Namespace]:
    name = f"node-{next(_numbers)}"
    cluster.plane.create_namespace(name)
    yield Namespace(cluster.plane, name)
    cluster.plane.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def stage(cluster: NodeCluster, namespace: Namespace, journals: Path, record: Callable[[str, str], None]) -> Stage:
    return Stage(cluster=cluster, namespace=namespace, journals=journals, record=record)


@pytest.fixture
def scene(stage: Stage, product: Product) -> Scene:
    return Scene(
        cluster=stage.cluster, namespace=stage.namespace, journals=stage.journals, record=stage.record, product=product
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("on real nodes")
        terminalreporter.write_line("| Case | Seen |\n| --- | --- |")
        for case, seen in rows:
            terminalreporter.write_line(f"| {case} | {seen} |")
