"""What confirming and fencing add to a pod: the probes, and who gets which port."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from typing import Any

import pytest

from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.admission.inject import DYNAMIC_PORTS
from tests.unit.fakes import PREFIX, notes, pod
from tests.unit.webhook import Webhook, permit_of, sidecars

PORT = 9779
HOST: dict[str, Any] = {"hostNetwork": True}


def probe(port: int = PORT) -> dict[str, Any]:
    return {
        "tcpSocket": {"port": port},
        "periodSeconds": 1,
        "timeoutSeconds": 1,
        "failureThreshold": 1,
        "terminationGracePeriodSeconds": 1,
    }


def confirming(**changes: Any) -> Webhook:
    return Webhook(native=True, confirm_port=PORT, **changes)


def fencing(**changes: Any) -> Webhook:
    return confirming(fence=True, **changes)


def sidecar_of(created: dict[str, Any]) -> dict[str, Any]:
    ((section, sidecar),) = sidecars(created)
    assert section == "initContainers"
    return sidecar


def port_of(created: dict[str, Any]) -> int:
    """The port of a pod, which is the same everywhere in it."""
    sidecar = sidecar_of(created)
    (named,) = (int(arg.partition("=")[2]) for arg in sidecar["args"] if arg.startswith("--confirm-port="))
    assert sidecar["startupProbe"]["tcpSocket"] == {"port": named}
    for container in created["spec"]["containers"]:
        assert container.get("livenessProbe") in (None, probe(named))
    return named


def with_defaults(created: dict[str, Any]) -> dict[str, Any]:
    """Fill in what an API server fills in between two rounds."""
    filled = copy.deepcopy(created)
    for container in (*filled["spec"]["containers"], *filled["spec"]["initContainers"]):
        for name in ("startupProbe", "livenessProbe"):
            if name in container:
                container[name]["successThreshold"] = 1
    return filled


async def test_the_golden_patch_of_a_pod_that_is_confirmed() -> None:
    created = await confirming().create(pod())
    sidecar = sidecar_of(created)
    assert sidecar["startupProbe"] == {
        "tcpSocket": {"port": PORT},
        "periodSeconds": 1,
        "timeoutSeconds": 1,
        "failureThreshold": 2147483647,
    }
    assert sidecar["args"] == [
        "sidecar",
        "--log-level=info",
        f"--confirm-port={PORT}",
        "default/resource-name",
        permit_of(created),
    ]
    assert created["spec"]["containers"] == pod()["spec"]["containers"]


async def test_the_golden_patch_of_a_fence() -> None:
    response = await fencing().ask(pod(spec={"containers": [{"name": "a"}, {"name": "b", "livenessProbe": None}]}))
    operations = json.loads(b64decode(response["patch"]))
    assert operations[:2] == [
        {"op": "add", "path": "/spec/containers/0/livenessProbe", "value": probe()},
        {"op": "add", "path": "/spec/containers/1/livenessProbe", "value": probe()},
    ]
    (sidecar,) = operations[-1]["value"]
    assert sidecar["args"][2:4] == [f"--confirm-port={PORT}", "--fence=true"]
    assert "warnings" not in response


@pytest.mark.parametrize("when_full", WhenFull)
async def test_a_container_with_a_liveness_probe_of_its_own_keeps_it_and_is_warned_of(when_full: WhenFull) -> None:
    webhook = fencing(when_full=when_full)
    own = {"httpGet": {"path": "/", "port": 80}}
    made = pod(spec={"containers": [{"name": "main", "livenessProbe": own}, {"name": "other"}]})
    response = await webhook.ask(made)
    assert response["warnings"] == [
        "container 'main' has a livenessProbe of its own, so --fence does not stop it when the lease ends"
    ]
    created = await webhook.create(made)
    assert [container["livenessProbe"] for container in created["spec"]["containers"]] == [own, probe()]


@pytest.mark.parametrize("when_full", WhenFull)
@pytest.mark.parametrize(
    ("policy", "grace", "expiration", "left"),
    [
        ("Never", None, "30", 3),
        ("Never", 4, "30", 3),
        ("Never", 3, "30", None),
        ("Never", 14, "600", 13),
        ("Never", 13, "600", None),
        ("OnFailure", 30, "30", None),
        (None, 30, "30", None),
    ],
)
async def test_a_pod_that_may_end_too_late_for_its_fence_is_warned_of(
    when_full: WhenFull, policy: str | None, grace: int | None, expiration: str, left: int | None
) -> None:
    spec = {"restartPolicy": policy, "terminationGracePeriodSeconds": grace}
    response = await fencing(when_full=when_full).ask(
        pod(spec=spec, metadata={"annotations": notes(expiration=expiration)})
    )
    warnings = response.get("warnings", [])
    assert len(warnings) == (left is not None)
    for warning in warnings:
        assert f"terminationGracePeriodSeconds {grace or 30}, --fence may be too late" in warning
        assert warning.endswith(f": {left} or less is in time")


@pytest.mark.parametrize("spec", [{}, HOST])
@pytest.mark.parametrize("when_full", WhenFull)
@pytest.mark.parametrize("name", ["web-0", None])
async def test_a_reinvocation_changes_nothing(spec: dict[str, Any], when_full: WhenFull, name: str | None) -> None:
    webhook = fencing(when_full=when_full)
    once = await webhook.create(pod(name, spec=spec))
    webhook.now += 1
    for again in (once, with_defaults(once)):
        response = await webhook.ask(again)
        assert response["allowed"]
        assert "patch" not in response
        assert "warnings" not in response


@pytest.mark.parametrize("when_full", WhenFull)
async def test_pods_that_share_a_nodes_ports_get_ports_of_their_own(when_full: WhenFull) -> None:
    webhook = fencing(when_full=when_full)
    ports = set()
    for _ in range(3):
        # As a ReplicaSet makes them: the same request each time.
        ports.add(port_of(await webhook.create(pod(None, spec=HOST))))
        webhook.now += 0.001
    assert len(ports) == 3
    assert all(port in DYNAMIC_PORTS for port in ports)
    assert port_of(await Webhook(native=True, confirm_port=7).create(pod())) == 7


async def test_a_copys_probes_follow_its_own_port() -> None:
    webhook = fencing()
    original = await webhook.create(pod(None, spec=HOST))
    copied = copy.deepcopy(original)
    copied["metadata"] = {"name": "copy", "uid": "u", "annotations": notes()}
    created = await webhook.create(with_defaults(copied))
    assert port_of(created) != port_of(original)
    assert created["spec"]["containers"][0]["livenessProbe"] == probe(port_of(created))


@pytest.mark.parametrize("other", [Webhook(), Webhook(native=True), confirming()])
async def test_a_copy_that_is_not_fenced_any_more_loses_its_probes(other: Webhook) -> None:
    """Nobody would open their port."""
    own = {"httpGet": {"path": "/", "port": 80}, "successThreshold": 1}
    containers = [{"name": "main"}, {"name": "own", "livenessProbe": own}]
    copied = with_defaults(await fencing().create(pod(spec={"containers": containers})))
    copied["metadata"]["name"] = "copy"
    created = await other.create(copied)
    left = [container for container in created["spec"]["containers"] if container["name"] in {"main", "own"}]
    assert left == containers


@pytest.mark.parametrize("when_full", WhenFull)
async def test_an_expiration_that_leaves_no_time_to_stop_is_refused(when_full: WhenFull) -> None:
    short = pod(metadata={"name": "short", "annotations": notes(expiration="9")})
    webhook = fencing(when_full=when_full)
    response = await webhook.ask(short)
    assert response["status"]["code"] == 400
    assert response["status"]["message"] == (
        f"annotation {PREFIX}expiration: '9' is not accepted: "
        "it takes a whole number of seconds from 10 to 86400 with --fence"
    )
    assert webhook.store.calls == []
    assert (await confirming().ask(short))["allowed"]
    assert (await webhook.ask(pod(metadata={"name": "ten", "annotations": notes(expiration="10")})))["allowed"]
