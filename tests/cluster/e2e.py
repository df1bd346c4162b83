"""What the end-to-end tests share: pods, requests to API server and webhook, and a store that is read as it is."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlencode

import redis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import EtcdServer, RedisServer
    from devcluster.webhook import WebhookProcess

Object = dict[str, Any]
DOMAIN = "at-least-semaphore-pod-hook.kaidotio.github.io"
PREFIX = f"{DOMAIN}/"
SIDECAR = "at-least-semaphore-pod-sidecar"
RUN_SECONDS = "devcluster/run-seconds"
PATIENCE_SECONDS = 30.0
ORDINARY, NATIVE = (), ("--enable-sidecar-containers",)
KINDS = {"redlock-ordinary": ("redlock", ORDINARY), "etcd-native": ("etcd", NATIVE)}


def eventually(probe: Callable[[], object], what: str, timeout: float = PATIENCE_SECONDS) -> float:
    """Poll until `probe` is truthy and return the seconds that it took; fail after `timeout` seconds."""
    started = time.monotonic()
    while not probe():
        assert time.monotonic() - started < timeout, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


def flags(lock_mode: str, store: RedisServer, locks: RedisServer | EtcdServer) -> tuple[str, ...]:
    """Point a webhook at a store, and at what locks in this mode."""
    where = "--etcd-addresses" if lock_mode == "etcd" else "--redis-addresses"
    return (f"--lock-mode={lock_mode}", f"--queue-redis-address={store.address}", f"{where}={locks.address}")


def opted_in(key: str, length: int | str, expiration: int | str = 60, prefix: str = PREFIX) -> dict[str, str]:
    """Return the annotations that opt a pod in."""
    values = {"at-least-semaphore-pod": "true", "key": key, "length": str(length), "expiration": str(expiration)}
    return {prefix + name: value for name, value in values.items()}


def pod(name: str, annotated: dict[str, str] | None = None, **spec: object) -> Object:
    """Return a pod with one container; a name that ends in "-" is one to generate from."""
    named = {"generateName": name} if name.endswith("-") else {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**named, "annotations": annotated or {}},
        "spec": {"containers": [{"name": "main", "image": "none"}], **spec},
    }


def sidecars(created: Object) -> list[Object]:
    """Return the sidecars of a pod, wherever they are."""
    spec = created["spec"]
    everything = [*(spec.get("initContainers") or []), *spec["containers"]]
    return [container for container in everything if container["name"].endswith(SIDECAR)]


def permit_of(created: Object) -> str:
    """Return the permit that a pod's only sidecar has."""
    (sidecar,) = sidecars(created)
    return str(sidecar["args"][-1])


class Addressed(Protocol):
    """A Redis server, wherever it runs."""

    address: str  # "host:port"


class Semaphore:
    """A semaphore as it lies in Redis, read key by key and without the product's own code."""

    def __init__(self, store: Addressed, namespace: str, key: str) -> None:
        self._client = client_of(store)
        tag = f"{{{namespace}/{key}}}"
        self._queue, self._inflight, self._holders = f"queue/{tag}", f"inflight/{tag}", f"inflight/{tag}/holders"

    @property
    def length(self) -> int:
        """The length; 0 where there is no such semaphore."""
        return int(self._client.hget(self._queue, "length") or 0)

    @property
    def leases(self) -> dict[str, float]:
        """The permits that are held, each with the end of its lease in seconds since the epoch."""
        seconds, micros = self._client.time()
        found = self._client.zrangebyscore(self._inflight, f"({seconds * 1000 + micros // 1000}", "+inf", withscores=1)
        return {permit: score / 1000 for permit, score in found}

    @property
    def held(self) -> int:
        """How many permits are held."""
        return len(self.leases)

    def holder(self, permit: str) -> Object:
        """What is noted of a held permit; empty where there is none."""
        found: Object = json.loads(self._client.hget(self._holders, permit) or "{}")
        return found

    def confirmed(self) -> int:
        """How many permits are held by pods whose sidecar runs."""
        return sum(bool(self.holder(permit).get("confirmed")) for permit in self.leases)


def client_of(store: Addressed) -> Any:
    """Return a client of a store, by a connection of its own."""
    host, _, port = store.address.rpartition(":")
    return redis.Redis(host=host, port=int(port), decode_responses=True, socket_timeout=10)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status, its headers in lower case, and its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Object:
        """The body as JSON."""
        document: Object = json.loads(self.body)
        return document

    @property
    def message(self) -> str:
        """What a Status or the webhook's own refusal says."""
        return str(self.json.get("message", ""))

    @property
    def warnings(self) -> str:
        """The warnings that the API server hands on."""
        return self.headers.get("warning", "")


class Caller:
    """One HTTPS connection, kept open between requests."""

    def __init__(self, port: int, context: ssl.SSLContext, timeout: float = PATIENCE_SECONDS) -> None:
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=context)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """Send a request and return its answer; nothing is repeated where the connection broke."""
        self.connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = self.connection.getresponse()
        fields = {name.lower(): text for name, text in answer.getheaders()}
        return Reply(answer.status, fields, answer.read())

    def admit(self, body: bytes, timeout: str = "10s") -> Object:
        """Send a review as the API server does, and return the response in the answer."""
        reply = self.send("POST", f"/mutate?timeout={timeout}", body, content_type="application/json")
        assert reply.status == 200, reply.body
        response: Object = reply.json["response"]
        return response

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def admit(webhook: WebhookProcess, body: bytes, timeout: str = "10s") -> Object:
    """Send one review over a connection of its own, and return the response in the answer."""
    with Caller(webhook.port, webhook.client_context()) as caller:
        return caller.admit(body, timeout)


def review(made: Object, namespace: str, *, dry_run: bool = False, user: str = "alice") -> bytes:
    """Return the AdmissionReview for a pod's creation."""
    request = {
        "uid": str(uuid.uuid4()),
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "namespace": namespace,
        "userInfo": {"username": user},
        "object": made,
        "dryRun": dry_run,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def together(calls: Sequence[Callable[[], Object]]) -> list[Object]:
    """Make all calls at the same moment, each from a thread of its own, and return their answers."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], Object]) -> Object:
        barrier.wait(PATIENCE_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


class Namespace:
    """A namespace of a real cluster, and what a user does in it."""

    def __init__(self, control_plane: ControlPlane, name: str) -> None:
        self.control_plane = control_plane
        self.name = name
        self.path = f"/api/v1/namespaces/{name}/pods"

    def caller(self) -> Caller:
        """Open a connection to the API server."""
        context = ssl.create_default_context(cafile=self.control_plane.ca_file)
        return Caller(self.control_plane.port, context)

    def try_create(self, made: Object, caller: Caller | None = None, **query: str) -> Reply:
        """Create a pod and return the API server's answer, whatever it is."""
        own = caller or self.caller()
        try:
            return own.send(
                "POST",
                f"{self.path}?{urlencode(query)}",
                json.dumps(made).encode(),
                content_type="application/json",
                authorization=f"Bearer {self.control_plane.token}",
            )
        finally:
            if caller is None:
                own.close()

    def create(self, made: Object) -> Object:
        """Create a pod and return it as it is stored."""
        reply = self.try_create(made)
        assert reply.status == 201, reply.body
        return reply.json

    def kubectl(self, *arguments: str, stdin: object = None) -> tuple[int, str]:
        """Run kubectl in the namespace, with JSON as its input; return its exit code and all that it prints."""
        text = None if stdin is None else json.dumps(stdin)
        done = self.control_plane.kubectl("-n", self.name, *arguments, input=text, check=False)
        return done.returncode, done.stdout + done.stderr

    def apply(self, document: Object) -> None:
        """Create any object by kubectl."""
        code, printed = self.kubectl("create", "-f", "-", stdin=document)
        assert code == 0, printed

    def get(self, name: str) -> Object:
        """Read a pod."""
        return self.control_plane.request("GET", f"{self.path}/{name}")

    def pods(self, selector: str = "") -> list[Object]:
        """List the pods that are not being deleted."""
        found = self.control_plane.request("GET", f"{self.path}?{urlencode({'labelSelector': selector})}")["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def running(self) -> list[Object]:
        """List the pods that run."""
        return [item for item in self.pods() if item["status"]["phase"] == "Running"]

    def delete(self, name: str, grace: int | None = None) -> None:
        """Delete a pod."""
        query = "" if grace is None else f"?gracePeriodSeconds={grace}"
        self.control_plane.request("DELETE", f"{self.path}/{name}{query}")


def metric(webhook: WebhookProcess, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels; the name comes without the project's prefix."""
    status, page = webhook.get(webhook.metrics_port, "/metrics")
    assert status == 200, page
    pattern = re.compile(rf"^at_least_semaphore_pod_hook_{name}(?:\{{(.*)\}})? (\S+)$", re.MULTILINE)
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    return sum(float(value) for found, value in pattern.findall(page) if wanted <= set(found.split(",")))


def admissions(webhook: WebhookProcess) -> float:
    """Return how many admissions a webhook has answered."""
    return metric(webhook, "admissions_total")
