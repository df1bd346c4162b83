"""`make demo`: the whole system at work on a real control plane, in words for a newcomer. It takes some ten seconds."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from pathlib import Path

import yaml

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from demo_view import BACK, Object, Pod, View
from devcluster.console import Console, StepError
from devcluster.errors import DevClusterError
from devcluster.local import EXAMPLES, LocalCluster
from devcluster.polling import until
from devcluster.session import StoppedError, ignore_signals, scratch, until_signalled

STEPS = 8
_NAME = "app.kubernetes.io/name"
_JOB_LABEL = "batch.kubernetes.io/job-name"
_JOB_PODS, _JOB_PERMITS = 6, 2
_WORK_SECONDS = 0.5
WAIT_SECONDS = 30.0


class Demo:
    """The story, told while it happens. What is started is put on the stack `parts`, which ends it."""

    def __init__(self, console: Console, directory: Path, parts: contextlib.ExitStack) -> None:
        self._console = console
        self._directory = directory
        self._parts = parts
        self._say = console.say
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
        with self._console.step("Create six pods that wait in line for two permits"):
            self._line_up()

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
        self._cluster.create_examples_namespace()
        self._view = View(self._cluster, self._console, self._cluster.apply_examples({"Deployment"}))
        until(self._settled, f"{self._length} pods run, each with a permit, and one is refused", WAIT_SECONDS)
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
        """Scale a Deployment down by one; return when its pod's permit was back, in seconds since the epoch."""
        before = {pod.name: pod for pod in self._view.pods(_NAME)}
        self._say(
            f"kubectl scale deployment {deployment} --replicas=1 makes its ReplicaSet delete one of its two pods. (If "
            "the pod were deleted with kubectl delete, the ReplicaSet would ask for another in its place at once, and "
            "that one would compete with the pod that waits.)"
        )
        self._view.kubectl("scale", "deployment", deployment, "--replicas=1")
        name = until(
            lambda: self._given_back(list(before)), f"the sidecar of a {deployment} pod says '{BACK}'", WAIT_SECONDS
        )
        # Whoever is quick may hold one again by now, but not under this permit's name.
        if before[name].permit in self._view.holders(self._key):
            raise DevClusterError(f"permit {before[name].permit} of the deleted pod {name} is still held")
        self._say(f"The sidecar of {name} got SIGTERM, and its last words are:")
        lines = self._cluster.runner.sidecar_log(self._view.namespace, name).splitlines()
        self._console.quote("\n".join(line.partition(" semaphore=")[0] for line in lines[-2:]))
        return self._view.given_back(name) or 0.0

    def _admit(self, deployment: str, freed: float) -> None:
        replica_set = str(self._replica_set(deployment)["metadata"]["name"])
        self._say(
            "A ReplicaSet that was refused waits before it asks again, each time twice as long, up to a quarter of an "
            "hour. The controller in the webhook does not leave it at that: it touches an annotation of "
            f"{replica_set}, which makes it ask again at once."
        )
        until(
            lambda: len(self._running(deployment)) == 2,
            f"the second pod of {deployment} runs with a permit",
            WAIT_SECONDS,
        )
        # Its name in the admission is that of its ReplicaSet, as it had none of its own yet.
        admitted = self._admitted_after(replica_set, freed)
        self._show()
        self._say(f"Hand-over when denied: {1000 * (admitted - freed):.0f} ms from permit to admitted pod.")
        self._say(
            "Had the sidecar of the deleted pod been killed instead of asked to end, the controller would have taken "
            "its permit back as soon as the API server showed that the pod was gone."
        )

    def _line_up(self) -> None:
        """Have a Job's pods wait in line, and served in order."""
        self._say(
            "deploy/examples/job.yaml has a Job of six pods at once, for a semaphore of two permits. Its pods have one "
            'more annotation, when-full: "gate". None is refused: all are created, behind a scheduling gate.'
        )
        self._cluster.apply_examples({"Job"}, run_seconds=_WORK_SECONDS)
        pods = until(
            self._all_lined_up, f"{_JOB_PODS} pods of the Job, {_JOB_PERMITS} of them without a gate", WAIT_SECONDS
        )
        rows = [(pod.name, "no" if pod.gated else "yes", "waiting" if pod.gated else pod.state) for pod in pods]
        self._console.line()
        styles = ["yellow" if pod.gated else "green" for pod in pods]
        self._console.table(("POD, BY ARRIVAL", "PERMIT", "STATE"), rows, styles)
        self._console.line()
        names = [pod.name for pod in pods]
        until(
            lambda: all(map(self._view.given_back, names)),
            "all pods of the Job have given their permits back",
            WAIT_SECONDS,
        )
        freed = sorted(self._view.given_back(name) or 0.0 for name in names)
        let_in = [self._view.logged("pod let in", name)[0] for name in names]
        self._say("Whenever a pod's work was over, the first in line was let in:")
        waits = list(zip(names[_JOB_PERMITS:], freed, let_in[_JOB_PERMITS:], strict=False))
        times = [(name, f"{1000 * (entry - free):.0f} ms") for name, free, entry in waits]
        self._console.table(("POD", "LET IN AFTER"), times)
        order = "in the order of their arrival" if let_in == sorted(let_in) else "out of order"
        middle = statistics.median(entry - free for _, free, entry in waits)
        self._say(f"Hand-over in line: {1000 * middle:.0f} ms (median); the pods were let in {order}.")

    def _all_lined_up(self) -> list[Pod] | None:
        pods = sorted(self._view.pods(_JOB_LABEL), key=lambda pod: pod.arrived)
        entered = sum(not pod.gated for pod in pods)
        return pods if len(pods) == _JOB_PODS and entered >= _JOB_PERMITS else None

    def _settled(self) -> bool:
        return len(self._running()) == self._length and any(self._refusal(name) for name in self._names)

    def _given_back(self, names: list[str]) -> str | None:
        return next((name for name in names if self._view.given_back(name)), None)

    def _admitted_after(self, replica_set: str, freed: float) -> float:
        """Return when a pod of a ReplicaSet was admitted after that, in seconds since the epoch."""
        found = self._view.logged("pod admitted", f"{replica_set}-*")
        return next(moment for moment in found if moment >= freed)

    def _running(self, deployment: str | None = None) -> list[Pod]:
        """Return the pods that run, and whose sidecar has renewed their permit once."""
        running = [pod for pod in self._pods_of(deployment) if pod.state == "running"]
        # The store is asked only where the answer matters.
        holders = self._view.holders(self._key) if running else {}
        return [pod for pod in running if pod.permit in holders and holders[pod.permit].pod == pod.name]

    def _pods_of(self, deployment: str | None) -> list[Pod]:
        return [pod for pod in self._view.pods(_NAME) if deployment in (None, pod.owner)]

    def _replica_set(self, deployment: str) -> Object:
        path = f"/apis/apps/v1/namespaces/{self._view.namespace}/replicasets?labelSelector=app.kubernetes.io/name%3D"
        (found,) = self._view.request(path + deployment)["items"] or [{}]
        return dict(found)

    def _refusal(self, deployment: str) -> str | None:
        """Return why the ReplicaSet of a Deployment can't create a pod, in the API server's words."""
        conditions = self._replica_set(deployment).get("status", {}).get("conditions") or []
        return next((one["message"] for one in conditions if one["type"] == "ReplicaFailure"), None)

    def _show(self) -> None:
        """Print the Deployments' pods, and their semaphore as the store has it."""
        holders = self._view.holders(self._key)
        pods = self._view.pods(_NAME)
        rows = [(pod.name, pod.owner, "yes" if pod.permit in holders else "no", pod.state) for pod in pods]
        for name in self._names:
            wanted = self._replica_set(name)["spec"]["replicas"]
            there = sum(pod.owner == name and pod.state != "ending" for pod in pods)
            rows += [("(not created)", name, "no", "waiting")] * (wanted - there)
        self._console.line()
        styles = ["green" if row[2] == "yes" else "yellow" for row in rows]
        self._console.table(("POD", "DEPLOYMENT", "PERMIT", "STATE"), rows, styles)
        self._console.line()
        self._view.show(self._key)


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
