"""The development cluster itself: real control plane, stand-in node, stores; all of it started and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from devcluster.controlplane import ControlPlane
from devcluster.errors import DevClusterError
from devcluster.podrunner import SIDECAR, PodRunner
from devcluster.process import Process, free_port
from devcluster.stores import EtcdServer, RedisServer

Object = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"
LOOP = ["/bin/sh", "-c", "trap 'date +%s.%N; exit 0' TERM; echo $POD_NAME $HOSTNAME; while :; do sleep 0.05; done"]
NAME_VARIABLE = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
SIDECAR_CONTAINER = {"name": SIDECAR, "image": "none", "command": LOOP, "env": [NAME_VARIABLE]}
MAIN_CONTAINER = {"name": "main", "image": "none"}


def eventually(probe: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    """Poll until `probe` is truthy; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not probe():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def descendants() -> set[int]:
    """Return the ids of all live processes below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Start a control plane, and assert in the end that no process of it is left."""
    before = descendants()
    started = time.monotonic()
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        print(f"control plane ready in {time.monotonic() - started:.1f} s")
        yield plane
    assert descendants() <= before


@pytest.fixture(scope="module")
def runner(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodRunner]:
    """Start a pod runner, and assert in the end that no pod's process is left."""
    before = descendants()
    with PodRunner(control_plane.kubeconfig, tmp_path_factory.mktemp("pods")) as started:
        yield started
    # The control plane's own processes may have been started anew meanwhile.
    plane = (control_plane.etcd.process, control_plane.apiserver, control_plane.controller_manager)
    assert descendants() <= before | {process.pid for process in plane}


def pod(name: str, **spec: object) -> Object:
    """Return a pod with a main container and a native sidecar."""
    sidecar = SIDECAR_CONTAINER | {"restartPolicy": "Always"}
    return {"metadata": {"name": name}, "spec": {"containers": [MAIN_CONTAINER], "initContainers": [sidecar]} | spec}


def phase(plane: ControlPlane, name: str) -> str:
    """Return a pod's phase."""
    return str(plane.request("GET", f"{PODS}/{name}")["status"]["phase"])


def gone(plane: ControlPlane, name: str) -> bool:
    """Say whether there is no such pod."""
    return all(item["metadata"]["name"] != name for item in plane.request("GET", PODS)["items"])


def test_a_deployments_pods_run_and_are_replaced(control_plane: ControlPlane, runner: PodRunner) -> None:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [MAIN_CONTAINER, SIDECAR_CONTAINER]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(deployment))
    control_plane.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    first = control_plane.request("GET", f"{PODS}?labelSelector=app%3Dweb")["items"]
    assert len(first) == 2
    name = first[0]["metadata"]["name"]
    pid = runner.sidecar_pid("default", name)
    eventually(lambda: name in runner.sidecar_log("default", name), "the sidecar has set up its trap")
    deleted = time.time()
    control_plane.request("DELETE", f"{PODS}/{name}")
    eventually(lambda: gone(control_plane, name), "the deleted pod is gone")
    printed = runner.sidecar_log("default", name).split()
    assert printed[:2] == [name, name]
    # The shell acts on the signal within its 50 ms of sleep.
    assert float(printed[2]) - deleted < 1.0
    print(f"SIGTERM handled {float(printed[2]) - deleted:.3f} s after the deletion was sent")
    assert not Path(f"/proc/{pid}").exists()
    control_plane.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    control_plane.kubectl("delete", "deployment/web")
    eventually(lambda: not control_plane.request("GET", f"{PODS}?labelSelector=app%3Dweb")["items"], "all pods gone")


@pytest.mark.usefixtures("runner")
def test_a_job_with_a_native_sidecar_completes(control_plane: ControlPlane) -> None:
    template = pod("ignored", restartPolicy="Never")
    template["metadata"] = {"annotations": {"devcluster/run-seconds": "0.5"}}
    spec = {"template": template, "completions": 2, "parallelism": 1}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}, "spec": spec}
    control_plane.kubectl("create", "-f", "-", input=json.dumps(job))
    control_plane.kubectl("wait", "--for=condition=complete", "job/work", "--timeout=30s")
    pods = control_plane.request("GET", f"{PODS}?labelSelector=job-name%3Dwork")["items"]
    assert [item["status"]["phase"] for item in pods] == ["Succeeded", "Succeeded"]
    states = [item["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] for item in pods]
    assert states == [0, 0]
    control_plane.kubectl("delete", "job/work")


@pytest.mark.usefixtures("runner")
def test_a_failing_job_fails(control_plane: ControlPlane) -> None:
    template = pod("ignored", restartPolicy="Never")
    template["metadata"] = {"annotations": {"devcluster/exit-code": "3"}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "bad"}}
    job["spec"] = {"template": template, "backoffLimit": 0}
    control_plane.kubectl("create", "-f", "-", input=json.dumps(job))
    control_plane.kubectl("wait", "--for=condition=failed", "job/bad", "--timeout=30s")
    control_plane.kubectl("delete", "job/bad")


@pytest.mark.usefixtures("runner")
def test_a_gated_pod_waits_for_its_gate(control_plane: ControlPlane) -> None:
    control_plane.request("POST", PODS, pod("gated", schedulingGates=[{"name": "example.com/wait"}]))
    time.sleep(0.3)
    assert "nodeName" not in control_plane.request("GET", f"{PODS}/gated")["spec"]
    patch = {"spec": {"schedulingGates": None}}
    control_plane.request("PATCH", f"{PODS}/gated", patch, "application/merge-patch+json")
    eventually(lambda: phase(control_plane, "gated") == "Running", "the pod runs once it is ungated")
    control_plane.request("DELETE", f"{PODS}/gated")
    eventually(lambda: gone(control_plane, "gated"), "the pod is gone")


def test_a_killed_sidecar_is_reported_and_not_restarted(control_plane: ControlPlane, runner: PodRunner) -> None:
    control_plane.request("POST", PODS, pod("crash"))
    pid = runner.sidecar_pid("default", "crash", timeout=10)
    runner.kill_sidecar("default", "crash", signal.SIGKILL)

    def exit_code() -> object:
        status = control_plane.request("GET", f"{PODS}/crash")["status"]["initContainerStatuses"][0]
        return status["state"].get("terminated", {}).get("exitCode")

    eventually(lambda: exit_code() == 137, "the status tells the exit code")
    assert phase(control_plane, "crash") == "Running"
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(DevClusterError, match="no sidecar of pod default/crash"):
        runner.sidecar_pid("default", "crash")
    control_plane.request("DELETE", f"{PODS}/crash")
    eventually(lambda: gone(control_plane, "crash"), "the pod is gone")


def test_a_stubborn_sidecar_is_killed_after_the_grace(control_plane: ControlPlane, runner: PodRunner) -> None:
    stubborn = pod("stubborn", terminationGracePeriodSeconds=1)
    stubborn["spec"]["initContainers"][0]["command"] = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
    control_plane.request("POST", PODS, stubborn)
    pid = runner.sidecar_pid("default", "stubborn", timeout=10)
    started = time.monotonic()
    control_plane.request("DELETE", f"{PODS}/stubborn")
    eventually(lambda: gone(control_plane, "stubborn"), "the pod is gone")
    assert 0.9 < time.monotonic() - started < 5
    assert not Path(f"/proc/{pid}").exists()


def test_native_sidecars_outlive_the_main_container(control_plane: ControlPlane, runner: PodRunner) -> None:
    slow = pod("slow")
    slow["metadata"]["annotations"] = {"devcluster/stop-seconds": "1"}
    control_plane.request("POST", PODS, slow)
    eventually(lambda: phase(control_plane, "slow") == "Running", "the pod runs")
    eventually(lambda: "slow" in runner.sidecar_log("default", "slow"), "the sidecar has set up its trap")
    deleted = time.time()
    control_plane.request("DELETE", f"{PODS}/slow")
    eventually(lambda: gone(control_plane, "slow"), "the pod is gone")
    assert float(runner.sidecar_log("default", "slow").split()[2]) - deleted >= 1.0


def main_status(control_plane: ControlPlane, name: str) -> Object:
    (status,) = control_plane.request("GET", f"{PODS}/{name}")["status"]["containerStatuses"]
    return dict(status)


def test_a_startup_probe_of_a_native_sidecar_holds_the_main_containers_back(
    control_plane: ControlPlane, runner: PodRunner
) -> None:
    port = free_port()
    held = pod("held")
    probe = {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 99}
    held["spec"]["initContainers"][0]["startupProbe"] = probe
    control_plane.request("POST", PODS, held)
    runner.sidecar_pid("default", "held", timeout=10)
    time.sleep(1.5)
    status = control_plane.request("GET", f"{PODS}/held")["status"]
    assert status["phase"] == "Pending"
    assert status["initContainerStatuses"][0]["started"] is False
    assert "waiting" in main_status(control_plane, "held")["state"]
    with socket.create_server(("127.0.0.1", port)):
        eventually(lambda: phase(control_plane, "held") == "Running", "the pod runs", timeout=5)
    status = control_plane.request("GET", f"{PODS}/held")["status"]
    assert status["initContainerStatuses"][0]["started"] is True
    control_plane.request("DELETE", f"{PODS}/held")
    eventually(lambda: gone(control_plane, "held"), "the pod is gone")


@pytest.mark.parametrize(
    ("policy", "stop_seconds", "code"), [("Never", "0", 143), ("Never", "60", 137), ("Always", "0", 0)]
)
def test_a_liveness_probe_that_fails_stops_a_main_container(
    control_plane: ControlPlane, runner: PodRunner, policy: str, stop_seconds: str, code: int
) -> None:
    port = free_port()
    name = f"probed-{policy.lower()}-{stop_seconds}"
    probed = pod(name, restartPolicy=policy)
    probed["metadata"]["annotations"] = {"devcluster/stop-seconds": stop_seconds}
    probe = {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 1}
    probed["spec"]["containers"] = [MAIN_CONTAINER | {"livenessProbe": probe | {"terminationGracePeriodSeconds": 1}}]
    with socket.create_server(("127.0.0.1", port)):
        control_plane.request("POST", PODS, probed)
        eventually(lambda: phase(control_plane, name) == "Running", "the pod runs")
        time.sleep(1.5)
        assert main_status(control_plane, name)["restartCount"] == 0
        assert "running" in main_status(control_plane, name)["state"]
    if policy == "Always":
        eventually(lambda: main_status(control_plane, name)["restartCount"] > 0, "it is started again", timeout=5)
    else:
        eventually(lambda: phase(control_plane, name) == "Failed", "the pod has failed", timeout=5)
        assert main_status(control_plane, name)["state"]["terminated"]["exitCode"] == code
    control_plane.request("DELETE", f"{PODS}/{name}")
    eventually(lambda: gone(control_plane, name), "the pod is gone")


def test_pods_go_on_over_a_restart_of_the_api_server(control_plane: ControlPlane, runner: PodRunner) -> None:
    control_plane.request("POST", PODS, pod("steady"))
    pid = runner.sidecar_pid("default", "steady", timeout=10)
    control_plane.restart_apiserver()
    control_plane.request("DELETE", f"{PODS}/steady")
    eventually(lambda: gone(control_plane, "steady"), "the pod is gone")
    assert not Path(f"/proc/{pid}").exists()


def test_a_sidecar_reads_its_environment_and_volumes(control_plane: ControlPlane, runner: PodRunner) -> None:
    secret = {"metadata": {"name": "store"}, "stringData": {"password": "s3cret"}}
    control_plane.request("POST", "/api/v1/namespaces/default/secrets", secret)
    reader = pod("reader")
    token = {"serviceAccountToken": {"path": "token", "audience": "the-hook", "expirationSeconds": 600}}
    reader["spec"]["volumes"] = [{"name": "identity", "projected": {"sources": [token]}}]
    sidecar = reader["spec"]["initContainers"][0]
    sidecar["volumeMounts"] = [{"name": "identity", "mountPath": "/var/run/identity", "readOnly": True}]
    fields = {"UID": "metadata.uid", "NODE": "spec.nodeName", "IP": "status.podIP", "NAMESPACE": "metadata.namespace"}
    sidecar["env"] = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    sidecar["env"] += [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "store", "key": "password"}}}]
    sidecar["env"] += [{"name": "BOTH", "value": "$(NAMESPACE)/$(UID) $$(IP)"}]
    script = 'echo "$UID_OF"; echo "$NODE $IP $PASSWORD"; echo "$BOTH"; cat "$0"; echo; exec sleep 1000'
    sidecar["command"] = ["/bin/sh", "-c", script.replace("$UID_OF", "$(UID)"), "/var/run/identity/token"]
    control_plane.request("POST", PODS, reader)
    eventually(lambda: phase(control_plane, "reader") == "Running", "the pod runs")
    eventually(lambda: runner.sidecar_log("default", "reader").count("\n") >= 4, "the sidecar has printed")
    status = control_plane.request("GET", f"{PODS}/reader")
    uid, address = status["metadata"]["uid"], status["status"]["podIP"]
    lines = runner.sidecar_log("default", "reader").splitlines()
    assert lines[:3] == [uid, f"node-1 {address} s3cret", f"default/{uid} $(IP)"]
    review = {"spec": {"token": lines[3], "audiences": ["the-hook"]}}
    answer = control_plane.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)["status"]
    assert answer["authenticated"] is True
    assert answer["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    control_plane.request("DELETE", f"{PODS}/reader?gracePeriodSeconds=1")
    eventually(lambda: gone(control_plane, "reader"), "the pod is gone")


def test_a_pod_removed_by_force_still_gets_its_signal(control_plane: ControlPlane, runner: PodRunner) -> None:
    control_plane.request("POST", PODS, pod("forced"))
    pid = runner.sidecar_pid("default", "forced", timeout=10)
    eventually(lambda: "forced" in runner.sidecar_log("default", "forced"), "the sidecar has set up its trap")
    control_plane.request("DELETE", f"{PODS}/forced?gracePeriodSeconds=0")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the sidecar has ended")
    assert len(runner.sidecar_log("default", "forced").split()) == 3


def test_the_runner_as_a_process_of_its_own(control_plane: ControlPlane, tmp_path: Path) -> None:
    control_plane.request("POST", "/api/v1/nodes", {"metadata": {"name": "node-2"}})
    argv = [sys.executable, "-m", "devcluster.podrunner", "--kubeconfig", str(control_plane.kubeconfig)]
    argv += ["--directory", str(tmp_path / "pods"), "--node", "node-2"]
    tools = str(Path(sys.modules["devcluster"].__path__[0]).parent)
    with Process("podrunner", argv, tmp_path / "log", env=os.environ | {"PYTHONPATH": tools}) as process:
        control_plane.request("POST", PODS, pod("apart", nodeName="node-2"))
        eventually(lambda: phase(control_plane, "apart") == "Running", "the pod runs")
        control_plane.request("DELETE", f"{PODS}/apart")
        eventually(lambda: gone(control_plane, "apart"), "the pod is gone")
        assert process.alive


def test_a_users_kubeconfig_has_no_rights_of_its_own(control_plane: ControlPlane) -> None:
    kubeconfig = control_plane.user_kubeconfig("alice", ["developers"])
    refused = control_plane.kubectl("get", "pods", kubeconfig=kubeconfig, check=False)
    assert refused.returncode != 0
    assert "alice" in refused.stderr
    rights = ["--clusterrole=view", "--group=developers"]
    control_plane.kubectl("create", "rolebinding", "developers", *rights)
    control_plane.kubectl("get", "pods", kubeconfig=kubeconfig)


@pytest.mark.parametrize("prefer", ["redis", "valkey"])
def test_redis_keeps_port_and_data_over_a_crash(prefer: Literal["redis", "valkey"], tmp_path: Path) -> None:
    with RedisServer(tmp_path, prefer=prefer, appendonly=True) as server:
        assert server.kind == prefer

        def call(line: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(line + b"\r\n")
                return connection.recv(64)

        assert call(b"SET a 1") == b"+OK\r\n"
        server.kill()
        server.start()
        assert call(b"GET a") == b"$1\r\n1\r\n"
        server.restart()
        assert call(b"GET a") == b"$1\r\n1\r\n"


def test_etcd_restarts_on_its_port(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        server.kill()
        assert not server.ready()
        server.start()
        assert server.ready()


def test_a_failed_start_tells_the_end_of_the_log(tmp_path: Path) -> None:
    process = Process("doomed", ["/bin/sh", "-c", "echo no such luck; exit 4"], tmp_path / "log")
    process.start()
    with pytest.raises(DevClusterError, match="ended with 4 before it was ready:\nno such luck"):
        process.wait_until(lambda: False, 10)


def test_a_process_outlives_the_thread_but_not_the_process_that_started_it(tmp_path: Path) -> None:
    process = Process("sleeper", ["sleep", "60"], tmp_path / "log")
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert process.alive
    process.kill()

    code = (
        "import os, pathlib, signal, sys; from devcluster.process import Process\n"
        "p = Process('sleeper', ['sleep', '60'], pathlib.Path(sys.argv[1])); p.start(); print(p.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    tools = str(Path(sys.modules["devcluster"].__path__[0]).parent)
    argv = [sys.executable, "-c", code, str(tmp_path / "other")]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": tools}, capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the child died with its parent", timeout=5)
