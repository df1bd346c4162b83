"""What status shows, given what store and API server have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from at_least_semaphore_pod_hook.controller.pods import PodView
from at_least_semaphore_pod_hook.overview import tables
from at_least_semaphore_pod_hook.overview.document import Overview, SemaphoreView, by_semaphore, view
from at_least_semaphore_pod_hook.semaphore.model import Holder, SemaphoreKey, SemaphoreState
from tests.unit.fakes import PREFIX, notes
from tests.unit.views import SIDECAR, pod_view

KEY = SemaphoreKey("default", "resource-name")
NOW = 1_767_323_100.0
CREATED = 1_767_323_045


def holder(name: str, **changes: Any) -> Holder:
    fields: dict[str, Any] = {"permit": name, "pod": name, "token": 7, "confirmed": True, "lease_ms": 30_000}
    return Holder(**(fields | {"expiration_ms": 60_000, "age_ms": 5_000, "silent_ms": 30_000} | changes))


def pod(name: str, *, waits: bool = False, permit: str = "", **parts: Any) -> PodView:
    sidecar = {"name": SIDECAR, "restartPolicy": "Always", "args": ["sidecar", str(KEY), permit or name]}
    gate = {"schedulingGates": [{"name": PREFIX + "permit"}]} if waits else {"nodeName": "node-1"}
    spec = {"containers": [{"name": "main"}], "initContainers": [sidecar], **gate}
    status = {"phase": "Running", "initContainerStatuses": [{"name": SIDECAR, "state": {"running": {}}}]}
    return pod_view(name, uid=f"uid-{name}", spec=spec, status={} if waits else status, **parts)


def waiter(name: str, micros: int) -> PodView:
    return pod(name, waits=True, metadata={"annotations": notes(arrived=str(CREATED * 1_000_000 + micros))})


def seen(*holders: Holder, pods: list[PodView] | None, length: int = 2, named: int = 10, **state: Any) -> SemaphoreView:
    return view(KEY, SemaphoreState(length, holders, **state), pods, NOW, named=named)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def text(*semaphores: SemaphoreView, wide: bool = True, colour: bool = False) -> str:
    return tables.render(Overview(at(NOW), "", semaphores), wide=wide, detailed=True, colour=colour)


def test_a_holder_is_shown_with_its_pod() -> None:
    (shown,) = seen(holder("a"), pods=[pod("a")]).holders
    assert (shown.permit, shown.pod, shown.node, shown.phase) == ("a", "a", "node-1", "Running")
    assert (shown.since, shown.lease_ends, shown.token) == (at(NOW - 5), at(NOW + 30), 7)


def test_a_reservation_has_no_pod_yet() -> None:
    (shown,) = seen(holder("a", pod="web-*", confirmed=False), pods=[]).holders
    assert (shown.pod, shown.node, shown.phase, shown.confirmed) == ("web-*", "", "", False)


def test_holders_come_in_the_order_of_their_grants() -> None:
    shown = seen(holder("b", age_ms=1), holder("a", age_ms=9), holder("c", age_ms=5), pods=[], length=3)
    assert [one.permit for one in shown.holders] == ["a", "c", "b"]


def test_a_copied_pod_is_not_shown_as_the_holder() -> None:
    (shown,) = seen(holder("a", uid="uid-a"), pods=[pod("a"), pod("copy", permit="a")]).holders
    assert shown.pod == "a"


def test_waiters_are_shown_in_the_order_in_which_they_are_served() -> None:
    shown = seen(holder("a"), pods=[waiter("second", 20), pod("a"), waiter("first", 10)])
    assert [(one.position, one.pod, one.gated) for one in shown.waiters] == [(1, "first", True), (2, "second", True)]
    assert (shown.waiting, shown.oldest_wait_since) == (2, at(CREATED))


def test_a_waiter_that_holds_its_permit_already_waits_no_more() -> None:
    assert seen(holder("a"), pods=[waiter("a", 1)]).waiting == 0


def test_a_running_pod_without_a_permit_is_counted() -> None:
    shown = seen(holder("a"), pods=[pod("a"), pod("b")])
    assert (shown.unpermitted, shown.waiting) == (1, 0)
    assert shown.conditions == ("unpermitted-pods",)


def test_what_nobody_could_be_asked_for_is_not_known() -> None:
    shown = seen(holder("a"), pods=None)
    assert (shown.waiting, shown.unpermitted, shown.oldest_wait_since) == (None, None, None)
    assert text(shown).splitlines()[1].split()[2:] == ["2", "1", "1", "?", "?", "0", "-"]


def test_only_the_first_of_many_are_named() -> None:
    holders = [holder(f"h{number}") for number in range(5)]
    shown = seen(*holders, pods=[waiter(f"w{number}", number) for number in range(4)], length=5, named=2)
    assert (len(shown.holders), len(shown.waiters), shown.held, shown.waiting) == (2, 2, 5, 4)
    assert "and 3 more\n" in text(shown)
    assert text(shown).endswith("and 2 more\n")


def test_what_is_out_of_the_ordinary_is_named() -> None:
    draining = seen(holder("a"), holder("b"), pods=[], length=1, complete=False)
    assert (draining.free, draining.conditions) == (0, ("draining", "rebuild-due"))
    silent = seen(holder("a", silent_ms=60_000), pods=[])
    assert silent.conditions == ("silent-sidecar",)
    assert tables.sidecar(silent.holders[0]) == "silent"


def test_pods_are_sorted_by_semaphore_and_those_of_others_left_out() -> None:
    stranger = pod_view("x", spec={"containers": [{"name": SIDECAR, "args": ["other/key", "permit"]}]})
    assert {key: [one.name for one in pods] for key, pods in by_semaphore([pod("a"), stranger]).items()} == {KEY: ["a"]}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "0s"), (0.4, "0s"), (59.4, "59s"), (185, "3m5s"), (7_800, "2h10m"), (352_800, "4d2h")],
)
def test_a_duration_has_two_units(seconds: float, shown: str) -> None:
    assert tables.age(seconds) == shown


def test_columns_line_up_with_colours_and_without() -> None:
    shown = seen(holder("a"), holder("b"), pods=[pod("a"), waiter("c", 1)])
    coloured = text(shown, colour=True)
    assert "\x1b[33m" in coloured
    for code in (tables.RED, tables.YELLOW, tables.GREEN, tables.BOLD, tables.PLAIN):
        coloured = coloured.replace(code, "")
    assert [line.rstrip() for line in coloured.splitlines()] == text(shown).splitlines()


def test_a_name_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in text(seen(holder("a", pod="x\x1b[2J\nb"), pods=[]))


def test_nothing_is_shown_of_nothing() -> None:
    assert text() == ""


def test_the_oldest_wait_is_by_the_documents_own_time() -> None:
    shown = seen(pods=[waiter("a", 1)])
    later = Overview(at(CREATED) + timedelta(minutes=3, seconds=5), "", (shown,))
    assert tables.render(later, wide=False, detailed=False, colour=False).splitlines()[1].endswith("3m5s")
