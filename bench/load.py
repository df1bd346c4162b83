"""Closed loops of requests: so many connections, each with one request under way.

Two clients, since a no-op is so quick that much of what is measured is the client: `light` is vegeta, which reads the
status alone; `checking` reads each AdmissionReview that comes back and checks it, as the API server does.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devcluster.binaries import find_or_build

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"


@dataclass(frozen=True)
class Result:
    """What a run gave: answers per second, latencies in milliseconds, and the share answered with 200."""

    per_second: float
    p50: float
    p99: float
    success: float


def review(key: str, number: int) -> dict[str, Any]:
    """Return an AdmissionReview of a pod of about 4 KB, as a ReplicaSet creates it, that asks for a permit of `key`."""
    variables = [{"name": f"SETTING_{n}", "value": f"value-{n:03}-{'x' * 24}"} for n in range(36)]
    container = {
        "name": "main",
        "image": "registry.example/team/application:1.2.3",
        "env": variables,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
    }
    annotations = {"at-least-semaphore-pod": "true", "key": key, "length": "1000000", "expiration": "60"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "application-7d9c5b8f64-",
            "namespace": "default",
            "labels": {"app": "application", "pod-template-hash": "7d9c5b8f64"},
            "annotations": {PREFIX + name: value for name, value in annotations.items()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "application-7d9c5b8f64"}],
        },
        "spec": {"containers": [container], "restartPolicy": "Always", "serviceAccountName": "default"},
    }
    request = {
        "uid": f"705ab4f5-6393-11e8-b7cc-{number:012}",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "default",
        "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
        "object": pod,
        "dryRun": False,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def run(
    client: str,
    url: str,
    ca_file: Path,
    bodies: Iterable[dict[str, Any]],
    *,
    connections: int,
    seconds: float,
    scratch: Path,
) -> Result:
    """Send `bodies` in turn over `connections` for `seconds`; raises CalledProcessError where the client fails."""
    texts = [json.dumps(body).encode() for body in bodies]
    measure = {"light": _light, "checking": _checking}[client]
    return measure(f"{url}?timeout=10s", ca_file, texts, connections, seconds, scratch)


def _light(url: str, ca_file: Path, bodies: list[bytes], connections: int, seconds: float, scratch: Path) -> Result:
    vegeta = str(find_or_build(["vegeta"])["vegeta"])
    targets = scratch / "targets.json"
    with targets.open("w") as file:
        for body in bodies:
            encoded = base64.b64encode(body).decode()
            header = {"Content-Type": ["application/json"]}
            file.write(json.dumps({"method": "POST", "url": url, "header": header, "body": encoded}) + "\n")
    results = scratch / "results.bin"
    attack = [vegeta, "attack", "-format=json", f"-targets={targets}", f"-duration={seconds}s", "-rate=0"]
    attack += [f"-max-workers={connections}", f"-workers={connections}", f"-connections={connections}"]
    attack += ["-http2=false", f"-root-certs={ca_file}", f"-output={results}", "-max-body=0"]
    subprocess.run(attack, check=True)
    report = subprocess.run([vegeta, "report", "-type=json", str(results)], check=True, capture_output=True)
    figures = json.loads(report.stdout)
    latencies = figures["latencies"]
    return Result(figures["throughput"], latencies["50th"] / 1e6, latencies["99th"] / 1e6, figures["success"])


def _checking(url: str, ca_file: Path, bodies: list[bytes], connections: int, seconds: float, scratch: Path) -> Result:
    lines = scratch / "bodies.jsonl"
    lines.write_bytes(b"\n".join(bodies))
    argv = [sys.executable, str(Path(__file__).with_name("checking.py")), url, str(ca_file), str(lines)]
    done = subprocess.run([*argv, str(connections), str(seconds)], check=True, capture_output=True)
    return Result(**json.loads(done.stdout))
