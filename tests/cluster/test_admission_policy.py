"""What admission has put into a pod stays as it is: the shipped ValidatingAdmissionPolicy at a real API server."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.e2e import SIDECAR, Namespace, eventually, opted_in, pod
from tests.cluster.gating import FENCING_TOKEN, GATE, LABEL, gates, remove_gate
from tests.cluster.manifests import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devcluster.controlplane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("registered")]

REFUSED = "ValidatingAdmissionPolicy 'at-least-semaphore-pod-hook"
EVERYTHING_WITH_PODS = {
    "apiGroups": [""],
    "resources": ["pods", "pods/ephemeralcontainers", "pods/resize", "pods/exec", "pods/attach"],
    "verbs": ["*"],
}
IMAGE = "example.invalid/other:1"
VOLUME = f"dev-{SIDECAR}"


class Tenant:
    """Somebody who may do everything with the pods of a namespace, and nothing else."""

    def __init__(self, namespace: Namespace, kubeconfig: Path) -> None:
        self._namespace = namespace
        self._kubeconfig = f"--kubeconfig={kubeconfig}"

    def kubectl(self, *arguments: str) -> str:
        """Return what kubectl prints, empty where it did what it was told to."""
        code, printed = self._namespace.kubectl(self._kubeconfig, *arguments)
        return printed if code else ""

    def patch(self, name: str, change: object, *given: str) -> str:
        """Change a pod by a strategic merge patch."""
        return self.kubectl("patch", "pod", name, f"--patch={json.dumps(change)}", *given)


@pytest.fixture
def tenant(namespace: Namespace, control_plane: ControlPlane) -> Tenant:
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "tenant"}, "rules": [EVERYTHING_WITH_PODS]}
    namespace.apply(role)
    user = f"tenant-of-{namespace.name}"
    assert namespace.kubectl("create", "rolebinding", "tenant", "--role=tenant", f"--user={user}")[0] == 0
    found = Tenant(namespace, control_plane.user_kubeconfig(user))
    eventually(lambda: not found.kubectl("get", "pods"), "the tenant has his rights")
    probe = pod("probe")
    probe["metadata"]["labels"] = {LABEL: "probe"}
    namespace.create(probe)
    values = itertools.count()

    def refused() -> bool:
        return REFUSED in found.kubectl("label", "pod", "probe", f"{LABEL}=probe-{next(values)}", "--overwrite")

    eventually(refused, "the policy works")
    return found


@pytest.fixture
def holder(namespace: Namespace, tenant: Tenant) -> str:
    """A pod that has a permit."""
    made = pod("holder", opted_in("database", 1))
    # As a sidecar has that is given something to read, here that of a variant: ours has none, and gets rid of others.
    made["spec"]["volumes"] = [{"name": VOLUME, "emptyDir": {}}]
    namespace.create(made)
    eventually(lambda: gates(namespace.get("holder")) == [], "the pod has its permit")
    return "holder"


@pytest.fixture
def waiter(namespace: Namespace, holder: str) -> str:
    """A pod that waits for that permit."""
    namespace.create(pod("waiter", opted_in("database", 1)))
    assert gates(namespace.get("waiter")) == [GATE]
    return "waiter"


def section(found: dict[str, Any]) -> str:
    """Return where the pod's sidecar is."""
    return next(each for each in ("containers", "initContainers") if SIDECAR in names(found["spec"].get(each, [])))


def names(found: list[dict[str, Any]]) -> set[str]:
    return {each["name"] for each in found}


def test_a_waiter_stays_in_line(namespace: Namespace, tenant: Tenant, waiter: str) -> None:
    change = [{"op": "replace", "path": "/spec/schedulingGates", "value": []}]
    said = tenant.kubectl("patch", "pod", waiter, "--type=json", f"--patch={json.dumps(change)}")
    assert REFUSED in said
    assert "spec.schedulingGates" in said
    assert gates(namespace.get(waiter)) == [GATE]


def test_the_sidecar_stays_as_it_is(namespace: Namespace, tenant: Tenant, holder: str) -> None:
    before = namespace.get(holder)
    change = {"spec": {section(before): [{"name": SIDECAR, "image": IMAGE}]}}
    assert "stays as it was admitted" in tenant.patch(holder, change)
    limits = {"spec": {section(before): [{"name": SIDECAR, "resources": {"requests": {"cpu": "1m"}}}]}}
    assert "stays as it was admitted" in tenant.patch(holder, limits, "--subresource=resize")
    assert namespace.get(holder)["spec"] == before["spec"]


@pytest.mark.parametrize("name", ["at-least-semaphore-pod", "key", "length", "expiration"])
@pytest.mark.parametrize("value", ["7", None])
def test_what_a_pod_asked_for_stays(
    namespace: Namespace, tenant: Tenant, holder: str, name: str, value: str | None
) -> None:
    before = namespace.get(holder)["metadata"]["annotations"]
    said = tenant.patch(holder, {"metadata": {"annotations": {f"{PREFIX}{name}": value}}})
    assert REFUSED in said
    assert "metadata.annotations" in said
    assert namespace.get(holder)["metadata"]["annotations"] == before


@pytest.mark.parametrize("name", [FENCING_TOKEN, f"{PREFIX}anything", f"dev.{PREFIX}fencing-token"])
def test_nobody_adds_what_is_ours_to_say(tenant: Tenant, waiter: str, name: str) -> None:
    assert REFUSED in tenant.kubectl("annotate", "pod", waiter, f"{name}=1000000", "--overwrite")


@pytest.mark.parametrize("change", ["-", "=other"])
def test_the_label_stays(tenant: Tenant, holder: str, change: str) -> None:
    assert "metadata.labels" in tenant.kubectl("label", "pod", holder, f"{LABEL}{change}", "--overwrite")


def ephemeral(**more: object) -> dict[str, Any]:
    return {"spec": {"ephemeralContainers": [{"name": "debug", "image": IMAGE, **more}]}}


def test_ephemeral_containers_leave_the_sidecar_alone(namespace: Namespace, tenant: Tenant, holder: str) -> None:
    by = "--subresource=ephemeralcontainers"
    said = tenant.patch(holder, ephemeral(targetContainerName=SIDECAR), by)
    assert "neither the processes nor the volume" in said
    mount = {"name": VOLUME, "mountPath": "/token"}
    assert "neither the processes nor the volume" in tenant.patch(holder, ephemeral(volumeMounts=[mount]), by)
    assert "ephemeralContainers" not in namespace.get(holder)["spec"]
    # Whoever looks for a fault in his own container still can; and it is in nobody's way later on.
    assert tenant.patch(holder, ephemeral(targetContainerName="main"), by) == ""
    assert tenant.kubectl("label", "pod", holder, "looked-at=yes") == ""


@pytest.mark.parametrize("how", ["exec", "attach"])
def test_nobody_works_in_the_sidecar(tenant: Tenant, holder: str, how: str) -> None:
    command = ("--", "kill", "1") if how == "exec" else ()
    assert "is not for others' commands" in tenant.kubectl(how, holder, f"--container={SIDECAR}", *command)
    # No kubelet runs here: what is let through ends there.
    said = tenant.kubectl(how, holder, "--container=main", *command)
    assert said
    assert "ValidatingAdmissionPolicy" not in said


@pytest.mark.parametrize(
    "act",
    [
        lambda tenant: tenant.kubectl("annotate", "pod", "waiter", "mine=1"),
        lambda tenant: tenant.kubectl("label", "pod", "waiter", "mine=1"),
        lambda tenant: tenant.patch("waiter", {"spec": {"containers": [{"name": "main", "image": IMAGE}]}}),
        lambda tenant: tenant.patch("waiter", {"spec": {"activeDeadlineSeconds": 3600}}),
        lambda tenant: (
            tenant.patch("waiter", {"metadata": {"finalizers": ["example.com/kept"]}})
            or tenant.patch("waiter", {"metadata": {"finalizers": None}})
        ),
        lambda tenant: tenant.kubectl("delete", "pod", "waiter", "--wait=false"),
    ],
    ids=["annotation", "label", "image", "deadline", "finalizers", "deletion"],
)
@pytest.mark.usefixtures("waiter")
def test_all_else_is_the_users_own(tenant: Tenant, act: Callable[[Tenant], str]) -> None:
    assert act(tenant) == ""


def test_an_administrator_may(namespace: Namespace, tenant: Tenant, waiter: str) -> None:
    remove_gate(namespace, waiter, GATE)
    assert gates(namespace.get(waiter)) == []
    assert tenant.kubectl("annotate", "pod", waiter, "mine=1") == ""


def test_the_controller_may_and_hands_on(namespace: Namespace, holder: str, waiter: str) -> None:
    namespace.delete(holder, grace=0)
    eventually(lambda: gates(namespace.get(waiter)) == [], "the waiter has the permit")
    assert namespace.get(waiter)["metadata"]["annotations"][FENCING_TOKEN]


def test_the_policy_has_no_warnings_about_its_types(control_plane: ControlPlane) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/at-least-semaphore-pod-hook"

    def checked() -> bool:
        status = control_plane.request("GET", path).get("status", {})
        return bool(status.get("observedGeneration")) and not status["typeChecking"].get("expressionWarnings")

    eventually(checked, "the API server has found no fault in the expressions")
