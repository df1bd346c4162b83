"""The controller's watch of a real API server, over all that can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

import pytest

from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from at_least_semaphore_pod_hook.controller import connection, kube
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder, PodPage
from at_least_semaphore_pod_hook.errors import ApiGoneError
from devcluster.controlplane import ControlPlane
from devcluster.kubeapi import KubeApi
from tests.cluster.watching import (
    HERE,
    PODS,
    PREFIX,
    Copy,
    Proxy,
    connected,
    create,
    delete,
    forget_versions,
    in_parallel,
    pod,
    selector,
    write_kubeconfig,
)

pytestmark = pytest.mark.cluster


async def test_1200_pods_are_listed_page_by_page_and_followed(plane: ControlPlane, kubeconfig: Path) -> None:
    names = [f"many-{number:04}" for number in range(1200)]
    async with KubeApi(plane.kubeconfig) as api, connected(kubeconfig) as client:
        await create(api, "many", names)
        started, cpu = time.monotonic(), time.process_time()
        pods, version = await client.list_pods(selector("many"))
        print(f"1,200 pods listed in {time.monotonic() - started:.2f} s, {time.process_time() - cpu:.2f} s of CPU")
        assert sorted(found.name for found in pods) == names
        assert int(version) > 0
        one = pods[0]
        assert one.sidecar is not None
        assert (one.sidecar.semaphore, one.sidecar.permit) == ("default/many", f"permit-{one.name}")
        assert one.gates == (PREFIX + "permit",)
        assert abs(one.created - time.time()) < 120
        async with Copy(client, selector("many")).running() as copy:
            assert copy.names == set(names)
            assert await client.get_pod("default", names[0]) is not None
            await delete(api, names[:200])
            print(f"200 deletions seen {await copy.until(set(names[200:])):.3f} s after the last was answered")
            assert await client.get_pod("default", names[0]) is None
            await create(api, "many", names[:10])
            await copy.until(set(names[200:] + names[:10]))
            kinds = [kind for kind, _ in copy.changes]
            assert (kinds.count("added"), kinds.count("deleted")) == (1210, 200)


async def test_memory_of_1000_pods(plane: ControlPlane, kubeconfig: Path) -> None:
    names = [f"memory-{number:04}" for number in range(1000)]
    changes = 2000
    async with KubeApi(plane.kubeconfig) as api:
        await create(api, "memory", names)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(HERE / "watch_memory.py"), str(kubeconfig), selector("memory"), "1000", str(changes)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"listed\n"
        patch = {"metadata": {"annotations": {PREFIX + "touched": ""}}}
        for number in range(changes // len(names)):
            patch["metadata"]["annotations"][PREFIX + "touched"] = str(number)
            await in_parallel(
                [
                    lambda name=name: api.request("PATCH", f"{PODS}/{name}", patch, "application/merge-patch+json")  # type: ignore[misc]
                    for name in names
                ]
            )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        figures = json.loads(out)
        print(json.dumps({name: round(figure, 2) for name, figure in figures.items()}))
        await delete(api, names)
    assert figures["listed"] - figures["before"] < 12
    assert figures["changed"] - figures["before"] < 12


async def test_what_happens_while_versions_are_lost_is_found(
    plane: ControlPlane, kubeconfig: Path, tmp_path: Path
) -> None:
    proxy = Proxy(plane.port)
    async with KubeApi(plane.kubeconfig) as api, proxy.serving() as url:
        await create(api, "lost", [f"lost-{number}" for number in range(6)])
        behind = write_kubeconfig(tmp_path / "kubeconfig", plane, url, kubeconfig.parent / "token")
        async with connected(behind) as client, Copy(client, selector("lost")).running() as copy:
            _, version = await client.list_pods(selector("lost"))
            uid = copy.reflector.pods["default", "lost-1"].uid
            proxy.cut = True
            proxy.sever()
            await delete(api, ["lost-0", "lost-1", "lost-2"])
            await create(api, "lost", ["lost-1", "lost-new"])
            await asyncio.to_thread(forget_versions, plane)
            proxy.cut = False
            took = await copy.until({"lost-1", "lost-3", "lost-4", "lost-5", "lost-new"})
            print(f"copy right again {took:.2f} s after the way was free")
            assert copy.reflector.pods["default", "lost-1"].uid != uid
            ends = {name for kind, name in copy.changes if kind == "deleted"}
            assert ends == {"lost-0", "lost-1", "lost-2"}
            # And this is what the API server said.
            with pytest.raises(ApiGoneError, match=r"410 (Gone|Expired): too old resource version"):
                async for _ in client.watch_pods(selector("lost"), version):
                    pass
            # The watch works after it.
            await delete(api, ["lost-3"])
            await copy.until({"lost-1", "lost-4", "lost-5", "lost-new"}, 5)


async def test_a_list_that_expires_between_two_pages(
    plane: ControlPlane, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "PAGE", 2)
    pages = 0

    class Slow(PodDecoder):
        def page(self, body: bytes) -> PodPage:
            nonlocal pages
            pages += 1
            if pages == 1:
                plane.request("DELETE", f"{PODS}/slow-4")
                forget_versions(plane)
            return super().page(body)

    async with KubeApi(plane.kubeconfig) as api:
        await create(api, "slow", [f"slow-{number}" for number in range(5)])
        client = Kube(Connection.open(str(kubeconfig)), Slow(PREFIX, SIDECAR_NAME))
        with pytest.raises(ApiGoneError, match="410 Expired"):
            await client.list_pods(selector("slow"))
        async with Copy(client, selector("slow")).running() as copy:
            assert copy.names == {"slow-0", "slow-1", "slow-2", "slow-3"}
        await client.close()


async def test_a_restart_of_the_api_server_in_the_midst_of_changes(plane: ControlPlane, kubeconfig: Path) -> None:
    async with (
        KubeApi(plane.kubeconfig) as api,
        connected(kubeconfig) as client,
        Copy(client, selector("busy")).running() as copy,
    ):
        there: set[str] = set()
        stop = asyncio.Event()

        async def change() -> None:
            number = 0
            while not stop.is_set():
                name = f"busy-{number}"
                number += 1
                with contextlib.suppress(Exception):
                    await api.request("POST", PODS, pod(name, "busy"))
                there.add(name)
                if number % 3 == 0:
                    await api.request("DELETE", f"{PODS}/{name}")
                    there.discard(name)

        changing = asyncio.create_task(change())
        await asyncio.sleep(0.5)
        await asyncio.to_thread(plane.restart_apiserver)
        ready = time.monotonic()
        seen = len(copy.changes)
        await copy.reach(seen + 1)
        print(f"first change {time.monotonic() - ready:.2f} s after the API server was ready again")
        await asyncio.sleep(0.5)
        stop.set()
        await changing
        await copy.until(there)
        begun = {name for kind, name in copy.changes if kind == "added"}
        ended = {name for kind, name in copy.changes if kind == "deleted"}
        assert begun - ended == there


async def test_bookmarks_tell_of_versions_beyond_ours(plane: ControlPlane, kubeconfig: Path) -> None:
    others: list[asyncio.Future[None]] = []
    async with KubeApi(plane.kubeconfig) as api, connected(kubeconfig, watch_seconds=9) as client:
        await create(api, "mark", ["mark-0"])
        _, version = await client.list_pods(selector("mark"))
        started = time.monotonic()
        # There is no bookmark where nothing at all has happened to any pod since the watch began.
        asyncio.get_running_loop().call_later(1, lambda: others.append(asyncio.ensure_future(create(api, "o", ["o"]))))
        events = [event async for event in client.watch_pods(selector("mark"), version)]
        await asyncio.gather(*others)
        assert {event.kind for event in events} == {"BOOKMARK"}
        assert int(events[-1].resource_version) > int(version)
        assert 8 < time.monotonic() - started < 11


async def test_a_watch_that_went_silent_is_noticed(
    plane: ControlPlane, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_GRACE_SECONDS", 1)
    proxy = Proxy(plane.port)
    async with KubeApi(plane.kubeconfig) as api, proxy.serving() as url:
        behind = write_kubeconfig(tmp_path / "kubeconfig", plane, url, kubeconfig.parent / "token")
        async with connected(behind, watch_seconds=4) as client, Copy(client, selector("mute")).running() as copy:
            await create(api, "mute", ["mute-0"])
            await copy.until({"mute-0"})
            proxy.freeze()
            await create(api, "mute", ["mute-1"])
            took = await copy.until({"mute-0", "mute-1"})
            print(f"seen {took:.1f} s after the connection went dead, with a watch of 4 s and a grace of 1 s")
            assert 0.5 < took < 7
