"""Rotations of the webhook's own certificate and authority while pods are created without pause, over two replicas.

Every admission counts, and so does every TLS handshake by a client that trusts what the API server is told to trust.
Exits 1 where one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import yaml

from at_least_semaphore_pod_hook.connector import Connector
from devcluster.controlplane import ControlPlane
from devcluster.service import abort, front
from devcluster.stores import RedisServer
from devcluster.webhook import SHIPPED_ACCOUNT, WebhookProcess, configuration, shipped_rules

PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"
COMPONENT = "self-managed-certificates"
SECRET = "at-least-semaphore-pod-hook-certificate"  # noqa: S105 - a name
SECRET_PATH = f"/api/v1/namespaces/default/secrets/{SECRET}"
CONFIGURATION_PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/at-least-semaphore-pod-hook"
MERGE = "application/merge-patch+json"
CLIENTS = 4
PATIENCE_SECONDS = 60.0
HANDSHAKE_PAUSE_SECONDS = 0.02


class Report(NamedTuple):
    """What became of it all."""

    rotations: int
    seconds: float
    admissions: int
    handshakes: int
    failures: list[str]


class Scene:
    """Two replicas that share a Secret, behind one port, registered at an API server; a context manager.

    With `api`, sidecars renew at the replica that injected them.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        store: RedisServer,
        directory: Path,
        settle_seconds: float,
        *,
        api: bool = False,
    ) -> None:
        self.control_plane = control_plane
        for rules in map(shipped_rules, ("", COMPONENT, *(("sidecar-api",) if api else ()))):
            control_plane.kubectl("apply", "-f", "-", input=rules)
        kubeconfig = control_plane.user_kubeconfig(f"system:serviceaccount:default:{SHIPPED_ACCOUNT}")
        flags = [
            f"--queue-redis-address={store.address}",
            f"--redis-addresses={store.address}",
            f"--kubeconfig={kubeconfig}",
            f"--certificate-secret={SECRET}",
            "--service-name=localhost",
            f"--certificate-settle-seconds={settle_seconds}",
        ]
        self.replicas = [WebhookProcess(directory / f"replica-{number}", flags=flags, api=api) for number in (1, 2)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for replica in self.replicas:
            self._stack.callback(replica.process.terminate)
            replica.process.start()  # both at once: they meet at the Secret
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.control_plane.kubectl("delete", "secret", SECRET, "--ignore-not-found")
        self.control_plane.request("DELETE", CONFIGURATION_PATH)

    def register(self, port: int) -> None:
        """Have the API server ask the replicas, by this port, trusting nobody yet."""
        text = yaml.safe_dump(configuration(f"https://localhost:{port}/mutate", b""))
        self.control_plane.kubectl("apply", "-f", "-", input=text)

    def wait_ready(self) -> None:
        """Return once the API server trusts both."""
        for replica in self.replicas:
            replica.process.wait_until(replica.ready, PATIENCE_SECONDS)

    def secret(self) -> dict[str, bytes]:
        """Return what is in the Secret."""
        found = self.control_plane.request("GET", SECRET_PATH).get("data", {})
        return {name: base64.b64decode(value) for name, value in found.items()}

    def bundle(self) -> bytes:
        """Return what the API server is told to trust."""
        (webhook,) = self.control_plane.request("GET", CONFIGURATION_PATH)["webhooks"]
        return base64.b64decode(webhook["clientConfig"].get("caBundle") or "")

    def ask(self) -> None:
        """Ask for a rotation, as an operator does."""
        body = {"metadata": {"annotations": {f"{PREFIX}rotate": "now"}}}
        self.control_plane.request("PATCH", SECRET_PATH, body, MERGE)

    def settled(self, before: bytes) -> bool:
        """Whether another certificate than `before` is in place, and its authority the only one that is trusted."""
        data = self.secret()
        if data.get("tls.crt", before) == before or "next-tls.crt" in data:
            return False
        return data["ca.crt"].count(b"BEGIN") == 1 and self.bundle() == data["ca.crt"]


class Load:
    """Pods created as dry runs, and handshakes, until told to stop; `failures` says what went wrong."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._numbers = itertools.count()
        self._ending = False
        self.admissions = 0
        self.handshakes = 0
        self.failures: list[str] = []

    @contextlib.asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Keep on as long as the body runs."""
        trusted = ssl.create_default_context(cafile=self._scene.control_plane.ca_file)
        headers = {"Authorization": f"Bearer {self._scene.control_plane.token}"}
        async with aiohttp.ClientSession(connector=Connector(ssl=trusted), headers=headers) as session:
            clients = [asyncio.create_task(self._create(session)) for _ in range(CLIENTS)]
            others = [asyncio.create_task(self._shake_hands(replica.port)) for replica in self._scene.replicas]
            try:
                yield
            finally:
                self._ending = True
                for client in clients:
                    client.cancel()
                ended = await asyncio.gather(*clients, *others, return_exceptions=True)
                self.failures += [
                    repr(each) for each in ended if each is not None and not isinstance(each, asyncio.CancelledError)
                ]

    async def _create(self, session: aiohttp.ClientSession) -> None:
        url = f"{self._scene.control_plane.url}/api/v1/namespaces/default/pods?dryRun=All"
        values = {"at-least-semaphore-pod": "true", "key": "rotation", "length": "1000", "expiration": "60"}
        annotations = {PREFIX + name: value for name, value in values.items()}
        while True:
            metadata = {"name": f"rotation-{next(self._numbers)}", "annotations": annotations}
            pod: dict[str, Any] = {"metadata": metadata, "spec": {"containers": [{"name": "main", "image": "none"}]}}
            async with session.post(url, json=pod) as answer:
                text = await answer.text()
                if answer.status != 201 or PREFIX not in text:
                    self.failures.append(f"{answer.status}: {text[:300]}")
                self.admissions += 1

    async def _shake_hands(self, port: int) -> None:
        """Connect anew over and over, as an API server that has just started does."""
        while not self._ending:
            bundle = await asyncio.to_thread(self._scene.bundle)
            context = ssl.create_default_context(cadata=bundle.decode())
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            except OSError as error:
                self.failures.append(f"handshake with {port}: {error}")
            else:
                await abort(writer)
            self.handshakes += 1
            await asyncio.sleep(HANDSHAKE_PAUSE_SECONDS)


async def rotate(scene: Scene, count: int) -> Report:
    """Rotate so many times, each one to its end, under load."""
    load = Load(scene)
    async with front(lambda: [replica.port for replica in scene.replicas]) as port:
        await asyncio.to_thread(scene.register, port)
        await asyncio.to_thread(scene.wait_ready)
        began = time.monotonic()
        async with load.under_way():
            for _ in range(count):
                before = (await asyncio.to_thread(scene.secret))["tls.crt"]
                await asyncio.to_thread(scene.ask)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not await asyncio.to_thread(scene.settled, before):  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
    return Report(count, seconds, load.admissions, load.handshakes, load.failures)


def main() -> int:
    """Rotate, report, and say whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rotations", type=int, default=100)
    parser.add_argument("--settle-seconds", type=float, default=0.3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        directory = Path(scratch)
        control_plane = stack.enter_context(ControlPlane(directory / "control-plane"))
        store = stack.enter_context(RedisServer(directory / "store"))
        scene = stack.enter_context(Scene(control_plane, store, directory, given.settle_seconds))
        report = asyncio.run(rotate(scene, given.rotations))
    print(
        f"{report.rotations} rotations in {report.seconds:.0f} s: {report.admissions} admissions, "
        f"{report.handshakes} handshakes, {len(report.failures)} failures"
    )
    for failure in report.failures[:10]:
        print(failure)
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
