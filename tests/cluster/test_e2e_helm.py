"""The Helm chart on a real API server: installed, upgraded, used, and removed without a trace."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import redis

from devcluster.stores import RedisServer
from devcluster.webhook import WebhookProcess
from tests.cluster.charts import CHART, RELEASE, everything, helm, settings, webhook_of
from tests.cluster.e2e import Namespace, Object, eventually, opted_in, pod, sidecars
from tests.cluster.gating import GATE, gates, trouble, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

HOME = "default"
"""The namespace that a webhook takes for its own where it does not run in a pod."""
SELF_MANAGED_FLAGS = {"--certificate-secret", "--service-name", "--webhook-configuration"}
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{RELEASE}"


def release(plane: ControlPlane, command: str, *arguments: str, values: tuple[str, ...] = ()) -> str:
    """Install, upgrade or uninstall; returns what helm says."""
    chart = () if command == "uninstall" else (str(CHART),)
    where = (f"--kubeconfig={plane.kubeconfig}", f"--namespace={HOME}")
    done = helm(command, RELEASE, *chart, *where, *settings(values), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def secret(plane: ControlPlane, name: str) -> dict[str, str]:
    data = plane.request("GET", f"/api/v1/namespaces/{HOME}/secrets/{name}")["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def started_store(plane: ControlPlane, directory: Path) -> RedisServer:
    """Run a server on the very configuration and users that the chart has made."""
    directory.mkdir()
    made = plane.request("GET", f"/api/v1/namespaces/{HOME}/configmaps/{RELEASE}-valkey")["data"]["valkey.conf"]
    users = directory / "users.acl"
    users.write_text(secret(plane, f"{RELEASE}-valkey")["users.acl"])
    text = made.replace("/etc/valkey-users/users.acl", str(users)).replace("dir /data", f"dir {directory}")
    (directory / "valkey.conf").write_text(text)
    # A configuration file comes first on the command line; what the server adds of its own says the same, or its port.
    server = RedisServer(directory)
    server.process.argv.insert(1, str(directory / "valkey.conf"))
    return server


def webhook_of_the_release(plane: ControlPlane, directory: Path, store: RedisServer) -> WebhookProcess:
    """Return a webhook with the flags, variables and rights of the release, but for where things are on this machine.

    It has a certificate of its own: self-managed certificates have their own tests.
    """
    deployment = plane.request("GET", f"/apis/apps/v1/namespaces/{HOME}/deployments/{RELEASE}")
    container = webhook_of([{**deployment, "kind": "Deployment"}])
    passwords = secret(plane, f"{RELEASE}-valkey")
    env: dict[str, str] = {}
    for each in container["env"]:
        key = each.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
        text = passwords[key] if key else re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], each["value"])
        env[each["name"]] = text.replace(f"{RELEASE}-valkey-0.{RELEASE}-valkey.{HOME}.svc:6379", store.address)
    account = plane.token_kubeconfig(RELEASE)
    given = [arg for arg in container["args"][1:] if arg.partition("=")[0] not in SELF_MANAGED_FLAGS]
    return WebhookProcess(directory, flags=[*given, f"--kubeconfig={account}"], env=env, api=True)


def register(plane: ControlPlane, webhook: WebhookProcess) -> None:
    """Have the API server ask the webhook on this machine; it cannot reach Services."""
    authority = base64.b64encode(webhook.ca_bundle).decode()
    patch = [
        {"op": "replace", "path": "/webhooks/0/clientConfig", "value": {"url": webhook.url, "caBundle": authority}}
    ]
    plane.request("PATCH", CONFIGURATION, patch, "application/json-patch+json")


def job_pod(plane: ControlPlane) -> Object | None:
    """Return the pod of the Job that helm waits for, once there is one."""
    path = f"/api/v1/namespaces/{HOME}/pods?labelSelector=app.kubernetes.io%2Fcomponent%3Drelease-gates"
    found: list[Object] = plane.request("GET", path)["items"]
    return found[0] if found else None


def run_job(plane: ControlPlane) -> str:
    """Do what the node would: run the Job's command under its account, and report how it ended."""
    eventually(lambda: job_pod(plane), "the Job has a pod")
    made = job_pod(plane)
    assert made is not None
    spec, name = made["spec"], made["metadata"]["name"]
    account = plane.token_kubeconfig(spec["serviceAccountName"])
    argv = [sys.executable, "-m", "at_least_semaphore_pod_hook", *spec["containers"][0]["args"]]
    done = subprocess.run([*argv, f"--kubeconfig={account}"], capture_output=True, text=True, check=False, timeout=60)
    phase = {"status": {"phase": "Failed" if done.returncode else "Succeeded"}}
    path = f"/api/v1/namespaces/{HOME}/pods/{name}/status"
    plane.request("PATCH", path, phase, "application/merge-patch+json")
    return done.stderr


def uninstall(plane: ControlPlane, webhook: WebhookProcess, meanwhile: Callable[[], object]) -> str:
    """Uninstall; returns what the Job has logged. `meanwhile` is called once the Deployment is gone."""
    # From here on it may lose its rights before it ends.
    assert trouble(webhook) == []
    said: list[str] = []
    helper = threading.Thread(target=lambda: said.append(release(plane, "uninstall")), name="helm", daemon=True)
    # The replicas' roles go a moment after their Deployment, and may go before they have ended.
    with plane.losing_roles():
        helper.start()
        deployments = f"/apis/apps/v1/namespaces/{HOME}/deployments"
        eventually(lambda: not plane.request("GET", deployments)["items"], "the Deployment is gone")
        meanwhile()
    logged = run_job(plane)
    helper.join(60)
    assert said, "helm uninstall has not ended well"
    return logged


def check_sidecar(stored: Object, webhook: WebhookProcess, secrets: list[str]) -> None:
    """See to it that a pod's sidecar knows the webhook, and nothing of the store."""
    written = json.dumps(stored)
    assert f"https://localhost:{webhook.permit_port}" in written
    assert not [each for each in secrets if each in written]


def test_installed_upgraded_used_and_removed_without_a_trace(
    control_plane: ControlPlane, namespace: Namespace, registration: Registration, tmp_path: Path
) -> None:
    plane = control_plane
    registration.remove()
    before = everything(plane)
    release(plane, "install", values=("whenFull=gate",))
    passwords = secret(plane, f"{RELEASE}-valkey")
    authority = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "bm9ib2R5"}]
    plane.request("PATCH", CONFIGURATION, authority, "application/json-patch+json")

    release(plane, "upgrade", "--reuse-values", values=("replicas=3",))

    deployment = plane.request("GET", f"/apis/apps/v1/namespaces/{HOME}/deployments/{RELEASE}")
    assert deployment["spec"]["replicas"] == 3
    assert secret(plane, f"{RELEASE}-valkey") == passwords
    # What the webhook, cert-manager or anybody else has written there stays.
    assert plane.request("GET", CONFIGURATION)["webhooks"][0]["clientConfig"]["caBundle"] == "bm9ib2R5"

    with ExitStack() as stack:
        store = stack.enter_context(started_store(plane, tmp_path / "store"))
        webhook = webhook_of_the_release(plane, tmp_path / "webhook", store)
        running = stack.enter_context(ExitStack())
        running.enter_context(working(webhook))
        register(plane, webhook)

        # Until the API server has heard of the registration, pods pass by the webhook.
        served: list[Object] = []

        def asked() -> bool:
            served.append(namespace.try_create(pod("first-", opted_in("seat", 1))).json)
            return served[-1]["kind"] == "Pod" and bool(sidecars(served[-1]))

        eventually(asked, "the API server asks the webhook")
        first = served[-1]["metadata"]["name"]
        eventually(lambda: not gates(namespace.get(first)), "the first is let in")
        waiter = namespace.create(pod("waiter", opted_in("seat", 1)))["metadata"]["name"]
        check_sidecar(namespace.get(waiter), webhook, [store.address, *passwords.values()])
        url = f"redis://sidecar:{passwords['sidecar-password']}@{store.address}"
        with redis.Redis.from_url(url) as sidecar, pytest.raises(redis.exceptions.NoPermissionError):
            sidecar.set("queue/x", "y")
        with redis.Redis(port=store.port) as nobody:
            assert nobody.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                nobody.keys("*")
        # What a webhook makes that manages its certificate itself.
        plane.kubectl("create", "secret", "generic", f"{RELEASE}-tls", f"--namespace={HOME}")
        assert gates(namespace.get(waiter)) == [GATE]

        logged = uninstall(plane, webhook, running.close)

    said = json.loads(logged.splitlines()[-1])
    assert (said["message"], said["count"]) == ("gates removed", 1)
    assert gates(namespace.get(waiter)) == []
    ours = {f"Pod {namespace.name} {each['metadata']['name']}" for each in namespace.pods()}
    left: set[str] = set()

    def gone() -> bool:
        left.clear()
        left.update(everything(plane) - ours - before)
        return not left

    try:
        # What has owners goes a moment after them: pods, the volume's claim.
        eventually(gone, "nothing of the release is left")
    finally:
        assert left == set()


def test_the_default_passes_restricted(control_plane: ControlPlane) -> None:
    # Warnings of Pod Security for a whole namespace: its controllers make the pods, and that is the proof.
    name = "helm-restricted"
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": level}})
    where = (f"--kubeconfig={control_plane.kubeconfig}", f"--namespace={name}")
    try:
        done = helm("install", RELEASE, str(CHART), *where)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "PodSecurity" not in done.stdout + done.stderr
        path = f"/api/v1/namespaces/{name}/pods"
        eventually(lambda: len(control_plane.request("GET", path)["items"]) == 3, "two webhooks and a store have pods")
    finally:
        helm("uninstall", RELEASE, *where, "--no-hooks")
        control_plane.kubectl("delete", "namespace", name, "--wait=false")
