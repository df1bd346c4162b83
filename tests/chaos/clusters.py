"""The API server of a run: a stand-in of its own, or a namespace of a real one that many runs share."""

from __future__ import annotations

import itertools
import random
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import yaml

from devcluster.controlplane import ControlPlane
from devcluster.polling import until
from devcluster.webhook import WebhookProcess, configuration
from tests.chaos.load import Api
from tests.chaos.proxy import Link, Loop
from tests.chaos.standin import ADMIN, CONTROLLER, Admission, StandIn, write_kubeconfig

_ADMISSION_SECONDS = 3
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


def admission(webhook: WebhookProcess) -> Admission:
    """Return how a webhook is asked."""
    return Admission(webhook.url, webhook.client_context())


class Cluster(Protocol):
    """An API server as a run sees it; `standin` is set where it can be told to misbehave."""

    port: int
    namespace: str
    api: Api
    admin: Path
    standin: StandIn | None

    def kubeconfig(self, path: Path, port: int) -> Path:
        """Write a kubeconfig for a controller that comes by a port of its own."""

    def register(self, webhooks: Sequence[WebhookProcess]) -> None:
        """Have every pod's creation ask one of these."""

    def close(self) -> None:
        """Leave nothing behind."""


class StandInCluster:
    """A stand-in that lives as long as the run."""

    def __init__(self, loop: Loop, directory: Path, rng: random.Random) -> None:
        self._loop = loop
        self.standin: StandIn | None = StandIn(rng)
        self._served = self.standin
        loop.run(self._served.start())
        self.port = self._served.port
        self.namespace = "chaos"
        self.admin = write_kubeconfig(directory / "admin.kubeconfig", self.port, ADMIN)
        self.api = Api(f"http://127.0.0.1:{self.port}", self.namespace)

    def kubeconfig(self, path: Path, port: int) -> Path:
        return write_kubeconfig(path, port, CONTROLLER)

    def register(self, webhooks: Sequence[WebhookProcess]) -> None:
        self._served.admissions = [admission(webhook) for webhook in webhooks]

    def close(self) -> None:
        self._loop.run(self._served.close())


class RealCluster:
    """A namespace of a control plane."""

    standin: StandIn | None = None
    _numbers = itertools.count(1)

    def __init__(self, loop: Loop, plane: ControlPlane) -> None:
        self._loop = loop
        self._plane = plane
        self._service: Link | None = None
        self.port = plane.port
        self.namespace = f"chaos-{next(self._numbers)}"
        self.admin = plane.kubeconfig
        self._pods = f"/api/v1/namespaces/{self.namespace}/pods"
        plane.create_namespace(self.namespace)
        trusted = ssl.create_default_context(cafile=plane.ca_file)
        self.api = Api(plane.url, self.namespace, {"Authorization": f"Bearer {plane.token}"}, trusted)

    def kubeconfig(self, path: Path, port: int) -> Path:
        path.touch(mode=0o600)
        path.write_text(self._plane.kubeconfig.read_text().replace(self._plane.url, f"https://127.0.0.1:{port}"))
        return path

    def register(self, webhooks: Sequence[WebhookProcess]) -> None:
        # As a Service does it: one address, behind which whoever takes the connection answers.
        self._service = Link(self._loop, [webhook.port for webhook in webhooks])
        trusted = b"".join(webhook.ca_bundle for webhook in webhooks)
        url = f"https://{self._service.address}/mutate"
        document = configuration(url, trusted, timeoutSeconds=_ADMISSION_SECONDS)
        text = yaml.safe_dump(document)
        self._plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
        until(self._asks, "the API server asks the webhook")

    def _asks(self) -> bool:
        probe: dict[str, Any] = {
            "metadata": {"name": "probe", "annotations": {"at-least-semaphore-pod-hook.kaidotio.github.io/key": "p"}},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        }
        probe["metadata"]["annotations"]["at-least-semaphore-pod-hook.kaidotio.github.io/at-least-semaphore-pod"] = "?"
        status, _ = self._plane._exchange("POST", f"{self._pods}?dryRun=All", probe, "application/json")
        return status == 400  # it is the webhook that does not accept the annotation

    def close(self) -> None:
        self._plane.kubectl("delete", "mutatingwebhookconfiguration", "at-least-semaphore-pod-hook", "--wait=false")
        self._plane.request("DELETE", f"{self._pods}?gracePeriodSeconds=0")
        self._plane.request("DELETE", _LEASES)
        until(lambda: not self._plane.request("GET", self._pods)["items"], "the run's pods are gone")
        if self._service is not None:
            self._service.close()


class Ground:
    """What many runs share: a loop, and a control plane that is started when it is first wanted; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._plane: ControlPlane | None = None
        self.loop = Loop()

    @property
    def plane(self) -> ControlPlane:
        """The control plane."""
        if self._plane is None:
            plane = ControlPlane(self._directory / "plane")
            plane.start()
            self._plane = plane
        return self._plane

    def __enter__(self) -> Self:
        self.loop.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._plane is not None:
            self._plane.close()
        self.loop.__exit__(*error)
