"""What users do while things go wrong: pods that come, run, finish and are deleted, and admissions out of the blue."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import aiohttp

from at_least_semaphore_pod_hook.connector import Connector
from tests.chaos.objects import Object, patched
from tests.chaos.standin import Admission, Refused, ask, review
from tests.cluster.e2e import PREFIX, RUN_SECONDS, SIDECAR, opted_in, sidecars
from tests.cluster.gating import GATE, RELEASE_ON, UID_PERMIT, WHEN_FULL, gates

DIRECT_EXPIRATION = 2
_DIRECT_A_SECOND = 180
"""How many admissions are asked for out of the blue, where they are answered fast enough."""
_ASKERS = 8
"""How many of these may be under way at a time: where all are slow, there are fewer a second."""
_SNAPSHOT_SECONDS = 0.25
_LOOKS = 4


class Kind(NamedTuple):
    """A semaphore whose pods come and go. `wanted` is how many pods are kept, those included that wait.

    Where `owner` names a ReplicaSet, the pods are its own.
    """

    key: str
    length: int
    when_full: str
    wanted: int
    expiration: int
    release_on: str = ""
    owner: str = ""


class Api:
    """Pods of one namespace, as a user sees them."""

    def __init__(self, url: str, namespace: str, headers: dict[str, str] | None = None, ssl: Any = True) -> None:
        self._pods = f"{url}/api/v1/namespaces/{namespace}/pods"
        self._headers = headers or {"Authorization": "Bearer admin"}
        self._ssl = ssl

    async def call(
        self, http: aiohttp.ClientSession, method: str, name: str = "", body: object = None
    ) -> Object | None:
        """Send a request; None where it is refused or fails."""
        url = f"{self._pods}/{name}" if name else self._pods
        try:
            async with (
                asyncio.timeout(8),
                http.request(method, url, json=body, headers=self._headers, ssl=self._ssl) as answer,
            ):
                document: Object = await answer.json()
                return document if answer.status < 400 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None


def is_live(pod: Object) -> bool:
    """Say whether a pod was let in and is there to stay."""
    finished = pod["status"].get("phase") in {"Succeeded", "Failed"}
    # An ordinary sidecar that cannot reach the store outlives the rest of its pod, whose permit is free by then.
    others = [one for one in pod["status"].get("containerStatuses", ()) if one["name"] != SIDECAR]
    ended = bool(others) and all("terminated" in one["state"] for one in others)
    over = finished or (ended and pod["spec"]["restartPolicy"] == "Never")
    return not (GATE in gates(pod) or over or "deletionTimestamp" in pod["metadata"])


def permit(pod: Object) -> str:
    """Return the name of a pod's permit."""
    (sidecar,) = sidecars(pod)
    named = str(sidecar["args"][-1])
    return str(pod["metadata"]["uid"]) if named == UID_PERMIT else named


class Load:
    """Goes on in an event loop from `start` to `stop`.

    Args:
        api: Where pods are made.
        namespace: Theirs.
        admissions: The webhooks, to be asked without an API server.
        kinds: The semaphores.
        rng: Draws everything.
    """

    def __init__(
        self, api: Api, namespace: str, admissions: Sequence[Admission], kinds: Sequence[Kind], rng: random.Random
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._admissions = admissions
        self._kinds = kinds
        self._rng = rng
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: list[Object] = []
        self._due = 0.0
        self._live: dict[str, deque[set[str]]] = {}
        self.over: dict[str, int] = {}
        """By key, how many pods more than there are permits were let in at the same time."""
        self.answers = {"created": 0, "refused": 0, "direct": 0, "unanswered": 0}

    async def start(self) -> None:
        """Begin."""
        self._http = aiohttp.ClientSession(connector=Connector(limit=64))
        works: list[Coroutine[Any, Any, None]] = [self._look(), *(self._churn(kind) for kind in self._kinds)]
        works += [self._ask_directly() for _ in range(_ASKERS)]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Let no further pod come or go."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.close()

    async def pods(self) -> list[Object]:
        """List all pods; RuntimeError where that fails."""
        listed = await self._api.call(self._http, "GET")
        if listed is None:
            raise RuntimeError("pods cannot be listed")
        return list(listed["items"])

    async def _look(self) -> None:
        while True:
            listed = await self._api.call(self._http, "GET")
            if listed:
                self._seen = listed["items"]
                self._count()
            await asyncio.sleep(_SNAPSHOT_SECONDS)

    def _count(self) -> None:
        """Note where more pods than permits were there in several looks in a row; ends are shown a little late."""
        for kind in self._kinds:
            live = {pod["metadata"]["uid"] for pod in self._alive(kind) if is_live(pod)}
            looks = self._live.setdefault(kind.key, deque(maxlen=_LOOKS))
            looks.append(live)
            over = len(set.intersection(*looks)) - kind.length if len(looks) == _LOOKS else 0
            if over > self.over.get(kind.key, 0):
                self.over[kind.key] = over

    def _alive(self, kind: Kind) -> list[Object]:
        return [
            pod
            for pod in self._seen
            if pod["metadata"]["annotations"][f"{PREFIX}key"] == kind.key
            and pod["status"].get("phase") not in {"Succeeded", "Failed"}
            and "deletionTimestamp" not in pod["metadata"]
        ]

    async def _churn(self, kind: Kind) -> None:
        """Keep as many pods as wanted, and let one go now and then."""
        fresh = 0
        while True:
            alive = len(self._alive(kind))
            if alive + fresh < kind.wanted:
                fresh += 1
                await self._create(kind)
                await asyncio.sleep(self._rng.random() * 0.05)
                continue
            await asyncio.sleep(_SNAPSHOT_SECONDS + self._rng.random() * 0.3)
            fresh = 0
            if (alive := len(self._alive(kind))) >= kind.wanted - 1 and alive:
                await self._end(self._rng.choice(self._alive(kind)))

    async def _create(self, kind: Kind, name: str = "") -> None:
        draw = self._rng.random()
        annotations = opted_in(kind.key, kind.length, kind.expiration) | {WHEN_FULL: kind.when_full}
        if kind.release_on:
            annotations[RELEASE_ON] = kind.release_on
        if draw < 0.25:
            annotations[RUN_SECONDS] = f"{0.5 + 6 * draw:.2f}"
        policy = "Never" if draw < 0.25 else "Always"
        body = _pod(name or f"{kind.key}-{next(self._numbers)}", annotations, policy, kind.owner)
        created = await self._api.call(self._http, "POST", body=body)
        self.answers["refused" if created is None else "created"] += 1

    async def _end(self, pod: Object) -> None:
        """Delete a pod, sometimes by force, and sometimes to have another one of its name at once."""
        name = pod["metadata"]["name"]
        draw = self._rng.random()
        grace = 0 if draw < 0.15 else 2
        await self._api.call(self._http, "DELETE", name, {"gracePeriodSeconds": grace})
        if draw < 0.1:
            key = pod["metadata"]["annotations"][f"{PREFIX}key"]
            await self._create(next(kind for kind in self._kinds if kind.key == key), name)

    async def _ask_directly(self) -> None:
        while True:
            draw = self._rng.random()
            if draw < 0.04:
                key, length = f"first-{next(self._numbers)}", 2
            else:
                key, length = f"direct-{self._rng.randint(1, 2)}", 10 if draw < 0.93 else 8
            made = _pod(f"direct-{next(self._numbers)}", opted_in(key, length, DIRECT_EXPIRATION), "Always")
            request = review(self._namespace, made, dry_run=0.1 < draw < 0.2)
            first = await self._ask(request)
            if 0.2 < draw < 0.3:  # the API server's own repetition
                await self._ask(request)
            elif 0.3 < draw < 0.4 and first and "patch" in first:  # a reinvocation, with the sidecar in the pod
                again = patched(made, json.loads(base64.b64decode(first["patch"])))
                await self._ask(review(self._namespace, again))
            await self._turn()

    async def _turn(self) -> None:
        """Wait until the next admission is due; what could not be asked in time is not made up for."""
        now = asyncio.get_running_loop().time()
        due = max(now, self._due)
        self._due = due + 2 * self._rng.random() / _DIRECT_A_SECOND
        await asyncio.sleep(due - now)

    async def _ask(self, request: Object) -> Object | None:
        self.answers["direct"] += 1
        try:
            return await ask(self._http, self._rng.choice(self._admissions), request, self._rng.choice([1.0, 3.0]))
        except Refused:
            self.answers["unanswered"] += 1
            return None


def _pod(name: str, annotations: dict[str, str], policy: str, owner: str = "") -> Object:
    reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations} | ({"ownerReferences": [reference]} if owner else {}),
        "spec": {
            "containers": [{"name": "main", "image": "none"}],
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": 3,
        },
    }
