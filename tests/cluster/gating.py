"""What the tests of waiting pods share: webhooks with controllers, and what API server and store show them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from devcluster.webhook import WebhookProcess
from tests.cluster.e2e import NATIVE, PATIENCE_SECONDS, PREFIX, Caller, Namespace, Object, client_of, eventually, flags

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.stores import RedisServer

GATE = f"{PREFIX}permit"
LABEL = f"{PREFIX}key"
ARRIVED = f"{PREFIX}arrived"
FENCING_TOKEN = f"{PREFIX}fencing-token"
WHEN_FULL = f"{PREFIX}when-full"
RELEASE_ON = f"{PREFIX}release-on"
UID_PERMIT = "$(POD_UID)"
FOREIGN = "example.com/hold"

AT_ONCE_SECONDS = 2.0
"""What counts as at once: hand-overs take a tenth of it, save on a machine that has other things to do."""


def replica(
    directory: Path,
    store: RedisServer,
    kubeconfig: Path,
    *given: str,
    sidecars: tuple[str, ...] = NATIVE,
    api: bool = False,
    **env: str,
) -> WebhookProcess:
    """Return a webhook, not started, that lets pods wait and has a controller; `given` flags count most."""
    own = (*flags("redlock", store, store), *sidecars, "--when-full=gate", f"--kubeconfig={kubeconfig}")
    return WebhookProcess(directory, flags=(*own, *given), env=env, api=api)


@contextmanager
def working(webhook: WebhookProcess) -> Iterator[WebhookProcess]:
    """Run a webhook; its controller works."""
    with webhook:
        eventually(lambda: "pods watched" in webhook.log(), "the controller works")
        yield webhook


@contextmanager
def serving(webhook: WebhookProcess) -> Iterator[WebhookProcess]:
    """Run a webhook; its controller works, and has no trouble until the end."""
    with working(webhook):
        yield webhook
        assert trouble(webhook) == []


def trouble(webhook: WebhookProcess) -> list[str]:
    """Return what a webhook has logged of what it could not do."""
    return [
        line
        for line in webhook.log().splitlines()
        if '"level":"error"' in line or "not seen to" in line or " 403 " in line
    ]


def gates(stored: Object) -> list[str]:
    """Return the names of a pod's scheduling gates."""
    return [gate["name"] for gate in stored["spec"].get("schedulingGates") or []]


def uid(stored: Object) -> str:
    """Return a pod's UID, which is its permit's name where it waited."""
    return str(stored["metadata"]["uid"])


def remove_gate(namespace: Namespace, name: str, gate: str) -> None:
    """Remove a pod's gate as whoever it belongs to does."""
    place = f"/spec/schedulingGates/{gates(namespace.get(name)).index(gate)}"
    patch = [{"op": "test", "path": f"{place}/name", "value": gate}, {"op": "remove", "path": place}]
    namespace.control_plane.request("PATCH", f"{namespace.path}/{name}", patch, "application/json-patch+json")


def bind(namespace: Namespace, name: str, node: str) -> None:
    """Bind a pod to a node, as a scheduler does. Without a stand-in kubelet nothing more happens to it."""
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    namespace.control_plane.request(
        "POST", f"{namespace.path}/{name}/binding", {"metadata": {"name": name}, "target": target}
    )


def keys_of(store: RedisServer, namespace: Namespace) -> list[str]:
    """Return all that the store has of a namespace's semaphores."""
    return sorted(client_of(store).keys(f"*{{{namespace.name}/*"))


def events(namespace: Namespace, reason: str) -> list[Object]:
    """List a namespace's Events of a reason."""
    path = f"/apis/events.k8s.io/v1/namespaces/{namespace.name}/events"
    return [event for event in namespace.control_plane.request("GET", path)["items"] if event["reason"] == reason]


def reported(namespace: Namespace, reason: str) -> set[tuple[str, str]]:
    """Return the kinds and names of the objects that Events of a reason are about."""
    return {(event["regarding"]["kind"], event["regarding"]["name"]) for event in events(namespace, reason)}


class History:
    """All that happens to a namespace's pods from now on, in the API server's own order; a context manager.

    A pod is *served* when its gate is gone, and *active* from then until it has finished or is removed.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        context = ssl.create_default_context(cafile=namespace.control_plane.ca_file)
        self._caller = Caller(namespace.control_plane.port, context, timeout=600)
        self._thread = threading.Thread(target=self._follow, name="history", daemon=True)
        self._active: set[str] = set()
        self._closing = False
        self._broken = False
        self.served: list[str] = []
        """The names of the pods whose gate is gone, in the order in which it went."""
        self.served_at: dict[str, float] = {}
        self.ended_at: dict[str, float] = {}
        self.tokens: dict[str, str] = {}
        """The fencing token that a pod had when it was served."""
        self.active_when_served: dict[str, int] = {}
        self.most_active = 0

    @property
    def active(self) -> int:
        """How many pods are active."""
        return len(self._active)

    def until_served(self, count: int, timeout: float = PATIENCE_SECONDS) -> float:
        """Wait until so many pods were served in all; return the seconds that it took."""

        def reached() -> bool:
            assert not self._broken, "the watch has ended"
            return len(self.served) >= count

        return eventually(reached, f"{count} pods are served", timeout)

    def __enter__(self) -> Self:
        listed = self._namespace.control_plane.request("GET", self._namespace.path)
        for stored in listed["items"]:
            self._take("ADDED", stored)
        version = listed["metadata"]["resourceVersion"]
        path = f"{self._namespace.path}?watch=true&timeoutSeconds=600&resourceVersion={version}"
        authorization = {"authorization": f"Bearer {self._namespace.control_plane.token}"}
        self._caller.connection.request("GET", path, headers=authorization)
        self._socket = self._caller.connection.sock
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)
        self._caller.close()

    def _follow(self) -> None:
        try:
            with self._caller.connection.getresponse() as answer:
                for line in answer:
                    event = json.loads(line)
                    self._take(event["type"], event["object"])
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            pass
        self._broken = not self._closing

    def _take(self, kind: str, stored: Object) -> None:
        permit, name = uid(stored), stored["metadata"]["name"]
        over = kind == "DELETED" or stored["status"].get("phase") in {"Succeeded", "Failed"}
        if over:
            self._active.discard(permit)
            self.ended_at.setdefault(name, time.monotonic())
        elif GATE not in gates(stored) and permit not in self._active:
            self._active.add(permit)
            self.most_active = max(self.most_active, len(self._active))
            self.active_when_served[name] = len(self._active)
            self.served_at[name] = time.monotonic()
            self.tokens[name] = stored["metadata"]["annotations"].get(FENCING_TOKEN, "")
            self.served.append(name)


class Account:
    """Reads a semaphore's holders over and over; a context manager."""

    def __init__(self, store: RedisServer, namespace: Namespace, key: str) -> None:
        self._client: Any = client_of(store)
        inflight = f"inflight/{{{namespace.name}/{key}}}"
        self._names = (inflight, f"{inflight}/holders")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="account", daemon=True)
        self.most = 0
        """The most permits that were held at one moment."""
        self.reads = 0
        self.tokens: dict[str, set[str]] = defaultdict(set)
        """The fencing tokens that each permit was seen with."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_SECONDS)

    def _read(self) -> None:
        while not self._stop.wait(0.002):
            transaction = self._client.pipeline(transaction=True)
            transaction.time()
            transaction.zrange(self._names[0], 0, -1, withscores=True)
            transaction.hgetall(self._names[1])
            (seconds, micros), leases, holders = transaction.execute()
            now = seconds * 1000 + micros / 1000
            held = [permit for permit, end in leases if end > now]
            self.most = max(self.most, len(held))
            self.reads += 1
            for permit in held:
                self.tokens[permit].add(json.loads(holders[permit])["token"])
