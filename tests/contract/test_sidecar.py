"""The sidecar as a process of its own, against a real store."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

import sidecar_start
from tests.sidecar_harness import HOLDERS, INFLIGHT, Process, Server, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Starter = Callable[..., Process]

GRACE = "--termination-grace-period-seconds"
UNTIL_EXIT = "--release-on=exit"
END_WITH_POD = "--end-with-pod=true"
MAX_RSS_KB = 12 * 1024


def test_it_confirms_the_permit_and_renews_it_every_third_of_the_lease(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=900)
    before = server.lease_end()
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    holder = server.holder()
    assert holder is not None
    assert holder["pod"] == "pod-1"
    ends: set[float] = set()

    def seen() -> int:
        ends.add(server.lease_end())
        return len(ends)

    until(lambda: seen() >= 4)
    assert min(ends) > before
    # Never earlier than that; a busy machine may make it later.
    assert all(after - before >= 290 for before, after in itertools.pairwise(sorted(ends)))
    assert [line["message"] for line in sidecar.lines()] == [
        "confirmed the permit: renewed for 900 ms, and again every 0.3 s"
    ]
    line = sidecar.lines()[0]
    assert (line["semaphore"], line["permit"], line["pod"], line["level"]) == ("ns/key", "p1", "pod-1", "info")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_permit_back(server: Server, new_sidecar: Starter, number: int) -> None:
    server.acquire("other")
    server.acquire()
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    code, seconds = sidecar.end(number)
    assert code == 0
    assert seconds < 1
    assert server.holder() is None
    assert server.client.zrange(INFLIGHT, 0, -1) == ["other"]
    last = sidecar.lines()[-1]
    assert (last["message"], last["outcome"]) == ("gave the permit back", "released")
    assert (last["namespace"], last["key"], last["permit"], last["pod"]) == ("ns", "key", "p1", "pod-1")
    assert 0 < float(last["milliseconds"]) < 1000


@pytest.mark.parametrize("delay", [0, 0.01, 0.02, 0.04])
def test_a_signal_before_the_first_renewal_gives_the_permit_back(
    server: Server, new_sidecar: Starter, delay: float
) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address)
    # From the moment on that our own code runs: before, a signal ends the interpreter.
    blocked = 1 << (signal.SIGTERM - 1)
    status = f"/proc/{sidecar.process.pid}/status"

    def ready() -> bool:
        with open(status) as file:  # noqa: PTH123 - polled
            masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigBlk", "SigCgt"))]
        return any(mask & blocked for mask in masks)

    until(ready)
    time.sleep(delay)
    assert sidecar.end()[0] == 0
    assert server.holder() is None


def test_a_stopped_store_that_comes_back_within_the_grace_period_gets_the_permit(
    server: Server, new_sidecar: Starter
) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, GRACE, "10")
    until(server.confirmed)
    server.stop()
    sidecar.process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    # A second signal changes nothing.
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert sidecar.process.poll() is None
    server.start()
    assert sidecar.process.wait(5) == 0
    assert server.holder() is None
    assert len(sidecar.lines("warning")) == 1


def test_a_store_that_stays_away_ends_in_a_failure_in_time(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, GRACE, "1")
    until(server.confirmed)
    server.stop()
    code, seconds = sidecar.end()
    assert code == 1
    assert seconds < 2
    assert sidecar.lines("error")[-1]["message"].startswith("could not give the permit back within 1 s")


def test_a_paused_store_delays_no_signal(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=600)
    sidecar = new_sidecar(server.address, GRACE, "1")
    until(server.confirmed)
    server.signal(signal.SIGSTOP)
    try:
        sidecar.says("no answer in time")
        sidecar.says("the lease has run out")
        code, seconds = sidecar.end()
    finally:
        server.signal(signal.SIGCONT)
    assert code == 1
    assert seconds < 2


def test_a_paused_store_that_goes_on_gets_the_permit(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    server.signal(signal.SIGSTOP)
    sidecar.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    server.signal(signal.SIGCONT)
    assert sidecar.process.wait(5) == 0
    assert server.holder() is None


def test_a_user_and_a_database(new_server: Callable[..., Server], new_sidecar: Starter, tmp_path: Path) -> None:
    server = new_server()
    server.client.acl_setuser(
        "sidecar", enabled=True, passwords=["+s3cr3t%"], keys=["*"], commands=["+eval", "+evalsha", "+select", "+time"]
    )
    server.client.acl_setuser("sidecar", enabled=True, categories=["+@hash", "+@sortedset"], keys=["*"])
    server.client.select(3)
    server.acquire()
    sidecar = new_sidecar(f"redis://sidecar:s3cr3t%25@{server.address}/3")
    until(server.confirmed)
    assert sidecar.end()[0] == 0
    assert server.holder() is None


def test_a_permit_that_was_taken_away_is_said_and_no_other_is_released(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=900, length=1)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    server.client.zrem(INFLIGHT, "p1")
    server.client.hdel(HOLDERS, "p1")
    server.acquire("other", length=1)
    sidecar.says("not ours any more")
    time.sleep(0.4)
    assert sidecar.process.poll() is None
    assert len(sidecar.lines("error")) == 1
    assert sidecar.end()[0] == 0
    assert server.client.zrange(INFLIGHT, 0, -1) == ["other"]
    assert server.holder("other") is not None
    assert sidecar.lines("warning")[-1]["message"].startswith("the permit was not ours any more")


def test_the_lease_is_renewed_across_a_restart_of_the_store(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=3_000)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    before = server.lease_end()
    server.stop()
    sidecar.says("Connection refused")
    server.start()
    until(lambda: server.lease_end() > before)
    sidecar.says("renewed the permit again")
    assert [line["level"] for line in sidecar.lines()] == ["info", "warning", "info"]
    assert sidecar.end()[0] == 0
    assert server.holder() is None


def test_a_restart_between_two_renewals_is_not_even_noticed(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=1_500)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    server.stop()
    server.start()
    before = server.lease_end()
    until(lambda: server.lease_end() > before)
    assert sidecar.lines("warning") == []


def test_scripts_that_the_store_forgot_are_sent_again(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=600)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    server.client.script_flush()
    before = server.lease_end()
    until(lambda: server.lease_end() > before)
    assert sidecar.lines("warning") == []


def test_a_killed_sidecars_permit_expires_by_its_lease(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=600, length=1)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    sidecar.end(signal.SIGKILL)

    def free() -> bool:
        try:
            server.acquire("next", length=1)
        except AssertionError:
            return False
        return True

    assert not free()
    until(free, 2)


def renewed(server: Server) -> bool:
    """Wait for one more renewal."""
    before = server.lease_end()
    return bool(until(lambda: server.lease_end() > before, 2))


def test_it_ends_soon_after_the_pods_other_containers(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, END_WITH_POD)
    until(server.confirmed)
    # The lease alone would have it wait for 20 s.
    assert renewed(server)
    assert sidecar.process.poll() is None
    start = time.monotonic()
    server.end()
    assert sidecar.process.wait(5) == 0
    assert time.monotonic() - start < 1.5
    assert [line["message"] for line in sidecar.lines()] == [
        "confirmed the permit: renewed for 60000 ms, and again every 1 s",
        "the pod's other containers have ended, and the permit is back: nothing left to do",
    ]


def test_without_the_flag_it_learns_of_the_end_with_its_next_renewal(server: Server, new_sidecar: Starter) -> None:
    server.acquire(lease_ms=900)
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    server.end()
    assert sidecar.process.wait(5) == 0
    assert "other containers have ended" in sidecar.lines()[-1]["message"]


def test_a_sidecar_that_starts_after_the_end_ends_as_well(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    server.end()
    assert new_sidecar(server.address).process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_holds_the_permit_until_the_others_have_ended(server: Server, new_sidecar: Starter, number: int) -> None:
    server.acquire()
    # Which does not bound the wait: the kubelet does.
    sidecar = new_sidecar(server.address, UNTIL_EXIT, GRACE, "0")
    sidecar.says("confirmed the permit")
    sidecar.process.send_signal(number)
    sidecar.says("holding the permit")
    for _ in range(4):
        assert renewed(server)
    assert sidecar.process.poll() is None
    start = time.monotonic()
    server.end()
    assert sidecar.process.wait(5) == 0
    assert time.monotonic() - start < 1
    assert [line["message"] for line in sidecar.lines()][1:] == [
        "asked to stop, holding the permit until the pod's other containers have ended",
        "the pod's other containers have ended, and the permit is back: nothing left to do",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_gives_back_what_it_holds(server: Server, new_sidecar: Starter, number: int) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, UNTIL_EXIT)
    until(server.confirmed)
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.says("holding the permit")
    assert renewed(server)
    code, seconds = sidecar.end(number)
    assert code == 0
    assert seconds < 1
    assert server.holder() is None
    assert sidecar.lines()[-1]["message"] == "gave the permit back"


def test_who_has_no_permit_any_more_waits_for_nobody(server: Server, new_sidecar: Starter) -> None:
    server.acquire(length=1)
    sidecar = new_sidecar(server.address, UNTIL_EXIT)
    until(server.confirmed)
    server.client.zrem(INFLIGHT, "p1")
    server.client.hdel(HOLDERS, "p1")
    server.acquire("other", length=1)
    code, seconds = sidecar.end()
    assert code == 0
    assert seconds < 1
    assert server.client.zrange(INFLIGHT, 0, -1) == ["other"]
    assert sidecar.lines("warning")[-1]["message"].startswith("the permit was not ours any more")


def test_a_store_that_restarts_meanwhile_is_waited_for(server: Server, new_sidecar: Starter) -> None:
    server.acquire()
    sidecar = new_sidecar(server.address, UNTIL_EXIT, GRACE, "1")
    until(server.confirmed)
    server.stop()
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.says("the store is unavailable")
    time.sleep(1.5)
    assert sidecar.process.poll() is None
    server.start()
    sidecar.says("renewed the permit again")
    server.end()
    assert sidecar.process.wait(5) == 0


def test_memory_and_the_time_to_the_first_renewal(
    server: Server, new_sidecar: Starter, record_property: Callable[[str, object], None]
) -> None:
    server.acquire(lease_ms=900)
    start = time.monotonic()
    sidecar = new_sidecar(server.address)
    until(server.confirmed)
    seconds = time.monotonic() - start
    time.sleep(0.7)
    rss = sidecar.rss_kb()
    record_property("rss_kb", rss)
    record_property("first_renewal_seconds", round(seconds, 3))
    sys.stdout.write(f"sidecar: VmRSS {rss} kB, first renewal after {seconds * 1000:.0f} ms\n")
    assert rss <= MAX_RSS_KB


def test_the_bench_sees_the_first_renewal_sent() -> None:
    python, sidecar = sidecar_start.measure(1)
    # Loosely: what it takes on an idle machine is for `make bench-sidecar` to say.
    assert 0 < python[0] < 5_000
    assert 0 < sidecar[0] < 5_000
