"""Pods that wait at a real API server: what admission makes of them, and the order in which they are served."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.e2e import SIDECAR, Namespace, Semaphore, eventually, opted_in, permit_of, pod, sidecars
from tests.cluster.gating import (
    ARRIVED,
    AT_ONCE_SECONDS,
    FENCING_TOKEN,
    FOREIGN,
    GATE,
    LABEL,
    UID_PERMIT,
    WHEN_FULL,
    Account,
    History,
    events,
    gates,
    keys_of,
    remove_gate,
    reported,
    trouble,
    uid,
)

if TYPE_CHECKING:
    from devcluster.controlplane import ControlPlane
    from devcluster.stores import RedisServer
    from devcluster.webhook import WebhookProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("registered")]

BURST = 30


def quota_of_no_pods(namespace: Namespace) -> None:
    """Let the namespace have no pods; returns once the API server minds it."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    namespace.control_plane.request("POST", f"/api/v1/namespaces/{namespace.name}/resourcequotas", quota)

    def minded() -> bool:
        return "exceeded quota" in namespace.try_create(pod("probe"), dryRun="All").message

    eventually(minded, "the quota holds")


def test_what_is_not_stored_leaves_nothing_in_the_store(namespace: Namespace, store: RedisServer) -> None:
    dry = namespace.try_create(pod("one", opted_in("nothing", 3)), dryRun="All")
    assert dry.status == 201, dry.body
    assert gates(dry.json) == [GATE]
    assert keys_of(store, namespace) == []

    quota_of_no_pods(namespace)
    rejected = namespace.try_create(pod("one", opted_in("nothing", 3)))
    assert "exceeded quota" in rejected.message
    assert keys_of(store, namespace) == []


def test_a_waiting_pod_has_gate_label_arrival_and_a_sidecar_whose_permit_is_its_uid(
    namespace: Namespace, store: RedisServer
) -> None:
    held_back = pod("one", opted_in("patched", 3), schedulingGates=[{"name": FOREIGN}])
    before = time.time_ns() // 1000
    created = namespace.create(held_back)
    after = time.time_ns() // 1000

    assert gates(created) == [FOREIGN, GATE]
    assert created["metadata"]["labels"] == {LABEL: "patched"}
    assert before <= int(created["metadata"]["annotations"][ARRIVED]) <= after
    assert FENCING_TOKEN not in created["metadata"]["annotations"]
    (sidecar,) = sidecars(created)
    assert sidecar["name"] == SIDECAR
    assert sidecar["args"][-2:] == [f"{namespace.name}/patched", UID_PERMIT]
    fields = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in sidecar["env"]}
    assert fields == {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid"}
    assert keys_of(store, namespace) == []


def test_free_permits_are_had_at_once_and_tokens_rise(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, "free")
    for number in range(3):
        created = namespace.create(pod(f"pod-{number}", opted_in("free", 3)))
        assert gates(created) == [GATE]
        assert history.until_served(number + 1, AT_ONCE_SECONDS) < AT_ONCE_SECONDS
        holder = semaphore.holder(uid(created))
        assert history.tokens[f"pod-{number}"] == holder["token"]
        assert (holder["uid"], holder["pod"]) == (uid(created), f"pod-{number}")
    tokens = [int(history.tokens[f"pod-{number}"]) for number in range(3)]
    assert tokens == sorted(set(tokens))
    assert (semaphore.length, semaphore.held) == (3, 3)
    assert gates(namespace.create(pod("waiter", opted_in("free", 3)))) == [GATE]
    assert semaphore.held == 3


def test_who_waits_is_told_so_and_when_it_is_over(namespace: Namespace, store: RedisServer, history: History) -> None:
    semaphore = Semaphore(store, namespace.name, "told")
    holder = namespace.create(pod("holder", opted_in("told", 1)))
    history.until_served(1)
    waiter = namespace.create(pod("waiter", opted_in("told", 1)))
    eventually(lambda: reported(namespace, "WaitingForPermit") == {("Pod", "waiter")}, "the wait is reported")
    (event,) = events(namespace, "WaitingForPermit")
    assert event["regarding"]["uid"] == uid(waiter)
    assert f"{namespace.name}/told" in event["note"]
    assert "holder" in event["note"]
    assert list(semaphore.leases) == [uid(holder)]

    namespace.delete("holder", grace=0)
    history.until_served(2, AT_ONCE_SECONDS)
    eventually(lambda: reported(namespace, "PermitGranted") == {("Pod", "waiter")}, "its end is reported")
    assert list(semaphore.leases) == [uid(waiter)]


def test_a_burst_is_served_one_by_one_in_the_order_of_its_arrival(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    names = ["first", *(f"pod-{number}" for number in range(BURST))]
    with Account(store, namespace, "burst") as account:
        for name in names:
            namespace.create(pod(name, opted_in("burst", 1)))
        for number in range(len(names)):
            history.until_served(number + 1)
            namespace.delete(history.served[number], grace=0)
        semaphore = Semaphore(store, namespace.name, "burst")
        eventually(lambda: semaphore.held == 0, "the last permit is free")

    assert history.served == names
    assert history.most_active == 1
    assert account.most == 1
    assert all(len(tokens) == 1 for tokens in account.tokens.values())
    tokens = [int(history.tokens[name]) for name in names]
    assert tokens == sorted(set(tokens))


def test_behind_a_gate_of_somebody_elses_a_pod_gets_no_permit_and_keeps_no_place(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, "foreign")
    held_back = namespace.create(pod("held-back", opted_in("foreign", 1), schedulingGates=[{"name": FOREIGN}]))
    namespace.create(pod("behind", opted_in("foreign", 1)))
    history.until_served(1, AT_ONCE_SECONDS)
    namespace.delete("behind", grace=0)
    eventually(lambda: semaphore.held == 0, "the permit is free")
    namespace.create(pod("later", opted_in("foreign", 1)))
    history.until_served(2, AT_ONCE_SECONDS)
    assert gates(namespace.get("held-back")) == [FOREIGN, GATE]
    namespace.create(pod("last", opted_in("foreign", 1)))

    remove_gate(namespace, "held-back", FOREIGN)
    namespace.delete("later", grace=0)
    history.until_served(3, AT_ONCE_SECONDS)

    assert history.served == ["behind", "later", "held-back"]
    assert list(semaphore.leases) == [uid(held_back)]


def test_a_pod_whose_other_gate_goes_while_a_permit_is_free_is_served_at_once(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    created = namespace.create(pod("one", opted_in("foreign", 1), schedulingGates=[{"name": FOREIGN}]))
    remove_gate(namespace, "one", FOREIGN)
    history.until_served(1, AT_ONCE_SECONDS)
    assert list(Semaphore(store, namespace.name, "foreign").leases) == [uid(created)]


def test_a_waiter_that_is_deleted_leaves_the_line(namespace: Namespace, store: RedisServer, history: History) -> None:
    for name in ("holder", "deleted", "next"):
        namespace.create(pod(name, opted_in("line", 1)))
    history.until_served(1)
    namespace.delete("deleted", grace=0)
    namespace.delete("holder", grace=0)
    history.until_served(2, AT_ONCE_SECONDS)
    assert history.served == ["holder", "next"]
    assert list(Semaphore(store, namespace.name, "line").leases) == [uid(namespace.get("next"))]


def test_a_namespace_full_of_waiters_can_be_deleted(
    namespace: Namespace, control_plane: ControlPlane, store: RedisServer, controller: WebhookProcess, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, "many")
    with namespace.caller() as caller:
        for number in range(55):
            assert namespace.try_create(pod(f"pod-{number}", opted_in("many", 5)), caller).status == 201
    history.until_served(5)
    logged = len(controller.log())

    control_plane.request("DELETE", f"/api/v1/namespaces/{namespace.name}")
    eventually(lambda: not namespace.pods(), "the pods are gone")

    assert eventually(lambda: semaphore.held == 0, "all permits are free") < AT_ONCE_SECONDS
    assert trouble(controller) == []
    warnings = [line for line in controller.log()[logged:].splitlines() if '"level":"warning"' in line]
    assert len(warnings) <= 5, warnings


def test_a_waiter_whose_gate_somebody_removed_gets_the_next_free_permit(
    namespace: Namespace, store: RedisServer, history: History
) -> None:
    semaphore = Semaphore(store, namespace.name, "by-hand")
    for name in ("holder", "patient", "hasty"):
        namespace.create(pod(name, opted_in("by-hand", 1)))
    history.until_served(1)
    remove_gate(namespace, "hasty", GATE)
    eventually(lambda: reported(namespace, "WithoutPermit") == {("Pod", "hasty")}, "it is reported", timeout=10)
    (event, *_) = events(namespace, "WithoutPermit")
    assert event["type"] == "Warning"
    assert semaphore.held == 1

    namespace.delete("holder", grace=0)
    hasty = uid(namespace.get("hasty"))
    eventually(lambda: list(semaphore.leases) == [hasty], "the pod that runs already has the permit", timeout=5)
    assert gates(namespace.get("patient")) == [GATE]
    eventually(
        lambda: (
            namespace.get("hasty")["metadata"]["annotations"].get(FENCING_TOKEN) == semaphore.holder(hasty)["token"]
        ),
        "its token is written",
        timeout=5,
    )

    namespace.delete("hasty", grace=0)
    history.until_served(3, AT_ONCE_SECONDS)
    assert history.served == ["holder", "hasty", "patient"]


def test_a_pod_that_names_its_node_is_denied_instead(namespace: Namespace, store: RedisServer) -> None:
    semaphore = Semaphore(store, namespace.name, "bound")
    first = namespace.try_create(pod("first", opted_in("bound", 1), nodeName="node-1"))
    assert first.status == 201, first.body
    assert gates(first.json) == []
    assert "nodeName" in first.warnings
    assert list(semaphore.leases) == [permit_of(first.json)]
    assert permit_of(first.json) != UID_PERMIT
    assert first.json["metadata"]["annotations"][FENCING_TOKEN] == semaphore.holder(permit_of(first.json))["token"]

    second = namespace.try_create(pod("second", opted_in("bound", 1), nodeName="node-1"))
    assert second.status == 403
    assert "no semaphore available" in second.message
    assert "nodeName" in second.warnings
    namespace.create(pod("third", opted_in("bound", 1)))
    namespace.delete("first", grace=0)
    eventually(lambda: gates(namespace.get("third")) == [], "a waiter gets the permit", timeout=AT_ONCE_SECONDS)


def test_the_annotation_overrides_the_flag(namespace: Namespace, store: RedisServer, history: History) -> None:
    deny = {**opted_in("override", 1), WHEN_FULL: "deny"}
    first = namespace.create(pod("first", deny))
    assert gates(first) == []
    assert first["metadata"]["annotations"][FENCING_TOKEN].isdecimal()
    assert ARRIVED not in first["metadata"]["annotations"]
    assert namespace.try_create(pod("second", deny)).status == 403
    namespace.create(pod("third", opted_in("override", 1)))
    namespace.delete("first", grace=0)
    history.until_served(2, AT_ONCE_SECONDS)
    assert history.served == ["first", "third"]
    assert int(history.tokens["third"]) > int(history.tokens["first"])


@pytest.mark.parametrize("value", ["wait", "", "Gate"])
def test_another_value_is_refused_by_name(namespace: Namespace, value: str) -> None:
    refused = namespace.try_create(pod("one", {**opted_in("other", 1), WHEN_FULL: value}))
    assert refused.status == 400, refused.body
    assert WHEN_FULL in refused.message
    assert f'"{value}"' in refused.message or f"'{value}'" in refused.message
