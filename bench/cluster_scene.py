"""Where a case takes place: one control plane for all, and for each a store, a webhook with controller, a watch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from admissions import PYTHON
from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey, SemaphoreState
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore, open_redis_store
from cluster_client import Client, opted_in, pod
from cluster_watch import Watcher
from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.podrunner import PodRunner
from devcluster.polling import until
from devcluster.stores import RedisServer
from devcluster.webhook import SHIPPED_ACCOUNT, WebhookProcess, register, shipped_rules

USER = f"system:serviceaccount:default:{SHIPPED_ACCOUNT}"
WATCHED = "pods watched"
REAL = (*PYTHON, "-m", "at_least_semaphore_pod_hook")
# Starts in a millisecond where the real one takes a tenth of a second of a core; neither renews nor releases.
STUB = ("/bin/sh", "-c", "exec sleep 3600")
_TICKS = os.sysconf("SC_CLK_TCK")

Sidecars = Literal["real", "stub", "none"]


def cpu_seconds(pid: int) -> float:
    """Return what a process has used of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Ledger:
    """The semaphores of a store, read from outside; a context manager."""

    def __init__(self, store: RedisServer) -> None:
        self._store = store
        self._loop = asyncio.Runner()
        self._redis: RedisStore | None = None

    def state(self, namespace: str, key: str) -> SemaphoreState:
        """Return what the store has of a semaphore."""
        return self._loop.run(self._state(SemaphoreKey(namespace, key)))

    async def _state(self, key: SemaphoreKey) -> SemaphoreState:
        if self._redis is None:
            self._redis = open_redis_store(Address("127.0.0.1", self._store.port))
        return await self._redis.state(key)

    def held(self, namespace: str, key: str) -> set[str]:
        """Return the permits that are held."""
        return {holder.permit for holder in self.state(namespace, key).holders}

    def confirmed(self, namespace: str, key: str) -> set[str]:
        """Return the permits whose sidecar has renewed."""
        return {holder.permit for holder in self.state(namespace, key).holders if holder.confirmed}

    def close(self) -> None:
        """Close the connection."""
        if self._redis is not None:
            self._loop.run(self._redis.close())
        self._loop.close()


class Scene:
    """What a case has at hand; see `Stage.scene`."""

    def __init__(
        self,
        stage: Stage,
        namespace: str,
        store: RedisServer,
        webhook: WebhookProcess,
        watcher: Watcher,
        client: Client,
        ledger: Ledger,
        runner: PodRunner | None,
    ) -> None:
        self.stage = stage
        self.plane = stage.plane
        self.namespace = namespace
        self.store = store
        self.webhook = webhook
        self.watcher = watcher
        self.client = client
        self.ledger = ledger
        self._runner = runner

    @property
    def runner(self) -> PodRunner:
        """Who runs the pods; DevClusterError where nobody does."""
        if self._runner is None:
            raise DevClusterError("this scene has nobody who runs pods")
        return self._runner

    def held(self, key: str) -> set[str]:
        """Return the permits of a key that are held."""
        return self.ledger.held(self.namespace, key)

    def confirmed(self, key: str) -> set[str]:
        """Return the permits of a key whose sidecar has renewed."""
        return self.ledger.confirmed(self.namespace, key)


class Stage:
    """A running control plane in which webhooks may do what the manifests let them, and no more."""

    def __init__(self, scratch: Path, plane: ControlPlane, audit_log: Path) -> None:
        self.scratch = scratch
        self.plane = plane
        self._audit_log = audit_log
        self._kubeconfig = plane.account_kubeconfig(SHIPPED_ACCOUNT)
        self._numbers = itertools.count(1)
        plane.kubectl("apply", "-f", "-", input=shipped_rules())

    @classmethod
    @contextlib.contextmanager
    def open(cls, scratch: Path) -> Iterator[Stage]:
        """Start a control plane whose audit log has the controller's writes, and others' patches of pods.

        Those are not counted: they are what bare pods are compared by, and shall cost the API server the same.
        """
        directory = scratch / "control-plane"
        directory.mkdir(parents=True, exist_ok=True)
        policy, log = directory / "audit-policy.json", directory / "audit.log"
        writes = {"level": "Metadata", "users": [USER], "verbs": ["create", "update", "patch", "delete"]}
        patches = {"level": "Metadata", "resources": [{"group": "", "resources": ["pods"]}], "verbs": ["patch"]}
        rules = [writes, patches, {"level": "None"}]
        document = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        policy.write_text(json.dumps(document | {"rules": rules}))
        flags = (f"--audit-policy-file={policy}", f"--audit-log-path={log}", "--audit-log-mode=blocking")
        with ControlPlane(directory, apiserver_flags=flags) as plane:
            yield cls(scratch, plane, log)

    def writes(self, namespace: str) -> Counter[str]:
        """Return how often the controller has written about each pod of a namespace; its Events count."""
        counted: Counter[str] = Counter()
        for line in self._audit_log.read_text().splitlines() if self._audit_log.exists() else ():
            event = json.loads(line)
            written = event.get("objectRef") or {}
            if (
                event["user"]["username"] == USER
                and written.get("namespace") == namespace
                and written.get("resource") in {"pods", "events"}
            ):
                name = str(written.get("name", ""))
                # An Event is named after its pod, with a suffix.
                counted[name.rpartition(".")[0] or name if written["resource"] == "events" else name] += 1
        return counted

    @contextlib.contextmanager
    def webhook(self, store: str, locks: RedisServer, *flags: str, registered: bool = True) -> Iterator[WebhookProcess]:
        """Run a webhook with its controller on the store at an address; registered, it is also the one that leads."""
        given = (f"--redis-addresses={locks.address}", f"--queue-redis-address={store}", *flags)
        given = (*given, "--enable-sidecar-containers", f"--kubeconfig={self._kubeconfig}")
        directory = self.scratch / f"webhook-{next(self._numbers)}"
        with WebhookProcess(directory, flags=given, python=PYTHON) as webhook:
            if registered:
                until(lambda: WATCHED in webhook.log(), "the controller works")
                self.register(webhook)
            yield webhook

    def register(self, webhook: WebhookProcess) -> None:
        """Make the API server ask this webhook; return once it does."""
        register(self.plane, webhook)
        before = metric(webhook, "admissions_total")
        with Client(self.plane, "default") as client:

            def asked() -> bool:
                with contextlib.suppress(DevClusterError):
                    client.send("POST", f"{client.pods}?dryRun=All", pod("probe", opted_in("probe", 0)))
                return metric(webhook, "admissions_total") > before

            until(asked, "the API server asks the webhook")

    @contextlib.contextmanager
    def scene(
        self,
        name: str,
        *,
        sidecars: Sidecars = "none",
        flags: Sequence[str] = (),
        through: Callable[[RedisServer], str] = lambda store: store.address,
    ) -> Iterator[Scene]:
        """Set up a namespace of this name with all that belongs to it; its pods are gone afterwards.

        Args:
            name: Of the namespace.
            sidecars: Who runs the pods: a stand-in kubelet with real sidecars, one with stubs, or nobody.
            flags: Further ones of the webhook.
            through: Gives the address at which the webhook reaches the store.
        """
        directory = self.scratch / name
        self.plane.create_namespace(name)
        with contextlib.ExitStack() as parts:
            client = parts.enter_context(Client(self.plane, name))
            parts.callback(_clear, client)
            store = parts.enter_context(RedisServer(directory / "store"))
            webhook = parts.enter_context(self.webhook(through(store), store, *flags))
            ledger = parts.enter_context(contextlib.closing(Ledger(store)))
            runner = None
            if sidecars != "none":
                entrypoint = REAL if sidecars == "real" else STUB
                runner = PodRunner(self.plane.kubeconfig, directory / "pods", entrypoint=entrypoint)
                parts.enter_context(runner)
            watcher = parts.enter_context(Watcher(self.plane.kubeconfig, name))
            yield Scene(self, name, store, webhook, watcher, client, ledger, runner)


def metric(webhook: WebhookProcess, name: str) -> float:
    """Return the sum of a metric's samples; the name comes without the project's prefix."""
    _, page = webhook.get(webhook.metrics_port, "/metrics")
    pattern = rf"^at_least_semaphore_pod_hook_{name}(?:\{{.*\}})? (\S+)$"
    return sum(float(value) for value in re.findall(pattern, page, re.MULTILINE))


def _clear(client: Client) -> None:
    """Remove what would make new pods, and all pods: the next case's webhook would have to do with them."""
    base = client.pods.removesuffix("/pods").removeprefix("/api/v1")
    for group, resource in (
        ("apps", "deployments"),
        ("apps", "replicasets"),
        ("apps", "statefulsets"),
        ("batch", "jobs"),
    ):
        client.send("DELETE", f"/apis/{group}/v1{base}/{resource}", {"propagationPolicy": "Background"})

    def is_empty() -> bool:
        client.remove_all()
        return not client.send("GET", f"{client.pods}?limit=1")["items"]

    until(is_empty, "no pod is left")
