"""A rolling update of the webhook, as the Deployment of the manifests does it, while pods are created without pause."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml

from at_least_semaphore_pod_hook.connector import Connector
from devcluster.service import front
from devcluster.webhook import ROOT, WebhookProcess, configuration
from tests.cluster.e2e import Namespace, Semaphore, flags, metric, opted_in, pod, review

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

KEY = "upgrade"
LENGTH = 100_000
CLIENTS = 4
PAUSE_SECONDS = 0.03
"""Between two pods of a client: there are to be enough of them, and not more than the machine can keep."""
LAG_SECONDS = 1.0
"""How long it takes until nodes hear that a pod is no endpoint any more."""
READY_SECONDS = 20.0
BOUND_SECONDS = 30.0


def deployment() -> dict[str, Any]:
    (document,) = yaml.safe_load_all((ROOT / "deploy/kustomize/base/deployment.yaml").read_text())
    spec: dict[str, Any] = document["spec"]
    return spec


class Load:
    """Pods created at the API server, and reviews over connections of their own, as by one that has just started."""

    def __init__(self, namespace: Namespace, port: int, context: ssl.SSLContext) -> None:
        self._namespace = namespace
        self._port = port
        self._context = context
        self._numbers = itertools.count()
        self._ending = False
        self.created = 0
        self.reviewed = 0
        self.failures: list[str] = []

    @contextlib.asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Keep on as long as the body runs; what is under way then is waited for."""
        plane = self._namespace.control_plane
        headers = {"Authorization": f"Bearer {plane.token}"}
        connector = Connector(ssl=ssl.create_default_context(cafile=plane.ca_file))
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            tasks = [asyncio.create_task(self._create(session)) for _ in range(CLIENTS)]
            tasks.append(asyncio.create_task(self._review()))
            try:
                yield
            finally:
                self._ending = True
                await asyncio.gather(*tasks)

    async def _create(self, session: aiohttp.ClientSession) -> None:
        url = f"{self._namespace.control_plane.url}{self._namespace.path}"
        while not self._ending:
            made = pod(f"pod-{next(self._numbers)}", opted_in(KEY, LENGTH, 600))
            async with session.post(url, json=made) as answer:
                text = await answer.text()
                if answer.status == 201:
                    self.created += 1
                else:
                    self.failures.append(f"{answer.status}: {text[:300]}")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _review(self) -> None:
        url = f"https://127.0.0.1:{self._port}/mutate?timeout=10s"
        headers = {"Content-Type": "application/json"}
        while not self._ending:
            body = review(pod("probe", opted_in(KEY, LENGTH)), self._namespace.name, dry_run=True)
            try:
                async with (
                    aiohttp.ClientSession(connector=Connector(ssl=self._context)) as session,
                    session.post(url, data=body, headers=headers) as answer,
                ):
                    if not (await answer.json())["response"]["allowed"]:
                        self.failures.append(await answer.text())
            except (aiohttp.ClientError, OSError) as error:
                self.failures.append(f"review: {error!r}")
            self.reviewed += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def update(old: list[WebhookProcess], new: list[WebhookProcess], ready: list[int]) -> None:
    """Replace one after the other: a new one is ready before an old one goes (maxUnavailable 0, maxSurge 1)."""
    spec = deployment()
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (container,) = spec["template"]["spec"]["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = spec["template"]["spec"]["terminationGracePeriodSeconds"] - pause
    for leaving, coming in zip(old, new, strict=True):
        await asyncio.to_thread(coming.start)
        ready.append(coming.port)
        # From here on it is being deleted: the pause begins, and endpoints follow a little later.
        await asyncio.sleep(LAG_SECONDS)
        ready.remove(leaving.port)
        await asyncio.sleep(pause - LAG_SECONDS)
        await asyncio.to_thread(leaving.process.terminate, grace)


def test_a_rolling_update_loses_no_admission(
    control_plane: ControlPlane, namespace: Namespace, store: RedisServer, registration: Registration, tmp_path: Path
) -> None:
    given = flags("redlock", store, store)
    replicas = [WebhookProcess(tmp_path / f"replica-{number}", flags=given) for number in range(4)]
    # All serve the same certificate, as from one Secret.
    first = replicas[0]
    for other in replicas[1:]:
        for name in ("tls.crt", "tls.key"):
            (other.certificates / name).write_bytes((first.certificates / name).read_bytes())
    old, new = replicas[:2], replicas[2:]
    registration.remove()

    async def scene() -> Load:
        ready = [each.port for each in old]
        async with front(lambda: ready) as port:
            registered = configuration(f"https://127.0.0.1:{port}/mutate", first.ca_bundle)
            text = yaml.safe_dump(registered)
            await asyncio.to_thread(control_plane.kubectl, "apply", "--server-side", "-f", "-", input=text)
            load = Load(namespace, port, first.client_context())
            await asked(namespace, old)
            async with asyncio.timeout(BOUND_SECONDS), load.under_way():
                await update(old, new, ready)
            return load

    with contextlib.ExitStack() as stack:
        for each in replicas:
            stack.callback(each.process.terminate)
        for each in old:
            each.start()
        stack.callback(control_plane.kubectl, "delete", "mutatingwebhookconfiguration", "at-least-semaphore-pod-hook")
        load = asyncio.run(scene())
        assert not load.failures
        assert load.created > 100
        assert load.reviewed > 50
        # Each pod that was created holds one permit, and nobody else does.
        assert Semaphore(store, namespace.name, KEY).held == load.created
        assert [each.process.exit_code for each in old] == [0, 0]
        assert all("webhook stopped" in each.log() for each in old)
        assert all(metric(each, "admissions_total") > 0 for each in new)
        assert not any('"level":"error"' in each.log() for each in replicas)


async def asked(namespace: Namespace, webhooks: list[WebhookProcess]) -> None:
    """Return once the API server asks the webhooks."""

    def admitted() -> bool:
        namespace.try_create(pod("probe", opted_in("probe", 1)), dryRun="All")
        return any(metric(each, "admissions_total") for each in webhooks)

    async with asyncio.timeout(READY_SECONDS):
        while not await asyncio.to_thread(admitted):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
