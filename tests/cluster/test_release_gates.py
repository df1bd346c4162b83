"""Letting all waiting pods go, as a process on a real API server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import Namespace, opted_in, pod
from tests.cluster.gating import FOREIGN, GATE, LABEL, gates, keys_of, replica, serving

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

RELEASE = [sys.executable, "-m", "at_least_semaphore_pod_hook", "webhook", "--release-gates"]


def test_all_waiting_pods_are_let_go_and_no_permit_is_taken(
    namespace: Namespace, account: Path, store: RedisServer, registration: Registration, tmp_path: Path
) -> None:
    def held(name: str, annotated: dict[str, str] | None = None) -> str:
        # The foreign gate keeps them from being served as long as somebody serves.
        made = pod(name, annotated, schedulingGates=[{"name": FOREIGN}])
        return str(namespace.create(made)["metadata"]["name"])

    with serving(replica(tmp_path, store, account)) as webhook:
        registration.use(webhook)
        names = [held("wait-", opted_in("gone", 1)) for _ in range(3)]
        stranger = held("stranger")
        registration.remove()
    assert [gates(namespace.get(name)) for name in names] == [[FOREIGN, GATE]] * 3
    # Whoever may edit a waiting pod can take our label away.
    unlabelled = {"metadata": {"labels": {LABEL: None}}}
    namespace.control_plane.request("PATCH", f"{namespace.path}/{names[0]}", unlabelled, "application/merge-patch+json")

    done = subprocess.run(
        [*RELEASE, f"--kubeconfig={account}"], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stderr.splitlines()[-1])
    assert (said["message"], said["count"]) == ("gates removed", 3)
    assert [gates(namespace.get(name)) for name in [*names, stranger]] == [[FOREIGN]] * 4
    assert keys_of(store, namespace) == []


def test_without_the_right_to_it_says_so_and_fails(control_plane: ControlPlane) -> None:
    nobody = control_plane.user_kubeconfig("system:serviceaccount:default:nobody")
    done = subprocess.run([*RELEASE, f"--kubeconfig={nobody}"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "gates not removed" in done.stderr
    assert "403 Forbidden" in done.stderr
