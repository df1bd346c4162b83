"""What the cluster tests share: one control plane for them all, stores, webhooks and a namespace a test."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.podrunner import PodRunner
from devcluster.stores import EtcdServer, RedisServer
from devcluster.webhook import SHIPPED_ACCOUNT, WebhookProcess, register, shipped_rules
from tests.cluster.e2e import KINDS, Namespace, admissions, eventually, flags, opted_in, pod
from tests.cluster.gating import History, replica, serving
from tests.cluster.manifests import PROJECT
from tests.cluster.rights import AUDITED
from tests.cluster.watching import ACCOUNT, CLUSTER_RULES, NAMESPACE, OWN_RULES, token, write_kubeconfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAST = "test_rights"
"""The module that looks back at what all others have asked of the API server."""

POLICY = (PROJECT / "deploy/kustomize/base/admissionpolicy.yaml").read_text()
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [index for index, item in enumerate(items) if item.path.parent == here]
    # Stable: all others keep their order, and what is not ours its place.
    ordered = sorted((items[index] for index in ours), key=lambda item: item.path.stem == LAST)
    for index, item in zip(ours, ordered, strict=True):
        items[index] = item


@pytest.fixture(scope="session")
def audited() -> list[ControlPlane]:
    """All that note what our accounts ask; some are closed."""
    return []


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory, audited: list[ControlPlane]) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), audited=AUDITED) as control_plane:
        audited.append(control_plane)
        yield control_plane


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for tests that leave it alone; Redlock's single node, too."""
    with RedisServer(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="session")
def lock_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("lock-etcd"), fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def runner(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodRunner]:
    with PodRunner(control_plane.kubeconfig, tmp_path_factory.mktemp("pods")) as runner:
        yield runner


_numbers = itertools.count(1)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[Namespace]:
    name = f"e2e-{next(_numbers)}"
    control_plane.create_namespace(name)
    yield Namespace(control_plane, name)
    # A test may have deleted it itself.
    with suppress(DevClusterError):
        control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


class Registration:
    """Which webhook the API server asks, under the shipped admission policy.

    It is only one at a time, and registered anew only where it changes.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._present: object = None

    def use(self, webhook: WebhookProcess, **changes: Any) -> None:
        """Register a webhook, and return once the API server asks it."""
        wanted = (webhook.url, webhook.ca_bundle, sorted(changes.items()))
        if wanted == self._present:
            return
        if self._present is None:
            self._control_plane.kubectl("apply", "-f", "-", input=POLICY)
        register(self._control_plane, webhook, **changes)
        self._present = wanted
        default = Namespace(self._control_plane, "default")
        before = admissions(webhook)

        def asked() -> bool:
            default.try_create(pod("probe", opted_in("probe", "none")), dryRun="All")
            return admissions(webhook) > before

        eventually(asked, "the API server asks the webhook")

    def remove(self) -> None:
        """Leave no webhook registered."""
        if self._present is not None:
            self._present = None
            self._control_plane.request("DELETE", f"{CONFIGURATIONS}/at-least-semaphore-pod-hook")
            self._control_plane.kubectl("delete", "-f", "-", input=POLICY)


@pytest.fixture(scope="module")
def registration(control_plane: ControlPlane) -> Iterator[Registration]:
    registration = Registration(control_plane)
    yield registration
    registration.remove()


class SharedWebhooks:
    """Webhooks by kind on the shared store, each started when it is first wanted."""

    def __init__(self, store: RedisServer, etcd: EtcdServer, factory: pytest.TempPathFactory, stack: ExitStack) -> None:
        self._store = store
        self._etcd = etcd
        self._factory = factory
        self._stack = stack
        self._started: dict[tuple[str, int], WebhookProcess] = {}

    def __call__(self, kind: str, replica: int = 1) -> WebhookProcess:
        """Return a running webhook."""
        if (kind, replica) not in self._started:
            lock_mode, sidecar = KINDS[kind]
            given = (*flags(lock_mode, self._store, self._etcd if lock_mode == "etcd" else self._store), *sidecar)
            process = WebhookProcess(self._factory.mktemp(kind), flags=given)
            self._started[kind, replica] = self._stack.enter_context(process)
        return self._started[kind, replica]


@pytest.fixture(scope="session")
def shared_webhooks(
    store: RedisServer, lock_etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedWebhooks]:
    with ExitStack() as stack:
        yield SharedWebhooks(store, lock_etcd, tmp_path_factory, stack)


@pytest.fixture(params=list(KINDS))
def webhook(
    request: pytest.FixtureRequest,
    shared_webhooks: SharedWebhooks,
    registration: Registration,
) -> WebhookProcess:
    """A registered webhook: once with Redlock and ordinary sidecars, once with etcd and native ones."""
    webhook = shared_webhooks(request.param)
    registration.use(webhook)
    return webhook


@pytest.fixture
def new_webhook(tmp_path: Path) -> Iterator[Callable[..., WebhookProcess]]:
    """Start a webhook of the test's own."""
    with ExitStack() as stack:
        numbers = itertools.count(1)

        def start(*given: str, **env: str) -> WebhookProcess:
            process = WebhookProcess(tmp_path / f"webhook-{next(numbers)}", flags=given, env=env)
            return stack.enter_context(process)

        yield start


@pytest.fixture(scope="module")
def account(control_plane: ControlPlane) -> Iterator[Path]:
    """The kubeconfig of a service account that may do what the manifests let it, and no more."""
    control_plane.kubectl("apply", "-f", "-", input=shipped_rules())
    yield control_plane.user_kubeconfig(f"system:serviceaccount:default:{SHIPPED_ACCOUNT}")
    control_plane.kubectl("delete", "-f", "-", input=shipped_rules())


@pytest.fixture(scope="module")
def reviewing_account(account: Path, control_plane: ControlPlane) -> Iterator[Path]:
    """The same, with what the manifests add where sidecars renew at the webhook."""
    control_plane.kubectl("apply", "-f", "-", input=shipped_rules("sidecar-api"))
    yield account
    control_plane.kubectl("delete", "-f", "-", input=shipped_rules("sidecar-api"))


@pytest.fixture(scope="module")
def controller(account: Path, store: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookProcess]:
    """A webhook that lets pods wait, with the rights that the manifests give it."""
    with serving(replica(tmp_path_factory.mktemp("controller"), store, account)) as webhook:
        yield webhook


@pytest.fixture
def registered(controller: WebhookProcess, registration: Registration) -> None:
    registration.use(controller)


@pytest.fixture
def history(namespace: Namespace) -> Iterator[History]:
    with History(namespace) as history:
        yield history


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, audited: list[ControlPlane]) -> Iterator[ControlPlane]:
    """A control plane of one module's own, to be restarted; with a service account that has the controller's rights."""
    with ControlPlane(tmp_path_factory.mktemp("watch"), audited=AUDITED) as started:
        audited.append(started)
        started.create_namespace(NAMESPACE)
        started.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
        group, account = "rbac.authorization.k8s.io", f"--serviceaccount={NAMESPACE}:{ACCOUNT}"
        roles = [
            {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "c"}, "rules": CLUSTER_RULES},
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "c"}, "rules": OWN_RULES},
        ]
        for role in roles:
            started.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(role))
        started.kubectl("create", "clusterrolebinding", "c", "--clusterrole=c", account)
        started.kubectl("create", "rolebinding", "c", "--role=c", account, "-n", NAMESPACE)
        yield started


@pytest.fixture(scope="module")
def kubeconfig(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig like what a pod has: a token in a file, and a certificate authority."""
    directory = tmp_path_factory.mktemp("account")
    (directory / "token").write_text(token(plane))
    return write_kubeconfig(directory / "kubeconfig", plane, plane.url, directory / "token")
