"""One pod, one permit: asked again by the API server, and pods made from what is stored of another."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.certificates import Authority
from tests.cluster.conftest import CONFIGURATIONS, Registration
from tests.cluster.e2e import (
    SIDECAR,
    Namespace,
    Object,
    Semaphore,
    eventually,
    metric,
    opted_in,
    permit_of,
    pod,
    sidecars,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.podrunner import PodRunner
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess

pytestmark = pytest.mark.cluster

SECOND = "zz-second"
LABEL = "e2e.example.com/second"


class Second:
    """Another project's webhook: it puts a container of its own before the others, and a variable into each."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        certificate, key = authority.issue_server("second", ["127.0.0.1"])
        self.ca_bundle = authority.ca_file.read_bytes()
        self.saw: list[Object] = []
        second = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = json.loads(body)["request"]
                answer = json.dumps(second.answer(request)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def answer(self, request: Object) -> Object:
        """Answer a review; the pod that it was about is kept in `saw`."""
        self.saw.append(request["object"])
        patch: list[Object] = []
        for section in ("containers", "initContainers"):
            for index, container in enumerate(request["object"]["spec"].get(section) or []):
                variables = [*container.get("env", []), {"name": "SECOND", "value": "was-here"}]
                patch.append({"op": "add", "path": f"/spec/{section}/{index}/env", "value": variables})
        patch.append({"op": "add", "path": "/spec/containers/0", "value": {"name": "second", "image": "none"}})
        encoded = base64.b64encode(json.dumps(patch).encode()).decode()
        response = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch", "patch": encoded}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    def configuration(self) -> Object:
        """Return how it is registered: for labelled pods, never asked again."""
        url = f"https://127.0.0.1:{self.server.server_address[1]}/"
        rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        webhook = {
            "name": "second.example.com",
            "clientConfig": {"url": url, "caBundle": base64.b64encode(self.ca_bundle).decode()},
            "rules": [rule],
            "objectSelector": {"matchLabels": {LABEL: "true"}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "reinvocationPolicy": "Never",
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": SECOND},
            "webhooks": [webhook],
        }

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def second(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    second = Second(tmp_path_factory.mktemp("second"))
    control_plane.request("POST", CONFIGURATIONS, second.configuration())
    default = Namespace(control_plane, "default")

    def asked() -> bool:
        default.try_create(labelled(pod("probe")), dryRun="All")
        return bool(second.saw)

    eventually(asked, "the API server asks the second webhook")
    yield second
    control_plane.request("DELETE", f"{CONFIGURATIONS}/{SECOND}")
    second.close()


def labelled(made: Object) -> Object:
    """Return a pod that the second webhook is asked about, and that nothing but that webhook changes after ours.

    With a token mounted, the API server itself would: it mounts it into our sidecar, too, and so asks us again.
    """
    made = {**made, "spec": {**made["spec"], "automountServiceAccountToken": False}}
    return {**made, "metadata": {**made["metadata"], "labels": {LABEL: "true"}}}


@pytest.fixture
def asked_again(webhook: WebhookProcess, registration: Registration) -> WebhookProcess:
    """A webhook that the API server asks again where something changed after it, which ours does not ask for."""
    registration.use(webhook, reinvocationPolicy="IfNeeded")
    return webhook


@pytest.mark.parametrize("name", ["named", "generated-"])
def test_a_webhook_that_changes_the_pod_after_ours_costs_no_second_permit(
    namespace: Namespace, store: RedisServer, asked_again: WebhookProcess, second: Second, name: str
) -> None:
    semaphore = Semaphore(store, namespace.name, "again")
    calls = metric(asked_again, "admissions_total", decision="patched")
    second.saw.clear()

    created = namespace.create(labelled(pod(name, opted_in("again", 3, 600))))

    assert metric(asked_again, "admissions_total", decision="patched") - calls == 2, "ours was not asked once again"
    assert [permit_of(seen) for seen in second.saw] == [permit_of(created)]
    assert created["spec"]["containers"][0]["name"] == "second"
    assert [one["name"] for one in sidecars(created)] == [SIDECAR]
    assert list(semaphore.leases) == [permit_of(created)]


@pytest.mark.parametrize("name", ["named", "generated-"])
def test_the_api_servers_own_change_to_the_sidecar_costs_no_second_permit(
    namespace: Namespace, store: RedisServer, asked_again: WebhookProcess, name: str
) -> None:
    calls = metric(asked_again, "admissions_total", decision="patched")

    created = namespace.create(pod(name, opted_in("token", 3, 600)))

    assert metric(asked_again, "admissions_total", decision="patched") - calls == 2
    (sidecar,) = sidecars(created)
    assert [mount["mountPath"].rpartition("/")[2] for mount in sidecar["volumeMounts"]] == ["serviceaccount"]
    assert list(Semaphore(store, namespace.name, "token").leases) == [permit_of(created)]


def test_as_it_is_shipped_a_pod_costs_one_call(namespace: Namespace, webhook: WebhookProcess) -> None:
    calls = metric(webhook, "admissions_total", decision="patched")

    namespace.create(pod("once", opted_in("token", 3, 600)))

    assert metric(webhook, "admissions_total", decision="patched") - calls == 1


@pytest.mark.parametrize("name", ["named", "generated-"])
def test_the_last_permit_is_enough_for_a_pod_that_is_asked_about_twice(
    namespace: Namespace, store: RedisServer, asked_again: WebhookProcess, second: Second, name: str
) -> None:
    created = namespace.create(labelled(pod(name, opted_in("last", 1, 600))))

    assert list(Semaphore(store, namespace.name, "last").leases) == [permit_of(created)]
    refused = namespace.try_create(labelled(pod("another", opted_in("last", 1, 600))))
    assert refused.status == 403


def copied(namespace: Namespace, original: str, name: str) -> Object:
    """Return a pod's YAML as `kubectl get` prints it, stripped and renamed as a user would."""
    code, printed = namespace.kubectl("get", "pod", original, "-o", "json")
    assert code == 0, printed
    copy: Any = json.loads(printed)
    for field in ("resourceVersion", "uid", "creationTimestamp", "generation"):
        copy["metadata"].pop(field, None)
    del copy["status"]
    copy["spec"].pop("nodeName", None)
    copy["metadata"]["name"] = name
    made: Object = copy
    return made


def expect_own(namespace: Namespace, semaphore: Semaphore, original: str, copy: str) -> None:
    """Expect that two pods have a sidecar and a permit each."""
    pods = [namespace.get(original), namespace.get(copy)]
    assert [len(sidecars(one)) for one in pods] == [1, 1]
    permits = [permit_of(one) for one in pods]
    assert permits[0] != permits[1]
    assert set(semaphore.leases) == set(permits)


@pytest.mark.usefixtures("webhook")
@pytest.mark.parametrize("name", ["original", "generated-"])
def test_a_copy_of_a_pod_that_was_only_just_stored_gets_a_permit_of_its_own(
    namespace: Namespace, store: RedisServer, name: str
) -> None:
    semaphore = Semaphore(store, namespace.name, "copy")
    gate = [{"name": "example.com/hold"}]
    original = namespace.create(pod(name, opted_in("copy", 2, 600), schedulingGates=gate))["metadata"]["name"]
    assert semaphore.confirmed() == 0

    code, printed = namespace.kubectl("create", "-f", "-", stdin=copied(namespace, original, "copy"))

    assert code == 0, printed
    expect_own(namespace, semaphore, original, "copy")
    refused = namespace.try_create(copied(namespace, original, "third"))
    assert refused.status == 403


@pytest.mark.usefixtures("webhook")
@pytest.mark.parametrize("name", ["original", "generated-"])
def test_a_copy_of_a_running_pod_gets_a_permit_of_its_own(
    namespace: Namespace, store: RedisServer, runner: PodRunner, name: str
) -> None:
    semaphore = Semaphore(store, namespace.name, "copy")
    original = namespace.create(pod(name, opted_in("copy", 2, 600)))["metadata"]["name"]
    eventually(lambda: semaphore.confirmed() == 1, "the original's sidecar runs")

    code, printed = namespace.kubectl("create", "-f", "-", stdin=copied(namespace, original, "copy"))

    assert code == 0, printed
    expect_own(namespace, semaphore, original, "copy")
    eventually(lambda: semaphore.confirmed() == 2, "both sidecars run")
    namespace.delete("copy")
    eventually(lambda: semaphore.held == 1, "the copy's permit is back")
    assert list(semaphore.leases) == [permit_of(namespace.get(original))]


@pytest.mark.usefixtures("webhook")
def test_a_copy_under_the_generated_name_of_a_running_pod_gets_a_permit_of_its_own(
    namespace: Namespace, store: RedisServer, runner: PodRunner
) -> None:
    semaphore = Semaphore(store, namespace.name, "copy")
    original = namespace.create(pod("generated-", opted_in("copy", 2, 600)))["metadata"]["name"]
    eventually(lambda: semaphore.confirmed() == 1, "the original's sidecar runs")
    copy = copied(namespace, original, "")
    del copy["metadata"]["name"]

    name = namespace.create(copy)["metadata"]["name"]

    expect_own(namespace, semaphore, original, name)


@pytest.mark.xfail(strict=True, reason="nothing tells such a copy from its original, asked about again")
@pytest.mark.usefixtures("webhook")
def test_a_copy_under_the_generated_name_of_a_pod_that_was_only_just_stored_gets_a_permit_of_its_own(
    namespace: Namespace, store: RedisServer
) -> None:
    semaphore = Semaphore(store, namespace.name, "copy")
    held_back = pod("generated-", opted_in("copy", 2, 600), schedulingGates=[{"name": "example.com/hold"}])
    original = namespace.create(held_back)["metadata"]["name"]
    copy = copied(namespace, original, "")
    del copy["metadata"]["name"]

    name = namespace.create(copy)["metadata"]["name"]

    expect_own(namespace, semaphore, original, name)
