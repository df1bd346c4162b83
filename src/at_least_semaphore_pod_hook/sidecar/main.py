"""A permit's life in a pod: renewed until a signal comes, then given back; or until the pod's end is heard of."""

from __future__ import annotations

import os
import time

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.settings import fence_margin
from at_least_semaphore_pod_hook.sidecar import policy
from at_least_semaphore_pod_hook.sidecar.log import STDERR, Log
from at_least_semaphore_pod_hook.sidecar.port import Port
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError
from at_least_semaphore_pod_hook.sidecar.signals import Signals, StopRequested
from at_least_semaphore_pod_hook.sidecar.stores import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.settings import Sidecar

NOT_OURS = "the permit was not ours any more, so there was none to give back"


def run(settings: Sidecar) -> int:
    """Hold the permit until SIGTERM or SIGINT, then give it back.

    The main thread's handlers of the two, and their mask, are this function's from here on. Nothing but a signal, or
    the store's word that the pod's other containers have ended, ends it: a store that can't be reached and a permit
    that is lost are logged, and tried again. Where `release_on` is "exit", the first signal gives nothing back: the
    wait for that word is as long as the kubelet lets it be, and only a second signal cuts it short.

    Returns:
        The exit code: 0 where the permit is in circulation again, 1 where it could not be given back within the grace
        period (`termination_grace_period_seconds`) and its lease has to run out.
    """
    signals = Signals()
    try:
        _keep_standard_streams()
        log = Log(settings)
        if settings.api is None and settings.common.queue.kind == "memory":
            return _watch(signals, log)
        return _Holding(settings, signals, log).hold()
    finally:
        signals.close()


def _watch(signals: Signals, log: Log) -> int:
    """Wait for a signal, where the store is the webhook's memory: its controller renews and gives back."""
    log.write("info", "the store is the webhook's memory: its controller renews the permit and gives it back")
    try:
        while True:
            signals.wait(time.monotonic() + policy.MAX_LEASE_MS)
    except StopRequested:
        return 0


def _keep_standard_streams() -> None:
    """See to it that no socket gets the number of a standard stream that was closed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(fd)


class _Holding:
    def __init__(self, settings: Sidecar, signals: Signals, log: Log) -> None:
        self._settings = settings
        self._signals = signals
        self._log = log
        self._store = open_store(settings, signals)
        longest = policy.END_WITH_POD_SECONDS if settings.end_with_pod else policy.UNBOUNDED
        confirms = settings.confirm_port > 0
        longest_lost = policy.UNCONFIRMED_SECONDS if confirms else policy.UNBOUNDED
        self._schedule = policy.Schedule(time.monotonic(), longest, longest_lost)
        self._health = policy.Health(holds_back=confirms)
        self._port = signals.port = Port(settings.confirm_port, log) if confirms else None
        self._waiting = False

    def hold(self) -> int:
        """Renew whenever it is due, until a signal or the pod's end; then give back, and return the exit code."""
        while True:
            try:
                self._store.idle(self._schedule.due)
                over = self._renew_once()
            except StopRequested:
                if self._waiting or self._settings.release_on != "exit":
                    return self.release(time.monotonic())
                self._wait_for_the_others()
            else:
                if over:
                    return 0

    def _wait_for_the_others(self) -> None:
        self._waiting = True
        self._signals.rearm()
        self._schedule.hurry(time.monotonic(), policy.WAITING_SECONDS)
        self._log.write("info", "asked to stop, holding the permit until the pod's other containers have ended")

    def _renew_once(self) -> bool:
        """Renew; returns whether there is nothing left to hold on to."""
        sent = time.monotonic()
        deadline = sent + policy.try_timeout(self._schedule.lease_ms)
        try:
            lease_ms = self._store.renew(self._settings.permit, self._settings.pod, deadline)
            if not policy.ENDED <= lease_ms <= policy.MAX_LEASE_MS:
                raise MalformedReplyError(f"a lease of {lease_ms} ms is not accepted")
        except StoreUnavailableError as error:
            now = time.monotonic()
            self._schedule.failed(now, _jitter())
            self._say(self._health.unavailable(now, str(error)), "unavailable", now - sent)
            return False
        now = time.monotonic()
        if lease_ms == policy.ENDED:
            over = "the pod's other containers have ended, and the permit is back: nothing left to do"
            self._log.write("info", over, "ended", now - sent)
            return True
        if lease_ms:
            self._schedule.renewed(sent, lease_ms)
            self._say(self._health.renewed(now, sent, lease_ms, self._schedule.due - sent), "renewed", now - sent)
            self._open(now, sent + lease_ms / 1_000, lease_ms)
            return False
        if self._waiting:
            self._log.write("warning", NOT_OURS, "lost", now - sent)
            return True
        self._schedule.lost(sent)
        self._say(self._health.lost(now), "lost", now - sent)
        if self._port is not None and self._settings.fence:
            self._port.close("the permit is not ours any more")
        return False

    def _open(self, now: float, lease_end: float, lease_ms: int) -> None:
        """Let the kubelet know that the permit is held: for good, or with a fence until shortly before it is not."""
        if self._port is None:
            return
        if self._settings.fence:
            self._port.open(now, lease_end - fence_margin(lease_ms), lease_end)
        else:
            self._port.open(now)

    def release(self, now: float) -> int:
        """Give the permit back, and return the exit code. The grace period counts from `now`."""
        grace = self._settings.termination_grace_period_seconds
        began, deadline = now, now + policy.release_budget(grace)
        if self._port is not None:
            self._port.close()
        self._log.write("debug", "asked to stop, giving the permit back")
        health = policy.Health()
        failures = 0
        unanswered = self._store.unanswered
        while now < deadline:
            try:
                released = self._release_once(min(deadline, now + policy.try_timeout(self._schedule.lease_ms)))
            except StoreUnavailableError as error:
                failures += 1
                failed = time.monotonic()
                self._say(health.unavailable(failed, str(error)), "unavailable", failed - now)
            else:
                return self._released(released, began, lost=self._store.unanswered > unanswered)
            pause = policy.backoff(failures, self._schedule.lease_ms, _jitter(), policy.MAX_RELEASE_BACKOFF)
            self._signals.wait(min(deadline, time.monotonic() + pause))
            now = time.monotonic()
        gave_up = f"could not give the permit back within {grace:g} s: its lease has to run out"
        self._log.write("error", gave_up, "failed", now - began)
        return 1

    def _release_once(self, deadline: float) -> int:
        reply = self._store.release(self._settings.permit, self._settings.pod, deadline)
        if reply not in (0, 1):
            raise MalformedReplyError(f"{reply} permits given back is not accepted")
        return reply

    def _released(self, permits: int, began: float, *, lost: bool) -> int:
        seconds = time.monotonic() - began
        if permits:
            self._log.write("info", "gave the permit back", "released", seconds)
        elif lost:
            self._log.write(
                "info", "gave the permit back, most likely by a try that got no answer", "released", seconds
            )
        else:
            self._log.write("warning", NOT_OURS, "lost", seconds)
        return 0

    def _say(self, lines: list[tuple[str, str]], outcome: str, seconds: float) -> None:
        for level, message in lines:
            self._log.write(level, message, outcome, seconds)


def _jitter() -> float:
    # Not random(): 300 kB in each pod, for a number that need not be a good one.
    return os.urandom(1)[0] / 255
