"""The controller's rights and writes at a real API server, and the election of its leader."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from at_least_semaphore_pod_hook.controller.kube import OWNERS, Reference, Written
from at_least_semaphore_pod_hook.errors import ApiForbiddenError, ApiUnavailableError
from devcluster.controlplane import ControlPlane
from devcluster.kubeapi import KubeApi
from devcluster.process import Process
from tests.cluster.watching import (
    HERE,
    NAMESPACE,
    PREFIX,
    connected,
    create,
    pod,
    selector,
    token,
    write_kubeconfig,
)

pytestmark = pytest.mark.cluster


async def test_a_token_that_is_not_valid_any_more_is_read_anew(
    plane: ControlPlane, kubeconfig: Path, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("expired")
    own = write_kubeconfig(tmp_path / "kubeconfig", plane, plane.url, file)
    async with connected(own) as client:
        with pytest.raises(ApiUnavailableError, match="401 Unauthorized"):
            await client.list_pods(selector("none"))
        file.write_text(token(plane))
        assert (await client.list_pods(selector("none")))[0] == []


async def test_the_rights_are_enough_and_are_needed(plane: ControlPlane, kubeconfig: Path) -> None:
    nobody = plane.user_kubeconfig("nobody")
    async with KubeApi(plane.kubeconfig) as api, connected(kubeconfig) as client, connected(nobody) as refused:
        await create(api, "rights", ["rights-0"])
        found = await client.get_pod("default", "rights-0")
        assert found is not None
        gate = {"path": "/spec/schedulingGates/0"}
        ungate: list[dict[str, Any]] = [
            {"op": "test", **gate, "value": {"name": PREFIX + "permit"}},
            {"op": "remove", **gate},
        ]
        assert await client.patch_pod("default", "rights-0", ungate) is Written.DONE
        assert await client.patch_pod("default", "rights-0", ungate) is Written.CONFLICT
        assert await client.patch_pod("default", "rights-9", ungate) is Written.MISSING
        with pytest.raises(ApiUnavailableError, match="is invalid"):
            await client.patch_pod("default", "rights-0", [{"op": "replace", "path": "/spec/nodeName", "value": "?"}])
        labels = {"app": "none"}
        template = {"metadata": {"labels": labels}, "spec": pod("x", "none")["spec"] | {"restartPolicy": "Always"}}
        created = await api.request(
            "POST",
            "/apis/apps/v1/namespaces/default/replicasets",
            {
                "metadata": {"name": "set"},
                "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
            },
        )
        owner = Reference("apps/v1", "ReplicaSet", "default", "set", created["metadata"]["uid"])
        assert await client.touch_owner("ReplicaSet", "default", "set", PREFIX + "wake", "1") == owner
        assert await client.create_event(owner, "Woken", "a permit is free", action="Wake") is Written.DONE
        assert "a permit is free" in plane.kubectl("describe", "replicaset", "set").stdout
        for kind in OWNERS:
            assert await client.touch_owner(kind, "default", "none", PREFIX + "wake", "1") is None
        about = Reference("v1", "Pod", "default", found.name, found.uid)
        assert await client.create_event(about, "Waiting", "at position 1", action="Wait") is Written.DONE
        gone = about._replace(namespace="nowhere")
        assert await client.create_event(gone, "Waiting", "at position 1", action="Wait") is Written.MISSING
        assert "at position 1" in plane.kubectl("describe", "pod", found.name).stdout
        assert await client.node_ready(plane.node) is True
        assert await client.node_ready("none") is None
        for attempt in (
            refused.list_pods(selector("rights")),
            refused.get_pod("default", "rights-0"),
            refused.patch_pod("default", "rights-0", ungate),
            refused.touch_owner("Job", "default", "x", "a/b", "1"),
            refused.create_event(about, "Waiting", "n", action="Wait"),
            refused.node_ready(plane.node),
            refused.get_lease(NAMESPACE, "leader"),
        ):
            with pytest.raises(ApiForbiddenError):
                await attempt
        with pytest.raises(ApiForbiddenError):
            [event async for event in refused.watch_pods(selector("rights"), "1")]


async def test_writes_to_many_pods(plane: ControlPlane, kubeconfig: Path) -> None:
    names = [f"write-{number}" for number in range(400)]
    async with KubeApi(plane.kubeconfig) as api, connected(kubeconfig) as client:
        await create(api, "write", names)
        patch: list[dict[str, Any]] = [{"op": "remove", "path": "/spec/schedulingGates/0"}]
        started, cpu = time.monotonic(), time.process_time()
        results = await asyncio.gather(*(client.patch_pod("default", name, patch) for name in names))
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        assert set(results) == {Written.DONE}
        print(f"400 patches at {400 / seconds:.0f} /s, {cpu / 400 * 1e3:.2f} ms of our CPU each")


def test_the_role_of_the_leader_changes_hands(plane: ControlPlane, kubeconfig: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def candidate(identity: str) -> Process:
        argv = [sys.executable, str(HERE / "candidate.py"), str(kubeconfig), NAMESPACE, identity, str(log)]
        return Process(identity, argv, tmp_path / f"{identity}.log")

    def said(what: str) -> list[tuple[float, str]]:
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(float(line[0]), line[1]) for line in lines if line[2] == what]

    def wait(what: str, count: int, seconds: float) -> tuple[float, str]:
        deadline = time.monotonic() + seconds
        while len(said(what)) < count:
            assert time.monotonic() < deadline, (what, log.read_text(), (tmp_path / "one.log").read_text())
            time.sleep(0.02)
        return said(what)[count - 1]

    def leader() -> dict[str, Any]:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/leader"
        return dict(plane.request("GET", path)["spec"])

    with candidate("one") as one:
        assert wait("started", 1, 10)[1] == "one"
        with candidate("two") as two:
            wait("stands", 2, 10)
            time.sleep(2)
            one.kill()
            killed = time.time()
            at, who = wait("started", 2, 15)
            assert who == "two"
            print(f"another leads {at - killed:.2f} s after the leader's SIGKILL")
            one.start()
            wait("stands", 3, 10)
            time.sleep(2)
            asked = time.time()
            two.signal(signal.SIGTERM)
            at, who = wait("started", 3, 5)
            assert who == "one"
            print(f"another leads {at - asked:.2f} s after the leader's SIGTERM")
            assert at - asked < 2
            stopped, who = said("stopped")[-1]
            assert who == "two"
            assert stopped < at
        assert (leader()["holderIdentity"], leader()["leaseTransitions"]) == ("one", 2)
        # Whether or not an API server that is away costs the role, it is taken up again after it.
        plane.restart_apiserver()
        ready = time.time()
        deadline = time.monotonic() + 10
        while datetime.fromisoformat(leader()["renewTime"]).timestamp() < ready:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert leader()["holderIdentity"] == "one"
        assert said("started")[-1][1] == "one"
