"""Opted-in pods pass the Pod Security Standard restricted, whatever their mode, and so does all that is shipped."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from tests.cluster.charts import rendered
from tests.cluster.e2e import NATIVE, ORDINARY, PREFIX, Namespace, Object, opted_in, pod, sidecars
from tests.cluster.gating import replica
from tests.cluster.manifests import pod_templates
from tests.cluster.test_helm import VALUE_SETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

SECRET = "--sidecar-secret=files"
MODES: dict[str, tuple[str, ...]] = {
    "ordinary-secret": (*ORDINARY, SECRET),
    "native": NATIVE,
    "confirm": (*NATIVE, "--confirm"),
    "fence-secret": (*NATIVE, "--fence", SECRET),
}
SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
MAIN: Object = {"name": "main", "image": "none", "securityContext": SECURITY}


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> Iterator[Namespace]:
    name = "restricted"
    control_plane.create_namespace(name, {"pod-security.kubernetes.io/enforce": name})
    yield Namespace(control_plane, name)
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.mark.parametrize("mode", MODES)
def test_an_opted_in_pod_in_every_mode(
    restricted: Namespace, account: Path, store: RedisServer, registration: Registration, tmp_path: Path, mode: str
) -> None:
    with replica(tmp_path, store, account, "--when-full=deny", sidecars=MODES[mode]) as webhook:
        registration.use(webhook)
        for when_full in ("deny", "gate"):
            annotations = opted_in(mode, 9) | {f"{PREFIX}when-full": when_full}
            created = restricted.create(pod(f"{mode}-{when_full}", annotations, containers=[MAIN]))
            (sidecar,) = sidecars(created)
            assert ("startupProbe" in sidecar) is (mode in {"confirm", "fence-secret"})
            mounted = [mount["name"] for mount in sidecar["volumeMounts"]]
            assert (sidecar["name"] in mounted) is ("secret" in mode)
        registration.remove()
    # The control: it is the sidecar's own security context by which it passes.
    naked = pod(f"{mode}-naked", {}, **copy.deepcopy(created["spec"]))
    (sidecar,) = sidecars(naked)
    del sidecar["securityContext"]
    naked["spec"].pop("schedulingGates", None)
    refused = restricted.try_create(naked, dryRun="All")
    assert refused.status == 403
    assert f'"{sidecar["name"]}" must set securityContext' in refused.message


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_pod_of_the_chart(restricted: Namespace, values: str) -> None:
    templates = list(pod_templates(rendered(*VALUE_SETS[values])))
    # What waits for a removal as well.
    assert any("release-gates" in name for name, _ in templates) or values == "little"
    for name, template in templates:
        spec = copy.deepcopy(template["spec"])
        # What would have to be there, and is not Pod Security's business; a claim's volume is the StatefulSet's to add.
        for missing in ("serviceAccountName", "priorityClassName"):
            spec.pop(missing, None)
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        for container in spec["containers"]:
            mounts = container.get("volumeMounts", ())
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] in volumes]
        made = pod(name.lower().replace(" ", "-"), {}, **spec)
        answer = restricted.try_create(made, dryRun="All")
        assert answer.status == 201, (name, answer.message)
        assert not answer.warnings
