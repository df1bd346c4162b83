"""What people run by hand, on a real API server and a real store: status, release, and kubectl's plugin."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster.e2e import (
    PATIENCE_SECONDS,
    SIDECAR,
    Namespace,
    Object,
    Semaphore,
    eventually,
    opted_in,
    permit_of,
    pod,
)
from tests.cluster.gating import bind, events, gates

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("registered")]

KEY = "seats"
MODULE = "at_least_semaphore_pod_hook"
Finished = subprocess.CompletedProcess[str]


def environment(**more: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AT_LEAST_SEMAPHORE_")}
    return mine | {"TERM": "xterm"} | more


def run(*arguments: str, stdin: str = "", **env: str) -> Finished:
    return subprocess.run(
        [sys.executable, "-m", MODULE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env=environment(**env),
    )


@pytest.fixture
def where(store: RedisServer, account: Path) -> list[str]:
    """Flags for store and API server, as whom the manifests let."""
    return [f"--queue-redis-address={store.address}", f"--kubeconfig={account}"]


def let_in(namespace: Namespace, name: str) -> None:
    eventually(lambda: not gates(namespace.get(name)), f"{name} is let in")


@pytest.fixture
def crowd(namespace: Namespace) -> Namespace:
    """Two permits, one of whose holders has a node, and two waiters."""
    for number in range(4):
        namespace.create(pod(f"web-{number}", opted_in(KEY, 2)))
        if number < 2:
            let_in(namespace, f"web-{number}")
    bind(namespace, "web-0", "node-1")
    return namespace


def document(printed: str) -> Any:
    (semaphore,) = json.loads(printed)["semaphores"]
    return semaphore


def test_status_names_holders_with_nodes_and_waiters_in_order(crowd: Namespace, where: list[str]) -> None:
    done = run("status", *where, f"{crowd.name}/{KEY}", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    semaphore = document(done.stdout)
    assert [semaphore[name] for name in ("length", "free", "held", "waiting")] == [2, 0, 2, 2]
    assert [(holder["pod"], holder["node"]) for holder in semaphore["holders"]] == [("web-0", "node-1"), ("web-1", "")]
    assert [(waiter["position"], waiter["pod"]) for waiter in semaphore["waiters"]] == [(1, "web-2"), (2, "web-3")]
    assert semaphore["oldest_wait_since"] == semaphore["waiters"][0]["since"]
    tokens = [holder["token"] for holder in semaphore["holders"]]
    assert tokens == sorted(tokens)
    as_yaml = yaml.safe_load(run("status", *where, f"{crowd.name}/{KEY}", "-o", "yaml").stdout)
    assert [one["pod"] for one in as_yaml["semaphores"][0]["waiters"]] == ["web-2", "web-3"]
    table = run("status", *where, f"{crowd.name}/{KEY}", "-o", "wide").stdout
    for told in ("CONDITIONS", "LEASE LEFT", "node-1", "web-3", *(str(token) for token in tokens)):
        assert told in table
    assert "\x1b" not in table


def test_status_of_a_namespace_is_a_line_a_semaphore(crowd: Namespace, where: list[str]) -> None:
    done = run("status", *where, crowd.name)
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["NAMESPACE", "KEY", "LENGTH", "FREE", "HELD", "WAITING", "OLDEST", "WAIT"]
    assert [line.split()[:6] for line in lines] == [[crowd.name, KEY, "2", "0", "2", "2"]]
    assert run("status", *where, crowd.name, "--color=always").stdout.count("\x1b[33m") == 2


def test_what_is_not_there_is_said(namespace: Namespace, where: list[str]) -> None:
    one = run("status", *where, f"{namespace.name}/none")
    assert (one.returncode, one.stdout, one.stderr) == (1, "", f"there is no semaphore {namespace.name}/none\n")
    none = run("status", *where, namespace.name)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no semaphores\n")
    store = run("status", "--queue-redis-address=127.0.0.1:1")
    assert store.returncode == 1
    assert "127.0.0.1:1" in store.stderr
    assert "Traceback" not in store.stderr


def test_without_an_api_server_the_store_alone_is_shown(crowd: Namespace, store: RedisServer) -> None:
    done = run("status", f"--queue-redis-address={store.address}", f"{crowd.name}/{KEY}", KUBERNETES_SERVICE_HOST="")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[2:] == ["2", "0", "2", "?", "?"]
    assert "waiters and nodes are not known" in done.stderr


def test_a_watch_writes_a_line_of_json_each_time_and_ends_when_interrupted(crowd: Namespace, where: list[str]) -> None:
    command = [sys.executable, "-m", MODULE, "status", *where, f"{crowd.name}/{KEY}"]
    watch = [*command, "--watch", "--interval=0.2", "-o", "json"]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout
        assert document(process.stdout.readline())["waiting"] == 2
        crowd.delete("web-3", grace=0)
        for line in process.stdout:
            if document(line)["waiting"] == 1:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130


def test_a_watch_on_a_terminal_is_redrawn_in_colour_unless_that_is_not_wanted(
    crowd: Namespace, where: list[str]
) -> None:
    for plain in (False, True):
        parent, child = pty.openpty()
        command = [sys.executable, "-m", MODULE, "status", *where, crowd.name, "--watch", "--interval=0.2"]
        env = environment(**({"NO_COLOR": "1"} if plain else {}))
        with subprocess.Popen(command, stdout=child, stdin=child, stderr=child, env=env) as process:
            shown = b""
            while shown.count(b"\x1b[2J") < 2:
                shown += os.read(parent, 4096)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 130
        os.close(parent)
        os.close(child)
        assert (b"\x1b[33m" in shown) is not plain


def start(namespace: Namespace, name: str) -> None:
    """Report, as a kubelet does, that all of a pod's containers run."""
    running = {
        "ready": True,
        "started": True,
        "restartCount": 0,
        "image": "none",
        "imageID": "",
        "state": {"running": {}},
    }
    status = {
        "phase": "Running",
        "containerStatuses": [{"name": "main", **running}],
        "initContainerStatuses": [{"name": SIDECAR, **running}],
    }
    path = f"{namespace.path}/{name}/status"
    namespace.control_plane.request("PATCH", path, {"status": status}, "application/strategic-merge-patch+json")


def held_by(namespace: Namespace, name: str) -> str:
    return permit_of(namespace.get(name)).replace("$(POD_UID)", str(namespace.get(name)["metadata"]["uid"]))


def test_a_permit_is_released_after_asking(crowd: Namespace, where: list[str], store: RedisServer) -> None:
    semaphore, permit = Semaphore(store, crowd.name, KEY), held_by(crowd, "web-0")
    for answer in ("", "n\n", "no\n"):
        declined = run("release", *where, f"{crowd.name}/{KEY}", permit, stdin=answer)
        assert declined.returncode == 3
        assert "held by pod web-0, whose sidecar does not run: a controller gives the pod the next" in declined.stderr
    assert permit in semaphore.leases
    start(crowd, "web-0")
    done = run("release", *where, f"{crowd.name}/{KEY}", permit, stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert "held by pod web-0, which runs on node node-1: another pod may be let in" in done.stderr
    logged = json.loads(done.stderr.splitlines()[-1].partition("] ")[2])
    expected = {"message": "permit released by hand", "semaphore": str(f"{crowd.name}/{KEY}"), "permit": permit}
    assert expected.items() <= logged.items()
    assert logged["pod"] == "web-0"
    let_in(crowd, "web-2")
    (event,) = eventually_events(crowd, "PermitReleased")
    assert (event["regarding"]["name"], event["type"]) == ("web-0", "Warning")


def eventually_events(namespace: Namespace, reason: str) -> list[Object]:
    eventually(lambda: events(namespace, reason), f"an Event says {reason}")
    return events(namespace, reason)


def test_only_a_permit_that_is_held_is_released(crowd: Namespace, where: list[str], store: RedisServer) -> None:
    done = run("release", *where, f"{crowd.name}/{KEY}", "0123456789abcdef", "--yes")
    assert done.returncode == 1
    assert f"permit 0123456789abcdef of {crowd.name}/{KEY} is not held" in done.stderr
    assert Semaphore(store, crowd.name, KEY).held == 2


class Plugin:
    """`kubectl semaphore` with a kubectl that runs in a webhook's container what it is told to run there.

    The control plane has no kubelet, so that an `exec` has nowhere to go: it runs beside the webhook instead. All else
    is kubectl's and the API server's.
    """

    def __init__(self, directory: Path, plane: ControlPlane, webhook: WebhookProcess) -> None:
        self._kubeconfig = plane.kubeconfig
        directory.mkdir()
        stand_in = directory / "kubectl"
        stand_in.write_text(
            f"""#!/bin/sh
case " $* " in *" exec "*) ;; *) exec {plane.binaries["kubectl"]} "$@" ;; esac
while [ "$1" != -- ]; do shift; done
shift 2
command=$1; shift 2
exec {sys.executable} -m {MODULE} "$command" --like-webhook={webhook.process.pid} "$@"
"""
        )
        stand_in.chmod(0o755)
        self._path = f"{directory}:{os.environ['PATH']}"

    def __call__(self, *arguments: str, stdin: str = "") -> Finished:
        return subprocess.run(
            [sys.executable, "-m", f"{MODULE}.kubectl_plugin", f"--kubeconfig={self._kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            env=environment(PATH=self._path),
        )


@pytest.fixture
def plugin(tmp_path: Path, control_plane: ControlPlane, controller: WebhookProcess) -> Plugin:
    return Plugin(tmp_path / "bin", control_plane, controller)


@pytest.fixture
def deployment(namespace: Namespace) -> list[str]:
    labels = {"app": "hook"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "webhook", "image": "none"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    namespace.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hook"}, "spec": spec})
    return [f"--hook-namespace={namespace.name}", "--deployment=hook"]


def test_the_plugin_runs_both_in_the_webhooks_container(
    crowd: Namespace, plugin: Plugin, deployment: list[str], store: RedisServer
) -> None:
    for words in (["status", KEY, "-n", crowd.name], [f"{crowd.name}/{KEY}"]):
        done = plugin(*deployment, *words, "-o", "json")
        assert done.returncode == 0, done.stderr
        assert document(done.stdout)["waiting"] == 2
    everywhere = plugin(*deployment, "-A")
    assert f"{crowd.name} " in everywhere.stdout
    assert plugin(*deployment).stdout == ""
    permit = held_by(crowd, "web-1")
    before = Semaphore(store, crowd.name, KEY).holder(permit)["token"]
    assert plugin(*deployment, "release", KEY, permit, "-n", crowd.name, stdin="n\n").returncode == 3
    assert plugin(*deployment, "release", KEY, permit, "-n", crowd.name, stdin="y\n").returncode == 0
    # The pod has not started, so that it was given another one, under a token of its own.
    eventually(lambda: Semaphore(store, crowd.name, KEY).holder(permit).get("token", before) != before, "a new grant")


def test_the_plugin_says_where_there_is_no_webhook(namespace: Namespace, plugin: Plugin) -> None:
    done = plugin(f"--hook-namespace={namespace.name}")
    assert done.returncode == 1
    assert done.stderr == (
        f"kubectl semaphore: there is no Deployment at-least-semaphore-pod-hook in namespace {namespace.name}: "
        "name the webhook's with --hook-namespace and --deployment\n"
    )
    nowhere = plugin("--context=none")
    assert nowhere.returncode == 1
    assert "none" in nowhere.stderr


def test_the_store_of_what_is_no_webhook_cannot_be_taken() -> None:
    done = run("status", f"--like-webhook={os.getpid()}")
    assert done.returncode == 2
    assert f"--like-webhook: {os.getpid()} is no webhook: run this in the webhook's container" in done.stderr
