"""Two replicas that make and rotate their certificate themselves, with the rights of the manifests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rotation import CONFIGURATION_PATH, MERGE, SECRET_PATH, Scene, rotate
from tests.cluster.e2e import Namespace, Semaphore, eventually, metric, opted_in, pod, sidecars
from tests.cluster.gating import reported

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.podrunner import PodRunner
    from devcluster.stores import RedisServer

pytestmark = pytest.mark.cluster

ROTATIONS = 10
SETTLE_SECONDS = 0.4
RESTORED_SECONDS = 10.0


@pytest.fixture
def scene(control_plane: ControlPlane, store: RedisServer, tmp_path: Path) -> Scene:
    return Scene(control_plane, store, tmp_path, SETTLE_SECONDS)


def test_ten_rotations_under_load_fail_no_admission(scene: Scene) -> None:
    with scene:
        report = asyncio.run(rotate(scene, ROTATIONS))
        assert not report.failures
        assert report.admissions > ROTATIONS
        # The first certificate counts as one.
        assert sum(metric(each, "certificate_rotations_total") for each in scene.replicas) == ROTATIONS + 1
        assert all(metric(each, "certificate_trusted") == 1 for each in scene.replicas)
        assert not any("PRIVATE KEY" in each.log() for each in scene.replicas)


def test_what_others_spoil_is_mended(scene: Scene, control_plane: ControlPlane) -> None:
    with scene:
        scene.register(scene.replicas[0].port)
        scene.wait_ready()
        webhook = control_plane.request("GET", CONFIGURATION_PATH)["webhooks"][0]
        webhook["clientConfig"]["caBundle"] = ""
        control_plane.request("PATCH", CONFIGURATION_PATH, {"webhooks": [webhook]}, MERGE)
        eventually(lambda: scene.bundle() == scene.secret()["ca.crt"] != b"", "caBundle is restored", RESTORED_SECONDS)

        before = scene.secret()["tls.crt"]
        control_plane.request("PATCH", SECRET_PATH, {"data": {"tls.crt": "cnViYmlzaA=="}}, MERGE)
        eventually(lambda: scene.settled(before), "the Secret is mended")
        default = Namespace(control_plane, "default")
        eventually(
            lambda: ("Secret", SECRET_PATH.rpartition("/")[2]) in reported(default, "CertificateReplaced"), "it is told"
        )

        for each in scene.replicas:
            each.process.kill()
        control_plane.request("DELETE", SECRET_PATH)
        scene.replicas[1].start()
        assert scene.replicas[1].ready()


def test_sidecars_that_show_a_token_follow_a_rotation(
    control_plane: ControlPlane, store: RedisServer, namespace: Namespace, runner: PodRunner, tmp_path: Path
) -> None:
    semaphore = Semaphore(store, namespace.name, "seats")
    with Scene(control_plane, store, tmp_path, SETTLE_SECONDS, api=True) as scene:
        serving = scene.replicas[0]
        scene.register(serving.port)
        scene.wait_ready()
        made: list[str] = []

        def admitted() -> bool:
            reply = namespace.try_create(pod("held-", opted_in("seats", 9, 3)))
            made.extend(str(sidecar["args"][-1]) for sidecar in (sidecars(reply.json) if reply.status == 201 else ()))
            return bool(made)

        eventually(admitted, "the API server asks the webhook")
        eventually(lambda: semaphore.holder(made[0]).get("confirmed"), "the permit is confirmed")

        def renewed() -> None:
            before = semaphore.holder(made[0])["renewed"]
            eventually(lambda: semaphore.holder(made[0])["renewed"] > before, "it is renewed")

        before = scene.secret()["tls.crt"]
        scene.ask()
        eventually(lambda: scene.settled(before), "the certificate is rotated")
        renewed()
        renewed()
        # The next connection is to the new certificate, whose authority came with an answer.
        serving.process.kill()
        serving.start()
        renewed()
