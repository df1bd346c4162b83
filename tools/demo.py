"""`make demo`: the whole system at work on a real control plane, in words for a newcomer. It takes some ten seconds."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreKey, SemaphoreState
from at_least_semaphore_pod_hook.settings import Address
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore
from devcluster.console import Console, StepError
from devcluster.errors import DevClusterError
from devcluster.local import EXAMPLES, LocalCluster
from devcluster.podrunner import SIDECAR
from devcluster.session import StoppedError, ignore_signals, scratch, until_signalled

Object = dict[str, Any]

Found = TypeVar("Found")

STEPS = 7
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_BACK = "gave the permit back"


@dataclass(frozen=True)
class Pod:
    """A pod as the API server has it; `permit` is what the webhook wrote into its sidecar's arguments."""

    name: str
    deployment: str
    permit: str
    state: str


class Demo:
    """The story, told while it happens. What is started is put on the stack `parts`, which ends it."""

    def __init__(self, console: Console, directory: Path, parts: contextlib.ExitStack) -> None:
        self._console = console
        self._directory = directory
        self._parts = parts
        self._say = console.say
        self._namespace = ""
        deployments = list(yaml.safe_load_all((EXAMPLES / "deployments.yaml").read_text()))
        self._names = [str(one["metadata"]["name"]) for one in deployments]
        annotations = deployments[0]["spec"]["template"]["metadata"]["annotations"]
        prefix = annotation_prefix()
        self._key, self._length = annotations[f"{prefix}key"], int(annotations[f"{prefix}length"])
        self._annotations = [f"{name}: {value!r}" for name, value in annotations.items()]

    def run(self) -> None:
        """Tell it from the first server's start to the last pod's admission."""
        with self._console.step("Find the programs, or build them"):
            self._cluster = self._find()
        with self._console.step("Start the store"):
            self._start_store()
        with self._console.step("Start a Kubernetes control plane"):
            self._start_control_plane()
        with self._console.step("Start the webhook and register it"):
            self._start_webhook()
        with self._console.step("Create four pods that share three permits"):
            waiting = self._create()
        with self._console.step("Delete a running pod"):
            freed = self._delete(next(name for name in self._names if name != waiting))
        with self._console.step("The waiting pod is admitted"):
            self._admit(waiting, freed)

    def _find(self) -> LocalCluster:
        # What the sidecars are asked to do is worth a line of their logs here.
        cluster = LocalCluster(self._directory, flags=["--log-level=debug"], report=self._say)
        places = dict.fromkeys(str(path.parent) for path in cluster.control_plane.binaries.values())
        self._say(f"{', '.join(cluster.control_plane.binaries)} are in {' and '.join(places)}.")
        return cluster

    def _start_store(self) -> None:
        store = self._parts.enter_context(self._cluster.store)
        self._say(
            f"{store.kind.capitalize()} runs at {store.address}. It knows how many permits each semaphore has, who "
            "holds them, and until when: a holder renews the lease of its permit."
        )

    def _start_control_plane(self) -> None:
        plane = self._parts.enter_context(self._cluster.control_plane)
        version = plane.request("GET", "/version")["gitVersion"]
        self._say(
            f"etcd, kube-apiserver and kube-controller-manager {version} run at {plane.url}: the real programs, with "
            "nothing in them yet. There is no node. A small stand-in for the kubelet starts the sidecar of each pod as "
            "a process on this machine, and only passes time where the pod's own container would work."
        )

    def _start_webhook(self) -> None:
        webhook = self._parts.enter_context(self._cluster.webhook)
        self._cluster.register()
        self._parts.enter_context(self._cluster.runner)
        self._say(
            f"The webhook runs at {webhook.url} with a certificate of its own. From now on the API server asks it "
            "about each new pod that carries the project's annotation, as "
            "deploy/kustomize/base/mutatingwebhookconfiguration.yaml says (with this URL in place of a Service)."
        )

    def _create(self) -> str:
        """Return the Deployment that has to wait for its second pod."""
        self._say(
            f"deploy/examples/deployments.yaml has two Deployments, {' and '.join(self._names)}, of two replicas each. "
            "The annotations of their pods say that they belong together:"
        )
        self._console.quote("\n".join(self._annotations))
        self._namespace = self._cluster.apply_examples({"Namespace", "Deployment"})
        self._until(self._settled, f"{self._length} pods run, each with a permit, and one is refused")
        (waiting,) = (name for name in self._names if len(self._pods_of(name)) == 1)
        self._say(
            "For three of the pods the webhook took a permit and put a sidecar into the pod, which renews the permit "
            f"while the pod lives. The second pod of {waiting} was refused. The API server told its ReplicaSet why, "
            "and that will ask again:"
        )
        self._console.quote(str(self._refusal(waiting)))
        self._show()
        return waiting

    def _delete(self, deployment: str) -> float:
        """Scale a Deployment down by one; return when its pod's permit was back (monotonic)."""
        before = {pod.name: pod for pod in self._pods()}
        self._say(
            f"kubectl scale deployment {deployment} --replicas=1 makes its ReplicaSet delete one of its two pods. (If "
            "the pod were deleted with kubectl delete, the ReplicaSet would ask for another in its place at once, and "
            "that one would compete with the pod that waits.)"
        )
        self._kubectl("scale", "deployment", deployment, "--replicas=1")
        name = self._until(lambda: self._given_back(list(before)), f"the sidecar of a {deployment} pod says '{_BACK}'")
        freed = time.monotonic()
        # Whoever is quick may hold one again by now, but not under this permit's name.
        permits = {holder.permit for holder in self._semaphore().holders}
        if before[name].permit in permits:
            raise DevClusterError(f"permit {before[name].permit} of the deleted pod {name} is still held")
        self._say(f"The sidecar of {name} got SIGTERM, and its last words are:")
        lines = self._cluster.runner.sidecar_log(self._namespace, name).splitlines()
        self._console.quote("\n".join(line.partition(" semaphore=")[0] for line in lines[-2:]))
        self._show()
        return freed

    def _admit(self, deployment: str, freed: float) -> None:
        replica_set = str(self._replica_set(deployment)["metadata"]["name"])
        self._say("A ReplicaSet that was refused waits before it asks again, each time twice as long.")
        if len(self._pods_of(deployment)) == 2:
            self._say(f"This one's time came just now: {replica_set} has asked again, and was not refused.")
        else:
            self._say(
                "The demo doesn't sit that out: any change of the ReplicaSet, and be it an annotation, makes its "
                "controller look at it at once:"
            )
            self._console.quote(f"kubectl annotate replicaset {replica_set} example.com/look-again=now")
            self._kubectl("annotate", "replicaset", replica_set, "example.com/look-again=now")
        self._until(lambda: len(self._running(deployment)) == 2, f"the second pod of {deployment} runs with a permit")
        seconds = time.monotonic() - freed
        self._say(f"The second pod of {deployment} runs, {seconds:.1f} s after the permit came back:")
        self._show()
        self._say(
            "Had the sidecar of the deleted pod been killed instead of asked to end, its permit would have come back "
            "all the same, when its lease ran out."
        )

    def _settled(self) -> bool:
        return len(self._running()) == self._length and any(self._refusal(name) for name in self._names)

    def _given_back(self, names: list[str]) -> str | None:
        runner = self._cluster.runner
        return next((name for name in names if _BACK in runner.sidecar_log(self._namespace, name)), None)

    def _running(self, deployment: str | None = None) -> list[Pod]:
        """Return the pods that run, and whose sidecar has renewed their permit once."""
        running = [pod for pod in self._pods_of(deployment) if pod.state == "running"]
        # The store is asked only where the answer matters.
        holders = self._holders() if running else {}
        return [pod for pod in running if pod.permit in holders and holders[pod.permit].pod == pod.name]

    def _pods_of(self, deployment: str | None) -> list[Pod]:
        return [pod for pod in self._pods() if deployment in (None, pod.deployment)]

    def _pods(self) -> list[Pod]:
        items = self._request(f"/api/v1/namespaces/{self._namespace}/pods")["items"]
        pods = [
            Pod(
                item["metadata"]["name"],
                item["metadata"]["labels"]["app.kubernetes.io/name"],
                next((one["args"][-1] for one in item["spec"].get("initContainers", []) if one["name"] == SIDECAR), ""),
                "ending" if "deletionTimestamp" in item["metadata"] else item["status"]["phase"].lower(),
            )
            for item in items
        ]
        return sorted(pods, key=lambda pod: (pod.deployment, pod.name))

    def _replica_set(self, deployment: str) -> Object:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/replicasets?labelSelector=app.kubernetes.io/name%3D"
        (found,) = self._request(path + deployment)["items"] or [{}]
        return dict(found)

    def _refusal(self, deployment: str) -> str | None:
        """Return why the ReplicaSet of a Deployment can't create a pod, in the API server's words."""
        conditions = self._replica_set(deployment).get("status", {}).get("conditions") or []
        return next((one["message"] for one in conditions if one["type"] == "ReplicaFailure"), None)

    def _semaphore(self) -> SemaphoreState:
        async def read() -> SemaphoreState:
            store = RedisStore(Address("127.0.0.1", self._cluster.store.port))
            try:
                return await store.state(SemaphoreKey(self._namespace, self._key))
            finally:
                await store.close()

        return asyncio.run(read())

    def _holders(self) -> dict[str, Holder]:
        return {holder.permit: holder for holder in self._semaphore().holders}

    def _show(self) -> None:
        """Print the pods, and the semaphore as the store has it."""
        state = self._semaphore()
        holders = {holder.permit for holder in state.holders}
        pods = self._pods()
        rows = [(pod.name, pod.deployment, "yes" if pod.permit in holders else "no", pod.state) for pod in pods]
        for name in self._names:
            wanted = self._replica_set(name)["spec"]["replicas"]
            there = sum(pod.deployment == name and pod.state != "ending" for pod in pods)
            rows += [("(not created)", name, "no", "waiting")] * (wanted - there)
        self._console.line()
        styles = ["green" if row[2] == "yes" else "yellow" for row in rows]
        self._console.table(("POD", "DEPLOYMENT", "PERMIT", "STATE"), rows, styles)
        self._console.line()
        semaphore = SemaphoreKey(self._namespace, self._key)
        self._say(f"semaphore {semaphore}: {state.length} permits, {state.held} held, {state.free} free")
        self._console.table(
            ("PERMIT", "HOLDER", "LEASE"),
            [(one.permit, one.pod, f"{one.lease_ms / 1000:.0f} s") for one in state.holders],
        )
        self._console.line()

    def _kubectl(self, *arguments: str) -> None:
        self._cluster.control_plane.kubectl(f"--namespace={self._namespace}", *arguments)

    def _request(self, path: str) -> Object:
        return self._cluster.control_plane.request("GET", path)

    def _until(self, probe: Callable[[], Found | None], what: str) -> Found:
        """Ask until there is an answer that is true; DevClusterError after half a minute."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (found := probe()):
            if time.monotonic() > deadline:
                raise DevClusterError(f"not within {_WAIT_SECONDS:g} s: {what}")
            time.sleep(_POLL_SECONDS)
        return found


def main() -> int:
    """Run the demo and return its exit code."""
    console = Console(STEPS)
    console.line(
        console.style("A semaphore for Kubernetes pods: at most N run at once, and N of them always can.", "bold")
    )
    console.line("What follows is real, runs on loopback only, and is gone when the demo ends.")
    started = time.monotonic()
    directory = Path()
    try:
        with until_signalled(), scratch("semaphore-demo-") as directory, contextlib.ExitStack() as parts:
            try:
                Demo(console, directory, parts).run()
            finally:
                ignore_signals()
    except StoppedError as stopped:
        console.line(f"\ndemo: {stopped}; all of it has ended and is removed")
        return stopped.exit_code
    except StepError as error:
        sys.stderr.write(f"\ndemo: {error}\ndemo: the logs are in {directory}\n")
        return 1
    console.line(
        console.style(f"All of it has ended and is removed: {time.monotonic() - started:.1f} s in all.", "bold")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
