"""A small stand-in for scheduler and kubelet: binds pods to one node, runs their sidecar as a local process.

Run it in a thread (`with PodRunner(kubeconfig, directory) as runner`), or as a process of its own:
`python -m devcluster.podrunner --kubeconfig FILE --directory DIR`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devcluster import podspec
from devcluster.errors import DevClusterError
from devcluster.kubeapi import STRATEGIC_MERGE, ApiError, EventType, KubeApi
from devcluster.podrun import PodRun, RunOptions
from devcluster.status import timestamp

Object = dict[str, Any]

SIDECAR = "at-least-semaphore-pod-sidecar"
_LOG = logging.getLogger(__name__)
_START_SECONDS = 30.0
_HEARTBEAT_SECONDS = 10.0
_POLL_SECONDS = 0.01
_PASSED_ON = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV")


class PodRunner:
    """Runs every pod of a cluster that is bound to `node`, and binds to it those that are bound nowhere and not gated.

    The container named `sidecar` is a real process: its command and args, or `entrypoint` and its args, with the
    variables of the pod, a few of ours (PATH, HOME, PYTHONPATH) and `sidecar_env`; `substitutions` are replaced in
    its arguments and variables. The other containers are simulated: they run until the pod is stopped, or end as the
    pod's annotations say: `devcluster/run-seconds`, `devcluster/exit-code`, and `devcluster/stop-seconds` (how long
    they go on after SIGTERM). A sidecar that ends is started again only with `restart_sidecars`. What they print,
    and their working directories, are below `directory`, a directory for each pod.
    """

    def __init__(
        self,
        kubeconfig: Path,
        directory: Path,
        *,
        node: str = "node-1",
        sidecar: str = SIDECAR,
        entrypoint: Sequence[str] = (sys.executable, "-m", "at_least_semaphore_pod_hook"),
        sidecar_env: Mapping[str, str] | None = None,
        substitutions: Mapping[str, str] | None = None,
        restart_sidecars: bool = False,
    ) -> None:
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._options = RunOptions(
            directory=directory,
            sidecar=sidecar,
            entrypoint=tuple(entrypoint),
            base_env=inherited | dict(sidecar_env or {}),
            substitutions=dict(substitutions or {}),
            restart_sidecars=restart_sidecars,
        )
        self._api = KubeApi(kubeconfig)
        self._node = node
        self._runs: dict[str, PodRun] = {}
        self._latest: dict[tuple[str, str], PodRun] = {}
        self._binding: set[str] = set()
        self._statuses: dict[str, Object] = {}
        self._publishers: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._addresses = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._listed = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Run in a thread; return once the API server was reached. DevClusterError where it can't be."""
        self._thread = threading.Thread(target=self._run_thread, name="devcluster-podrunner", daemon=True)
        self._thread.start()
        if not self._listed.wait(_START_SECONDS):
            self.stop()
            raise DevClusterError(f"the API server did not list pods within {_START_SECONDS:g} s")
        if self._failure is not None:
            raise DevClusterError(f"pods can't be watched: {self._failure}") from self._failure

    def stop(self) -> None:
        """Stop as a node that loses its power: every process is killed, nothing more is reported."""
        if self._thread is None:
            return
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()
        self._thread = None

    def sidecar_pid(self, namespace: str, name: str, timeout: float = 0.0) -> int:
        """Return the process id of a pod's sidecar, waiting up to `timeout` seconds for it to run.

        DevClusterError where none runs.
        """
        deadline = time.monotonic() + timeout
        while True:
            run = self._latest.get((namespace, name))
            pid = run.sidecar_pid if run else None
            if pid is not None:
                return pid
            if time.monotonic() >= deadline:
                raise DevClusterError(f"no sidecar of pod {namespace}/{name} is running")
            time.sleep(_POLL_SECONDS)

    def sidecar_log(self, namespace: str, name: str) -> str:
        """Return what the sidecar of the latest pod of this name has printed, also after its end."""
        run = self._latest.get((namespace, name))
        if run is None:
            raise DevClusterError(f"pod {namespace}/{name} was never run")
        return run.sidecar_log.read_text(errors="replace") if run.sidecar_log.exists() else ""

    def kill_sidecar(self, namespace: str, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a pod's sidecar; DevClusterError where none runs."""
        run, loop = self._latest.get((namespace, name)), self._loop
        if run is None or loop is None:
            raise DevClusterError(f"no sidecar of pod {namespace}/{name} is running")

        async def send(run: PodRun = run) -> bool:
            return run.signal_sidecar(number)

        if not asyncio.run_coroutine_threadsafe(send(), loop).result(_START_SECONDS):
            raise DevClusterError(f"no sidecar of pod {namespace}/{name} is running")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _run_thread(self) -> None:
        try:
            asyncio.run(self.serve())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._failure = error
            _LOG.exception("the pod runner has ended")
        finally:
            self._listed.set()

    async def serve(self) -> None:
        """Run until cancelled; every process has ended when this returns."""
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        async with self._api:
            self._spawn(self._keep_node())
            try:
                await self._api.follow("/api/v1/pods", self._on_event, self._listed.set)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("the pod runner could not do its part", exc_info=task.exception())

    def _on_event(self, kind: EventType, pod: Object) -> None:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        run = self._runs.get(metadata["uid"])
        if kind == "DELETED":
            self._binding.discard(metadata["uid"])
            self._ended.discard(metadata["uid"])
            if run is not None:  # removed by force, and only noticed now
                run.stop(podspec.grace_seconds(run.pod))
        elif "nodeName" not in spec:
            if metadata["uid"] not in self._binding and not (podspec.is_gated(pod) or podspec.is_finished(pod)):
                self._binding.add(metadata["uid"])
                self._spawn(self._bind(metadata))
        elif spec["nodeName"] == self._node:
            if run is not None:
                run.pod = pod
                if "deletionTimestamp" in metadata:
                    run.stop(podspec.grace_seconds(pod))
            elif not podspec.is_finished(pod) and metadata["uid"] not in self._ended:
                self._begin(pod)
            elif "deletionTimestamp" in metadata:
                self._spawn(self._remove(metadata))

    def _begin(self, pod: Object) -> None:
        metadata = pod["metadata"]
        self._binding.discard(metadata["uid"])
        number = next(self._addresses)
        address = f"10.{244 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"

        def status_changed(status: Object) -> None:
            self._statuses[metadata["uid"]] = status
            if metadata["uid"] not in self._publishers:
                self._publishers[metadata["uid"]] = self._spawn(self._publish(metadata))

        run = PodRun(pod, self._options, address, self._api, status_changed)
        self._runs[run.uid] = self._latest[run.namespace, run.name] = run
        self._spawn(self._live(run))
        if "deletionTimestamp" in metadata:
            run.stop(podspec.grace_seconds(pod))

    async def _live(self, run: PodRun) -> None:
        await run.run()
        publisher = self._publishers.get(run.uid)
        if publisher is not None:
            await asyncio.wait({publisher})
        # Only now a deletion that came during the last moments is certain to be seen in the pod.
        self._runs.pop(run.uid, None)
        self._ended.add(run.uid)
        if "deletionTimestamp" in run.pod["metadata"]:
            await self._remove(run.pod["metadata"])

    async def _bind(self, metadata: Object) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": self._node}
        body = {"metadata": {"name": metadata["name"], "uid": metadata["uid"]}, "target": target}
        await self._tolerant("POST", f"{_path(metadata)}/binding", body)

    async def _publish(self, metadata: Object) -> None:
        """Write a pod's latest status, and again while it has changed meanwhile."""
        uid = metadata["uid"]
        try:
            while uid in self._statuses:
                body = {"metadata": {"uid": uid}, "status": self._statuses.pop(uid)}
                await self._tolerant("PATCH", f"{_path(metadata)}/status", body, STRATEGIC_MERGE)
        finally:
            self._publishers.pop(uid, None)

    async def _remove(self, metadata: Object) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        await self._tolerant("DELETE", _path(metadata), body)

    async def _tolerant(self, method: str, path: str, body: Object, content_type: str = "application/json") -> None:
        """Send a request about a pod that may be gone, replaced or bound by now."""
        try:
            await self._api.request(method, path, body, content_type)
        except ApiError as error:
            if error.status not in (404, 409):
                _LOG.warning("%s", error)

    async def _keep_node(self) -> None:
        """Report the node as a live one, every 10 s."""
        while True:
            condition = {"type": "Ready", "status": "True", "lastHeartbeatTime": timestamp(time.time())}
            path = f"/api/v1/nodes/{self._node}/status"
            await self._tolerant("PATCH", path, {"status": {"conditions": [condition]}}, STRATEGIC_MERGE)
            await asyncio.sleep(_HEARTBEAT_SECONDS)


def _path(metadata: Object) -> str:
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a process until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="devcluster.podrunner", description="stand-in for scheduler and kubelet")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where logs and working directories go")
    parser.add_argument("--node", default="node-1")
    parser.add_argument("--sidecar", default=SIDECAR, help="name of the container that is run as a process")
    parser.add_argument("--restart-sidecars", action="store_true", help="start a sidecar that ended again")
    parser.add_argument("--sidecar-env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--substitute", action="append", default=[], metavar="OLD=NEW", help="in sidecar arguments")
    parser.add_argument("--entrypoint", nargs="+", help="what a sidecar without a command runs; the last option")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    runner = PodRunner(
        options.kubeconfig,
        options.directory,
        node=options.node,
        sidecar=options.sidecar,
        sidecar_env=dict(pair.split("=", 1) for pair in options.sidecar_env),
        substitutions=dict(pair.split("=", 1) for pair in options.substitute),
        restart_sidecars=options.restart_sidecars,
        **({"entrypoint": options.entrypoint} if options.entrypoint else {}),
    )

    async def until_signalled() -> None:
        task = asyncio.ensure_future(runner.serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(until_signalled())


if __name__ == "__main__":
    main()
