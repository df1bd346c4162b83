"""`doctor` on a real API server and real servers: each thing is broken, and it says so."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from at_least_semaphore_pod_hook import cli, commands, settings
from at_least_semaphore_pod_hook.certificates.issue import issue
from at_least_semaphore_pod_hook.console.beside import webhook_arguments
from at_least_semaphore_pod_hook.console.doctor import run
from at_least_semaphore_pod_hook.console.doctor.findings import Finding, Level
from devcluster.stores import EtcdServer, RedisServer
from devcluster.webhook import SHIPPED_ACCOUNT, WebhookProcess, configuration
from tests.cluster.conftest import CONFIGURATIONS
from tests.cluster.e2e import PATIENCE_SECONDS, client_of, eventually, pod
from tests.cluster.test_e2e_status import MODULE, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devcluster.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

NAME = "at-least-semaphore-pod-hook"
IMAGE = f"{NAME}:test"
CALLED = f"{NAME}.default.svc"
DAY = 86_400

Object = dict[str, Any]
Levels = dict[str, str]


class Installation:
    """A webhook with a store and a lock, its registration, and what the API server knows to be behind its Service."""

    def __init__(self, plane: ControlPlane, account: Path, directory: Path, stack: ExitStack) -> None:
        self.plane = plane
        self.account = account
        self.servers = [
            stack.enter_context(RedisServer(directory / str(number), appendonly=True)) for number in range(3)
        ]
        self.flags = [
            f"--queue-redis-address={self.servers[0].address}",
            f"--redis-addresses={','.join(server.address for server in self.servers)}",
            f"--kubeconfig={account}",
            f"--sidecar-image={IMAGE}",
            "--enable-sidecar-containers",
        ]
        self.webhook = WebhookProcess(directory / "webhook", flags=self.flags)
        self.bundle = b""
        self.certify()
        stack.enter_context(self.webhook)

    def certify(self, *names: str, begin: float = 0.0, end: float = 30 * DAY) -> None:
        """Put a certificate of a new authority into the webhook's directory; begin and end are seconds from now."""
        made = issue(names or (CALLED, "localhost"), end - begin, time.time() + begin)
        for name, content in (("tls.key", made.key), ("tls.crt", made.certificate)):
            (self.webhook.certificates / name).write_bytes(content)
        self.bundle = made.authority.pem.encode()

    def register(self, **changes: Any) -> None:
        document = configuration("", self.bundle, **changes)
        (webhook,) = document["webhooks"]
        service = {"name": NAME, "namespace": "default", "path": "/mutate", "port": 443}
        webhook["clientConfig"] = {"service": service, "caBundle": base64.b64encode(self.bundle).decode()}
        webhook["namespaceSelector"] = changes.get(
            "namespaceSelector", yaml.safe_load(json.dumps(webhook["namespaceSelector"]).replace(NAME, "default"))
        )
        self.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(document))

    def serve(self, *ready: bool, port: int = 443, image: str = IMAGE) -> None:
        """Have the API server know a Service with so many endpoints, each with a pod."""
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME},
            "spec": {"ports": [{"port": port}]},
        }
        endpoints = []
        for number, one in enumerate(ready):
            made = pod(f"webhook-{number}", {})
            made["spec"]["containers"][0] |= {"name": "webhook", "image": image}
            self.plane.kubectl(
                "replace", "--force", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "Pod"} | made)
            )
            target = {"kind": "Pod", "name": f"webhook-{number}", "namespace": "default"}
            endpoints.append({"addresses": [f"10.0.0.{number + 1}"], "conditions": {"ready": one}, "targetRef": target})
        slices = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"port": 9443}],
        }
        for document in (service, slices):
            self.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(document))

    def examine(self, *given: str) -> Levels:
        """Return the worst level of each check, beside the webhook."""
        worst: Levels = {}
        for check, level, seen, todo in self.findings(*given):
            assert seen
            assert bool(todo) == (level is not Level.OK), seen
            order = ("ok", "warning", "error")
            worst[check] = max(level.value, worst.get(check, "ok"), key=order.index)
        return worst

    def findings(self, *given: str) -> list[Finding]:
        return doctor(f"--like-webhook={self.webhook.process.pid}", *given)


def doctor(*given: str) -> list[Finding]:
    """Do in this process what the subcommand does: hundreds of starts of Python would take minutes."""
    parsed = vars(cli._parser("doctor").parse_args(["doctor", *given]))
    arguments = webhook_arguments(parsed["like_webhook"]) if parsed["like_webhook"] else []
    webhook = cli.parse(["webhook", *arguments]) if arguments else cli._webhook(parsed)
    assert isinstance(webhook, settings.Webhook)
    return asyncio.run(run.examine(commands.read_doctor(parsed, webhook)))


def troubles(levels: Levels) -> Levels:
    """Return what is not ok, save what all of these installations lack: client certificates, users, TLS."""
    lacking = ("webhook's callers", "store 127", "lock (redlock) 127")
    return {
        check: level
        for check, level in levels.items()
        if level == "error" or (level == "warning" and not check.startswith(lacking))
    }


@pytest.fixture(scope="module")
def installation(
    control_plane: ControlPlane, account: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with ExitStack() as stack:
        made = Installation(control_plane, account, tmp_path_factory.mktemp("doctor"), stack)
        yield made
        for what in (f"mutatingwebhookconfiguration/{NAME}", f"service/{NAME}", f"endpointslice/{NAME}"):
            control_plane.kubectl("delete", what, "--ignore-not-found")
        control_plane.kubectl("delete", "pod", "webhook-0", "webhook-1", "--ignore-not-found", "--force", check=False)


@pytest.fixture
def whole(installation: Installation) -> Installation:
    """An installation in which nothing is broken."""
    installation.register()
    installation.serve(True, True)
    return installation


def test_of_a_whole_installation_only_what_it_leaves_open_is_said(whole: Installation) -> None:
    levels = whole.examine()
    assert troubles(levels) == {}
    assert levels["webhook's callers"] == "warning"
    for check in ("API server", "rights", "rights beyond need", "registration", "service", "images", "store"):
        assert levels[check] == "ok", check
    for check in ("certificate", "certificate's names", "certificate trusted", "store's data", "lock (redlock)"):
        assert levels[check] == "ok", check


def test_a_changed_registration(whole: Installation) -> None:
    updates = {"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    changed = {"failurePolicy": "Ignore", "timeoutSeconds": 1, "sideEffects": "None", "namespaceSelector": {}}
    whole.register(**changed, matchConditions=[{"name": "own", "expression": "true"}], rules=[updates])
    warned = dict.fromkeys((*changed, "matchConditions"), "warning")
    assert troubles(whole.examine()) == warned | {"registration": "error"}


def test_no_registration(whole: Installation) -> None:
    whole.plane.request("DELETE", f"{CONFIGURATIONS}/{NAME}")
    found = troubles(whole.examine())
    assert found["registration"] == "error"
    assert found["certificate trusted"] == "warning"


def test_who_is_behind_the_service(whole: Installation) -> None:
    whole.serve(True, False)
    assert troubles(whole.examine()) == {"service": "warning"}
    whole.serve(False, False, image="other:1")
    assert troubles(whole.examine()) == {"service": "error", "images": "warning"}
    whole.serve(True, True, port=444)
    assert troubles(whole.examine()) == {"service": "error"}
    whole.plane.kubectl("delete", f"service/{NAME}")
    assert troubles(whole.examine())["service"] == "error"


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ({"end": 3.0 * DAY}, {"certificate": "warning"}),
        ({"begin": -2.0 * DAY, "end": -DAY}, {"certificate": "error", "certificate trusted": "error"}),
        ({"begin": 2.0 * DAY}, {"certificate": "error", "certificate trusted": "error"}),
    ],
)
def test_when_a_certificate_holds(whole: Installation, made: dict[str, float], found: Levels) -> None:
    with certified(whole, lambda: whole.certify(**made)):
        whole.register()
        assert troubles(whole.examine()) == found


def test_whom_a_certificate_is_for_and_who_trusts_it(whole: Installation) -> None:
    with certified(whole, whole.certify):
        assert troubles(whole.examine()) == {"certificate trusted": "error"}
    with certified(whole, lambda: whole.certify("other.default.svc")):
        whole.register()
        assert troubles(whole.examine()) == {"certificate's names": "error", "certificate trusted": "error"}
        whole.bundle = b""
        whole.register()
        assert troubles(whole.examine())["certificate trusted"] == "error"


@contextmanager
def certified(whole: Installation, certify: Callable[[], None]) -> Iterator[None]:
    """Serve another certificate, and in the end again one that is as it should be."""

    def taken_up(make: Callable[[], None]) -> None:
        before = whole.webhook.log().count("certificate taken up")
        make()
        eventually(lambda: whole.webhook.log().count("certificate taken up") > before, "it is taken up")

    taken_up(certify)
    try:
        yield
    finally:
        taken_up(whole.certify)


def test_nobody_serves(whole: Installation) -> None:
    assert troubles(whole.examine("--webhook-address=127.0.0.1:1")) == {"certificate": "error"}


def test_a_store_that_evicts_is_full_or_has_a_user(whole: Installation) -> None:
    store = whole.servers[0]
    client = client_of(store)
    check = f"store {store.address}"
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert troubles(whole.examine()) == {check: "error"}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    assert troubles(whole.examine()) == {"store": "error"}
    client.config_set("maxmemory", "0")

    seen = {finding.seen for finding in whole.findings() if finding.check == check}
    assert "it answers without authentication" in seen
    assert "it is talked to without TLS" in seen
    client.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+@read", "+@connection", "+time", "+info")
    client.execute_command("ACL", "SETUSER", "default", "off")
    try:
        url = f"--queue-url=redis://reader:word@{store.address}"
        lock = f"--redis-addresses={whole.servers[1].address}"
        found = doctor(*whole.flags, url, lock)
        (refused,) = (each for each in found if (each.check, each.level) == ("store", Level.ERROR))
        assert "did not mark" in refused.seen
        assert "it answers without authentication" not in {each.seen for each in found if each.check == check}
    finally:
        client.execute_command("ACL", "SETUSER", "default", "on")


def test_data_of_a_later_version(installation: Installation, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as store:
        client_of(store).set("queue/version", 2)
        address = f"--queue-redis-address={store.address}"
        found = doctor(address, f"--redis-addresses={store.address}", f"--kubeconfig={installation.account}")
        (said,) = (each for each in found if each.check == "store")
        assert said.level is Level.ERROR
        assert "the store's data is of version 2" in said.seen
        assert client_of(store).get("queue/version") == "2"


def test_locks_that_are_stuck_and_a_store_that_is_not_there(whole: Installation) -> None:
    _, second, third = whole.servers
    third.pause()
    try:
        check = f"lock (redlock) {third.address}"
        assert whole.examine()[check] == "warning"
        second.pause()
        found = whole.examine()
        assert (found["lock (redlock)"], found[check]) == ("error", "error")
    finally:
        second.resume()
        third.resume()
    lost = {each.check: each.level for each in doctor(*whole.flags, "--queue-url=redis://127.0.0.1:1")}
    assert (lost["store"], lost["store 127.0.0.1:1"]) == (Level.ERROR, Level.ERROR)


def test_etcd_as_store_and_lock(whole: Installation, lock_etcd: EtcdServer) -> None:
    given = ["--lock-mode=etcd", f"--etcd-addresses={lock_etcd.address},127.0.0.1:1"]
    found = doctor(*whole.flags, *given, f"--queue-url=etcd://{lock_etcd.address}")
    said = {each.check: each.level.value for each in found if each.seen.startswith(("etcd 3", "1 of"))}
    assert said == {f"store {lock_etcd.address}": "ok", f"lock (etcd) {lock_etcd.address}": "ok", "lock (etcd)": "ok"}
    assert ("lock (etcd) 127.0.0.1:1", Level.WARNING) in {(each.check, each.level) for each in found}


def test_rights_that_are_missing_or_too_wide(whole: Installation) -> None:
    binding, wide = f"rolebinding/{NAME}", "doctor-wide"
    kept = whole.plane.kubectl("get", binding, "-n", "default", "-o", "json").stdout
    with whole.plane.losing_roles():
        whole.plane.kubectl("delete", binding, "-n", "default")
        try:
            eventually(lambda: whole.examine()["rights"] == "error", "the missing rights are seen")
            assert whole.examine()["service"] == "warning"
        finally:
            document = json.loads(kept)
            document["metadata"] = {"name": NAME, "namespace": "default"}
            whole.plane.kubectl("apply", "-f", "-", input=json.dumps(document))
        eventually(lambda: whole.examine()["rights"] == "ok", "the rights are back")
    account = f"--serviceaccount=default:{SHIPPED_ACCOUNT}"
    whole.plane.kubectl("create", "clusterrolebinding", wide, "--clusterrole=edit", account)
    try:
        eventually(lambda: whole.examine()["rights beyond need"] == "warning", "the wide rights are seen")
    finally:
        whole.plane.kubectl("delete", "clusterrolebinding", wide)
    eventually(lambda: troubles(whole.examine()) == {}, "all is as before")
    # Somebody else asks for the account's rights.
    admin = f"--kubeconfig={whole.plane.kubeconfig}"
    assert whole.examine(admin)["rights beyond need"] == "warning"
    named = whole.examine(admin, f"--service-account=default/{SHIPPED_ACCOUNT}")
    assert (named["rights"], named["rights beyond need"]) == ("ok", "ok")


def command(whole: Installation, *before: str, output: str) -> subprocess.CompletedProcess[str]:
    given = ["doctor", f"--like-webhook={whole.webhook.process.pid}", f"--output={output}"]
    return subprocess.run(
        [*before, sys.executable, "-m", MODULE, *given],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env=environment(),
    )


def test_it_is_shown_as_a_table_and_without_an_error_it_exits_with_0(whole: Installation) -> None:
    done = command(whole, output="table")
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["LEVEL", "CHECK", "SEEN", "TO", "DO"]
    assert {line.split()[0] for line in lines} == {"ok", "warning"}


@pytest.mark.skipif(not shutil.which("faketime"), reason="there is no faketime")
def test_clocks_that_are_apart_and_an_error_exits_with_1(whole: Installation) -> None:
    done = command(whole, "faketime", "-f", "-2d", output="json")
    assert (done.returncode, done.stderr) == (1, "")
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["certificate"]["level"] == "error"
    store = f"store {whole.servers[0].address}"
    clocks = [each["seen"] for each in json.loads(done.stdout)["findings"] if each["check"] == store]
    assert any("its clock 172800." in seen and "ahead of ours" in seen for seen in clocks)
