"""When the next try is due, and what is worth a line in the log. Pure: the time comes in as an argument.

Moments are seconds of a monotonic clock, leases are milliseconds as the store's scripts count them.
"""

from __future__ import annotations

DEFAULT_LEASE_MS = 15_000
"""What is assumed before the store has said how long the lease is: no load, and soon enough all the same."""
MAX_LEASE_MS = 7 * 86_400_000
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 5.0
MAX_RELEASE_BACKOFF = 1.0
ENDED = -1
"""What a renewal answers where the pod's other containers have ended, and the permit is back."""
END_WITH_POD_SECONDS = 1.0
"""The longest pause in seconds between renewals with --end-with-pod.

A renewal is how the end is heard of, and a Job waits for that. Beside what the start of a pod takes, a second is
little; more often would only load the store.
"""
WAITING_SECONDS = 0.5
"""The same once a signal has come with --release-on=exit: the pod's deletion, and a waiting pod, are held up now."""
UNCONFIRMED_SECONDS = 1.0
"""The longest pause in seconds while the pod's work waits for a permit that is not held yet."""
UNBOUNDED = float("inf")
MIN_TRY = 0.25
MAX_TRY = 5.0
REMINDER = 60.0
MAX_CAUSES = 8
MIN_GRACE = 1.0
LAST_WORDS = 0.25


def interval(lease_ms: int, longest: float = UNBOUNDED) -> float:
    """Return the seconds from one renewal to the next: a third of the lease, so that two may fail, within `longest`."""
    return min(longest, lease_ms / 3_000)


def try_timeout(lease_ms: int) -> float:
    """Return the seconds that one try may take, connecting included."""
    return min(MAX_TRY, max(MIN_TRY, lease_ms / 9_000))


def backoff(failures: int, lease_ms: int, jitter: float, ceiling: float = MAX_BACKOFF) -> float:
    """Return the seconds to wait after so many failures in a row.

    Args:
        failures: How many tries have failed since the last that did not; at least 1.
        lease_ms: The lease; a ninth of it is the longest wait, so that several tries fit in what is left of it.
        jitter: From 0 to 1; spreads the sidecars of a cluster over half of the wait.
        ceiling: The longest wait whatever the lease.
    """
    longest = min(ceiling, max(FIRST_BACKOFF, lease_ms / 9_000))
    doubled: float = FIRST_BACKOFF * 2 ** min(failures - 1, 10)
    return min(longest, doubled) * (0.5 + 0.5 * jitter)


def release_budget(grace: float) -> float:
    """Return the seconds of the grace period for giving the permit back; the rest is for saying that it failed."""
    grace = max(grace, MIN_GRACE)
    return grace - min(LAST_WORDS, grace / 20)


class Schedule:
    """When to renew.

    `due` is the moment; `lease_ms` is the lease as far as it is known; `longest` is how many seconds may pass from one
    renewal to the next, whatever the lease; `longest_lost` is the same while the permit is not held.
    """

    __slots__ = ("due", "failures", "lease_ms", "longest", "longest_lost")

    def __init__(self, now: float, longest: float = UNBOUNDED, longest_lost: float = UNBOUNDED) -> None:
        self.due = now
        self.longest = longest
        self.longest_lost = longest_lost
        self.lease_ms = DEFAULT_LEASE_MS
        self.failures = 0

    def renewed(self, sent: float, lease_ms: int) -> None:
        """Note a renewal; the lease counts from when it was sent at the earliest."""
        self.lease_ms = lease_ms
        self.failures = 0
        self.due = sent + interval(lease_ms, self.longest)

    def hurry(self, now: float, longest: float) -> None:
        """Renew at once, and from now on no later than `longest` seconds after each renewal."""
        self.due = now
        self.longest = longest

    def lost(self, sent: float) -> None:
        """Note that the permit is not held: the store answered, so there is no hurry."""
        self.failures = 0
        self.due = sent + interval(self.lease_ms, min(self.longest, self.longest_lost))

    def failed(self, now: float, jitter: float) -> None:
        """Note a try that failed."""
        self.failures += 1
        self.due = now + backoff(self.failures, self.lease_ms, jitter, min(MAX_BACKOFF, self.longest))


class Health:
    """What of a permit's life is worth a line: changes, each cause of an outage once, and a reminder now and then.

    Each method returns the lines as (level, message) pairs. `holds_back` says that the pod's other containers wait for
    the first renewal.
    """

    __slots__ = ("_causes", "_expired", "_holds_back", "_lease_end", "_said", "_since", "_state")

    def __init__(self, *, holds_back: bool = False) -> None:
        self._holds_back = holds_back
        self._state = "starting"
        self._since = self._said = 0.0
        self._lease_end: float | None = None
        self._expired = False
        self._causes: list[str] = []

    def renewed(self, now: float, sent: float, lease_ms: int, every: float) -> list[tuple[str, str]]:
        """Note a renewal that was sent at `sent` and answered at `now`; the next follows after `every` seconds."""
        before, since = self._state, self._since
        confirmed = self._lease_end is not None
        self._lease_end, self._expired = sent + lease_ms / 1_000, False
        if before == "renewed":
            return [("debug", f"renewed the permit for {lease_ms} ms")]
        self._enter("renewed", now)
        if not confirmed:
            return [("info", f"confirmed the permit: renewed for {lease_ms} ms, and again every {every:.3g} s")]
        return [("info", f"renewed the permit again, after {now - since:.1f} s without")]

    def lost(self, now: float) -> list[tuple[str, str]]:
        """Note that the store says that the permit is not held."""
        if self._holds_back and self._lease_end is None:
            return self._wait(now)
        if self._state != "lost":
            self._enter("lost", now)
            return [("error", "the permit is not ours any more: it has expired or was taken back; trying on")]
        return self._remind(now, "error", "the permit is still not ours")

    def unavailable(self, now: float, cause: str) -> list[tuple[str, str]]:
        """Note a try that failed, and why."""
        lines: list[tuple[str, str]] = []
        if self._state != "unavailable":
            self._enter("unavailable", now)
        if cause not in self._causes and len(self._causes) < MAX_CAUSES:
            self._causes.append(cause)
            self._said = now
            lines.append(("warning", f"the store is unavailable, trying on: {cause}"))
        else:
            lines = self._remind(now, "warning", f"the store is still unavailable: {cause}")
        if self._lease_end is not None and now >= self._lease_end and not self._expired:
            self._expired = True
            lines.append(
                ("error", "the lease has run out while the store is unavailable: another pod may get the permit")
            )
        return lines

    def _wait(self, now: float) -> list[tuple[str, str]]:
        if self._state != "waiting":
            self._enter("waiting", now)
            return [
                ("warning", "waiting for a permit: the store knows none of this pod, whose containers wait with us")
            ]
        return self._remind(now, "warning", "still waiting for a permit")

    def _enter(self, state: str, now: float) -> None:
        self._state, self._since, self._said, self._causes = state, now, now, []

    def _remind(self, now: float, level: str, message: str) -> list[tuple[str, str]]:
        if now - self._said < REMINDER:
            return []
        self._said = now
        return [(level, f"{message}, for {now - self._since:.0f} s")]
