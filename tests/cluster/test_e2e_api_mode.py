"""Sidecars that renew at the webhook: real tokens, reviewed by a real API server."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devcluster.stores import RedisServer
from tests.cluster.e2e import (
    DOMAIN,
    ORDINARY,
    PREFIX,
    RUN_SECONDS,
    Caller,
    Namespace,
    Object,
    Reply,
    Semaphore,
    client_of,
    eventually,
    metric,
    opted_in,
    permit_of,
    pod,
    sidecars,
)
from tests.cluster.gating import GATE, WHEN_FULL, gates, replica, uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devcluster.podrunner import PodRunner
    from devcluster.webhook import WebhookProcess
    from tests.cluster.conftest import Registration

pytestmark = pytest.mark.cluster

KEY = "seats"
LEASE_SECONDS = 10
MAX_RSS_KB = 18 * 1024
MOUNT = "/var/run/at-least-semaphore-pod-hook"


@pytest.fixture(scope="module")
def webhook(
    reviewing_account: Path, store: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebhookProcess]:
    with replica(tmp_path_factory.mktemp("api"), store, reviewing_account, "--fence", api=True) as webhook:
        eventually(lambda: "pods watched" in webhook.log(), "the controller works")
        yield webhook


@pytest.fixture(autouse=True)
def registered(webhook: WebhookProcess, registration: Registration) -> None:
    registration.use(webhook)


@pytest.fixture
def semaphore(namespace: Namespace, store: RedisServer) -> Semaphore:
    return Semaphore(store, namespace.name, KEY)


def seat(name: str, annotated: dict[str, str] | None = None, **spec: object) -> Object:
    # All pods share the addresses of this machine here, so each needs a port of its own.
    spec = {"hostNetwork": True, **spec}
    return pod(name, {**opted_in(KEY, 1, LEASE_SECONDS), WHEN_FULL: "deny", **(annotated or {})}, **spec)


def token_of(namespace: Namespace, bound: Object | None, audience: str = DOMAIN, seconds: int = 600) -> str:
    """Ask for a token of the namespace's default account, as the kubelet does for a pod's volume."""
    spec: Object = {"expirationSeconds": seconds, "audiences": [audience] if audience else []}
    if bound:
        metadata = bound["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    path = f"/api/v1/namespaces/{namespace.name}/serviceaccounts/default/token"
    return str(namespace.control_plane.request("POST", path, {"spec": spec})["status"]["token"])


@contextmanager
def permits(webhook: WebhookProcess) -> Iterator[Callable[..., Reply]]:
    """Ask for permits as a sidecar does."""
    caller = Caller(webhook.permit_port, webhook.client_context())

    def ask(operation: str, semaphore: str, permit: str, token: str, **more: Any) -> Reply:
        body = json.dumps({"semaphore": semaphore, "permit": permit, **more}).encode()
        given = {"authorization": f"Bearer {token}"} if token else {}
        return caller.send("POST", f"/v1/permits/{operation}", body, content_type="application/json", **given)

    try:
        yield ask
    finally:
        caller.close()


def refusals(webhook: WebhookProcess, status: int) -> float:
    """Return how many releases were answered with this status."""
    return metric(webhook, "permit_requests_total", operation="release", status=str(status))


def dump(store: RedisServer, namespace: Namespace) -> dict[str, Any]:
    """All that the store has of a namespace."""
    client = client_of(store)
    return {key: client.dump(key) for key in client.keys(f"*{{{namespace.name}/*")}


def volume_of(runner: PodRunner, stored: Object) -> Path:
    """Where the stand-in kubelet keeps what the pod's sidecar mounts."""
    directory: Path = runner._runs[stored["metadata"]["uid"]].sidecar_log.parent
    return directory / "volumes" / str(sidecars(stored)[0]["name"])


class TestPods:
    pytestmark = pytest.mark.usefixtures("runner")

    def test_a_pod_knows_no_store_and_hands_its_permit_on(
        self, namespace: Namespace, semaphore: Semaphore, store: RedisServer, runner: PodRunner
    ) -> None:
        created = namespace.create(seat("first"))
        eventually(lambda: semaphore.confirmed() == 1, "the permit is confirmed")
        assert store.address not in json.dumps(created)
        assert "queue" not in " ".join(sidecars(created)[0]["args"])
        (source,) = next(
            volume["projected"]["sources"]
            for volume in created["spec"]["volumes"]
            if volume["name"].endswith("sidecar")
        )
        assert source == {"serviceAccountToken": {"audience": DOMAIN, "expirationSeconds": 600, "path": "token"}}
        (main,) = created["spec"]["containers"]
        assert MOUNT not in {mount["mountPath"] for mount in main.get("volumeMounts") or []}
        assert semaphore.holder(permit_of(created))["uid"] == uid(created)
        pid = runner.sidecar_pid(namespace.name, "first")
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) <= MAX_RSS_KB
        second = namespace.create(seat("second", {WHEN_FULL: "gate"}))
        assert gates(second) == [GATE]
        namespace.kubectl("delete", "pod", "first", "--wait=false")
        eventually(lambda: semaphore.holder(uid(second)).get("confirmed"), "the next one has confirmed its own")
        assert "gave the permit back" in runner.sidecar_log(namespace.name, "first")

    def test_a_new_authority_and_a_new_token_are_taken_up(
        self, namespace: Namespace, semaphore: Semaphore, runner: PodRunner, webhook: WebhookProcess
    ) -> None:
        created = namespace.create(seat("held"))
        permit = permit_of(created)
        eventually(lambda: semaphore.confirmed() == 1, "the permit is confirmed")

        def renewed() -> None:
            before = semaphore.holder(permit)["renewed"]
            eventually(lambda: semaphore.holder(permit)["renewed"] > before, "it is renewed")

        webhook.renew_certificate()
        eventually(lambda: "certificate taken up" in webhook.log(), "the new certificate is served")
        renewed()
        renewed()
        # New connections are to be trusted as well.
        webhook.process.terminate()
        webhook.start()
        renewed()
        token = volume_of(runner, created) / "token"
        good = token.read_text()
        token.write_text("none")
        refused = "this is no token of a service account"
        eventually(lambda: refused in runner.sidecar_log(namespace.name, "held"), "it is refused")
        token.write_text(token_of(namespace, created))
        assert token.read_text() != good
        renewed()
        namespace.kubectl("delete", "pod", "held", "--wait=false")
        eventually(lambda: semaphore.held == 0, "the permit is given back")

    def test_work_stops_before_a_lease_ends_that_the_webhook_does_not_renew(
        self, namespace: Namespace, semaphore: Semaphore, webhook: WebhookProcess
    ) -> None:
        namespace.create(seat("fenced", restartPolicy="Never"))
        eventually(lambda: semaphore.confirmed() == 1, "the permit is confirmed")
        webhook.process.signal(signal.SIGSTOP)
        try:
            ends = next(iter(semaphore.leases.values()))

            def stopped() -> bool:
                statuses = namespace.get("fenced")["status"].get("containerStatuses") or []
                return any("terminated" in status["state"] for status in statuses)

            eventually(stopped, "the work is stopped")
            seconds, micros = semaphore._client.time()
            assert seconds + micros / 1e6 < ends
        finally:
            webhook.process.signal(signal.SIGCONT)
        eventually(lambda: semaphore.held == 0, "the permit is given back")

    def test_with_the_webhook_down_the_watch_takes_the_permit_back_later(
        self, namespace: Namespace, semaphore: Semaphore, webhook: WebhookProcess, runner: PodRunner
    ) -> None:
        namespace.create(seat("left", {f"{PREFIX}expiration": "600"}, terminationGracePeriodSeconds=2))
        eventually(lambda: semaphore.confirmed() == 1, "the permit is confirmed")
        webhook.process.kill()
        namespace.kubectl("delete", "pod", "left", "--wait=true")
        assert "trying on" in runner.sidecar_log(namespace.name, "left")
        assert semaphore.held == 1
        webhook.start()
        eventually(lambda: semaphore.held == 0, "the controller takes it back")


def test_ordinary_sidecars_hear_of_the_end_of_their_pod(
    reviewing_account: Path,
    store: RedisServer,
    tmp_path: Path,
    namespace: Namespace,
    semaphore: Semaphore,
    registration: Registration,
    runner: PodRunner,
) -> None:
    with replica(tmp_path, store, reviewing_account, sidecars=ORDINARY, api=True) as ordinary:
        registration.use(ordinary)
        made = pod("job", opted_in(KEY, 1), restartPolicy="Never")
        made["metadata"]["annotations"] |= {RUN_SECONDS: "1", f"{PREFIX}release-on": "exit"}
        namespace.create(made)
        eventually(lambda: namespace.get("job")["status"].get("phase") == "Succeeded", "the pod completes")
        assert semaphore.held == 0
        assert "nothing left to do" in runner.sidecar_log(namespace.name, "job")


class TestTokens:
    """Without a stand-in kubelet: the test itself is the sidecar."""

    @pytest.fixture
    def holder(self, namespace: Namespace) -> Object:
        return namespace.create(seat("holder", nodeSelector={"none": "none"}))

    def test_a_pods_own_token_renews_and_gives_back(
        self, namespace: Namespace, holder: Object, semaphore: Semaphore, webhook: WebhookProcess
    ) -> None:
        name, permit, token = f"{namespace.name}/{KEY}", permit_of(holder), token_of(namespace, holder)
        with permits(webhook) as ask:
            answer = ask("renew", name, permit, token)
            assert (answer.status, answer.json["lease_ms"]) == (200, 10_000)
            assert answer.json["authorities"] == webhook.ca_bundle.decode()
            assert semaphore.holder(permit)["confirmed"]
            # After that the controller may note it again for the pod, which lives on.
            assert ask("release", name, permit, token).json["released"] == 1

    def test_refused_tokens_change_nothing(
        self,
        namespace: Namespace,
        holder: Object,
        semaphore: Semaphore,
        store: RedisServer,
        webhook: WebhookProcess,
        registration: Registration,
    ) -> None:
        control_plane, name, permit = namespace.control_plane, f"{namespace.name}/{KEY}", permit_of(holder)
        stranger = namespace.create(pod("stranger", nodeSelector={"none": "none"}))
        gone = namespace.create(pod("gone", nodeSelector={"none": "none"}))
        gone_token = token_of(namespace, gone)
        namespace.kubectl("delete", "pod", "gone", "--force", "--grace-period=0")
        other = Namespace(control_plane, f"{namespace.name}-other")
        control_plane.create_namespace(other.name)
        namesake = other.create(pod("holder", nodeSelector={"none": "none"}))
        good = token_of(namespace, holder)
        # The holder's UID is known before its sidecar has come: the watch has shown it.
        eventually(lambda: semaphore.holder(permit)["uid"] == uid(holder), "the controller has seen the pod")
        cases = {
            "none": ("", 401),
            "garbage": ("garbage", 401),
            "forged": (good[:-8] + "AAAAAAAA", 401),
            "another audience": (token_of(namespace, holder, "somebody-else"), 401),
            "the API server's audience": (token_of(namespace, holder, ""), 401),
            "of no pod": (token_of(namespace, None), 401),
            "of a pod that is gone": (gone_token, 401),
            "of another pod": (token_of(namespace, stranger), 403),
            "of another namespace": (token_of(other, namesake), 403),
            "of an administrator": (control_plane.token, 401),
        }
        with permits(webhook) as ask:
            before, seen = dump(store, namespace), {}
            refused = {status: refusals(webhook, status) for status in (401, 403)}
            for case, (token, _) in cases.items():
                seen[case] = {ask(operation, name, permit, token).status for operation in ("renew", "release")}
            assert seen == {case: {status} for case, (_, status) in cases.items()}
            assert dump(store, namespace) == before
            for status in (401, 403):
                expected = sum(wanted == status for _, wanted in cases.values())
                assert refusals(webhook, status) - refused[status] == expected
            assert ask("renew", name, permit, good).status == 200
        control_plane.request("DELETE", f"/api/v1/namespaces/{other.name}")

    @pytest.mark.parametrize(
        ("semaphore_name", "permit", "status"),
        [("a/b/c", "p", 400), ("ns/key", "p q", 400), ("ns/key", "p" * 65, 400), ("ns/key", "p" * 2000, 413)],
    )
    def test_what_is_no_request_is_refused(
        self, webhook: WebhookProcess, namespace: Namespace, semaphore_name: str, permit: str, status: int
    ) -> None:
        with permits(webhook) as ask:
            assert ask("renew", semaphore_name, permit, "token").status == status


def test_nothing_else_is_served(webhook: WebhookProcess) -> None:
    with permits(webhook) as ask:
        assert ask("keep", "ns/key", "p", "token").status == 404
