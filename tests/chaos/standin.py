"""A stand-in API server: as much of one as webhook, controller and stand-in kubelet need, and it can misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import random
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from at_least_semaphore_pod_hook.connector import Connector
from tests.chaos.objects import ConflictError, Object, Objects, merged, patched, selected

NODE_READY: Object = {"kind": "Node", "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
CONTROLLER, ADMIN = "controller", "admin"
_BOOKMARK_SECONDS = 2.0
_REFUSED = {400: "BadRequest", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 422: "Invalid", 500: "InternalError"}


class Admission(NamedTuple):
    """A webhook that is asked."""

    url: str
    context: ssl.SSLContext


@dataclass
class Misbehaviour:
    """What the stand-in does wrong; all but `forgetting` to those alone who come with the controller's token.

    Attributes:
        forgetting: How likely an admitted pod is never stored.
        deaf: Changes are not told to watches; these go on after a list only (410).
        lag: Seconds by which watches tell late.
        repeating: Each DELETED is told a second time, late.
        failing: How likely a request is answered with 500, half of these after it was carried out.
        slow: Seconds by which answers are late.
    """

    forgetting: float = 0.0
    deaf: bool = False
    lag: float = 0.0
    repeating: bool = False
    failing: float = 0.0
    slow: float = 0.0


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A request that is answered with a Status."""

    def __init__(self, code: int, kind: str = "", name: str = "", message: str = "") -> None:
        super().__init__(message)
        self.code = code
        details = {"name": name, "kind": kind} if name else {}
        reason = _REFUSED.get(code, "Unknown")
        self.status = {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}


class StandIn:
    """Serves HTTP on a port of 127.0.0.1. Everything but the constructor belongs to one event loop."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.objects = Objects()
        self.admissions: list[Admission] = []
        self.misbehaviour = Misbehaviour()
        self.leases: dict[tuple[str, str], Object] = {}
        self.port = 0
        self._breaks = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to serve."""
        self._http = aiohttp.ClientSession(connector=Connector(limit=64, force_close=True))
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await self.break_watches()
        await self._runner.cleanup()
        await self._http.close()

    async def forget_versions(self) -> None:
        """Forget all versions before now, and end the watches that are behind, as they are after a gap."""
        self.objects.oldest = self.objects.version
        await self.break_watches()

    async def break_watches(self) -> None:
        """End the controllers' watches with 410."""
        self._breaks += 1
        self.objects.notify()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        troubled = request.headers.get("Authorization") == f"Bearer {CONTROLLER}"
        wrong = self.misbehaviour
        if troubled and wrong.slow:
            await asyncio.sleep(wrong.slow * self._rng.random())
        fails = troubled and self._rng.random() < wrong.failing
        if fails and self._rng.random() < 0.5:
            return _failed()
        if "watch" in request.query:
            return await self._watch(request, troubled)
        try:
            answer = await self._route(request)
        except Refused as refused:
            return web.json_response(refused.status, status=refused.code)
        return _failed() if fails else web.json_response(answer)

    async def _route(self, request: web.Request) -> Object:
        parts = [part for part in request.path.split("/") if part]
        body: Any = await request.json() if request.can_read_body else None
        match request.method, parts:
            case "GET", ["api", "v1", *path, "pods"]:
                return self._list(request, path[-1] if path else "")
            case "POST", ["api", "v1", "namespaces", namespace, "pods"]:
                return await self._create(namespace, body)
            case method, ["api", "v1", "namespaces", namespace, "pods", name, *rest]:
                return self._pod(method, self._found(namespace, name), rest, body)
            case _, ["api", "v1", "nodes", name, *_]:
                return NODE_READY | {"metadata": {"name": name}}
            case method, ["apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", *name]:
                return self._lease(method, namespace, name, body)
            case "PATCH", ["apis", "apps", "v1", "namespaces", namespace, "replicasets", name]:
                answer = {"kind": "ReplicaSet", "metadata": {"namespace": namespace, "name": name, "uid": name}}
            case "POST", ["apis", "events.k8s.io", *_]:
                answer = {"kind": "Event", "metadata": body["metadata"]}
            case _:
                raise Refused(404, message=f"no such path: {request.path}")
        return answer

    def _found(self, namespace: str, name: str) -> Object:
        pod = self.objects.pods.get((namespace, name))
        if pod is None:
            raise Refused(404, "pods", name, f'pods "{name}" not found')
        return pod

    async def _create(self, namespace: str, body: Object) -> Object:
        body = copy.deepcopy(body)
        if self.admissions:
            body = await self._admit(namespace, body)
        name = body["metadata"].get("name")
        if (namespace, name) in self.objects.pods:
            raise Refused(409, "pods", str(name), "it exists already")
        if self._rng.random() < self.misbehaviour.forgetting:
            raise Refused(500, message="admitted, and never stored")
        return self.objects.create(namespace, body)

    async def _admit(self, namespace: str, pod: Object) -> Object:
        admission = self._rng.choice(self.admissions)
        response = await ask(self._http, admission, review(namespace, pod))
        if not response["allowed"]:
            raise Refused(response["status"]["code"], message=response["status"]["message"])
        return patched(pod, json.loads(base64.b64decode(response["patch"]))) if "patch" in response else pod

    def _pod(self, method: str, pod: Object, rest: Sequence[str], body: Any) -> Object:
        metadata = pod["metadata"]
        name = metadata["name"]
        given = body.get("metadata", {}).get("uid") if isinstance(body, dict) else None
        if given not in (None, metadata["uid"]):
            raise Refused(409, "pods", name, "it is another pod")
        if method == "GET":
            return pod
        if rest == ["binding"]:
            if pod["spec"].get("nodeName") or pod["spec"].get("schedulingGates") or "deletionTimestamp" in metadata:
                raise Refused(409, "pods", name, "it cannot be bound")
            pod["spec"]["nodeName"] = body["target"]["name"]
            self.objects.tell("MODIFIED", pod)
            return {"kind": "Status", "status": "Success"}
        if rest == ["status"]:
            pod["status"] |= body["status"]
            return self.objects.tell("MODIFIED", pod)
        if method == "DELETE":
            return self._delete(pod, body or {})
        try:
            changed = patched(pod, body)
        except ConflictError as error:
            raise Refused(422, message=str(error)) from error
        self.objects.pods[metadata["namespace"], name] = changed
        return self.objects.tell("MODIFIED", changed)

    def _delete(self, pod: Object, options: Object) -> Object:
        metadata = pod["metadata"]
        wanted = options.get("preconditions", {}).get("uid")
        if wanted not in (None, metadata["uid"]):
            raise Refused(409, "pods", metadata["name"], "it is another pod")
        grace = options.get("gracePeriodSeconds", pod["spec"]["terminationGracePeriodSeconds"])
        finished = pod["status"]["phase"] in {"Succeeded", "Failed"}
        if grace == 0 or finished or not pod["spec"].get("nodeName"):
            removed = self.objects.remove(pod)
            if self.misbehaviour.repeating:
                self._later(self._repeat(copy.deepcopy(removed)))
            return removed
        if "deletionTimestamp" not in metadata:
            metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace}
            self.objects.tell("MODIFIED", pod)
        return pod

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _repeat(self, pod: Object) -> None:
        for _ in range(2):
            self.objects.repeat("DELETED", pod)
            await asyncio.sleep(self._rng.random())

    def _list(self, request: web.Request, namespace: str = "") -> Object:
        selector = request.query.get("labelSelector", "")
        pods = [
            pod
            for (where, _), pod in sorted(self.objects.pods.items())
            if where.startswith(namespace)
            and selected(frozenset((pod["metadata"].get("labels") or {}).items()), selector)
        ]
        start, _, version = request.query.get("continue", f"0:{self.objects.version}").partition(":")
        if int(version) < self.objects.oldest:
            raise Refused(410, message="the continue token is too old")
        end = int(start) + int(request.query.get("limit", len(pods) or 1))
        more = {"continue": f"{end}:{version}"} if end < len(pods) else {}
        return {"kind": "PodList", "metadata": {"resourceVersion": version, **more}, "items": pods[int(start) : end]}

    async def _watch(self, request: web.Request, troubled: bool) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # who watched has gone
            await self._tell(request, response, troubled)
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse, troubled: bool) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds", "3600"))
        version, breaks = int(request.query["resourceVersion"]), self._breaks
        selector = request.query.get("labelSelector", "")
        while (left := end - loop.time()) > 0:
            if troubled and (version < self.objects.oldest or breaks != self._breaks):
                await response.write(_line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}))
                return
            told = b""
            for event in self.objects.since(version):
                version = event.version
                if selected(event.labels, selector) and not (troubled and self.misbehaviour.deaf):
                    told += event.line
            if told:
                if troubled and self.misbehaviour.lag:
                    await asyncio.sleep(self.misbehaviour.lag)
                await response.write(told)
                continue
            try:
                async with asyncio.timeout(min(left, _BOOKMARK_SECONDS)):
                    await self.objects.changed.wait()
            except TimeoutError:
                metadata = {"resourceVersion": str(version), "creationTimestamp": None}
                await response.write(_line("BOOKMARK", {"kind": "Pod", "metadata": metadata}))

    def _lease(self, method: str, namespace: str, path: list[str], body: Any) -> Object:
        name = path[0] if path else body["metadata"]["name"]
        lease: Object | None = self.leases.get((namespace, name))
        if method == "POST":
            if lease is not None:
                raise Refused(409, "leases", name)
            lease = body
        elif lease is None:
            raise Refused(404, "leases", name)
        elif method == "GET":
            return lease
        else:
            wanted = body["metadata"].get("resourceVersion")
            if wanted not in (None, lease["metadata"]["resourceVersion"]):
                raise Refused(409, "leases", name)
            lease = dict(merged(lease, body))
        self.objects.version += 1
        lease["metadata"]["resourceVersion"] = str(self.objects.version)
        self.leases[namespace, name] = lease
        return lease


def _failed() -> web.Response:
    return web.json_response(Refused(500).status, status=500)


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def review(namespace: str, pod: Object, *, dry_run: bool = False) -> Object:
    """Return the request of an AdmissionReview for a pod's creation."""
    return {
        "uid": str(uuid.uuid4()),
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "namespace": namespace,
        "userInfo": {"username": "chaos"},
        "object": pod,
        "dryRun": dry_run,
    }


async def ask(http: aiohttp.ClientSession, admission: Admission, request: Object, seconds: float = 3.0) -> Object:
    """Ask a webhook. Refused where it does not answer in time, as with failurePolicy Fail."""
    document = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    url = f"{admission.url}?timeout={seconds:g}s"
    try:
        async with (
            asyncio.timeout(seconds),
            http.post(url, json=document, ssl=admission.context) as answer,
        ):
            response: Object = (await answer.json(content_type=None))["response"]
            return response
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
        raise Refused(500, message=f"the webhook did not answer: {error!r}") from error


def write_kubeconfig(path: Path, port: int, token: str) -> Path:
    """Write a kubeconfig for a stand-in on this port."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path
