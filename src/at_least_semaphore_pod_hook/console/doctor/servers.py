"""What is to be said of the servers that are the store, and of those that are the lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.console.doctor.findings import error, ok, warning
from at_least_semaphore_pod_hook.semaphore.versions import DATA_VERSION
from at_least_semaphore_pod_hook.stores.redis.advice import shortcomings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding

CLOCK_SECONDS = 1.0
"""How far apart clocks may be before that is worth a word."""


class Seen(NamedTuple):
    """What was seen of one server.

    Attributes:
        address: Where it is.
        trouble: Why nothing was seen; empty where something was.
        version: Of what.
        ahead: Seconds by which its clock is ahead of ours; None where it does not tell.
        open: Whether it answers somebody who shows no password and no certificate; None where that was not asked.
        tls: Whether it is talked to by TLS; None for a socket of this machine.
        info: What Redis says of itself.
        alarms: What etcd complains of.
    """

    address: str
    trouble: str = ""
    version: str = ""
    ahead: float | None = None
    open: bool | None = None
    tls: bool | None = None
    info: Mapping[bytes, bytes] = {}
    alarms: tuple[str, ...] = ()


class Data(NamedTuple):
    """What became of a look at the store's data.

    Attributes:
        trouble: Why its version is not known, or not understood.
        version: Of the data; 0 where there is no mark.
        refused: Why the mark could not be written; empty where it was.
    """

    trouble: str = ""
    version: int = 0
    refused: str = ""


def judge_data(where: str, data: Data) -> Iterator[Finding]:
    """Judge whether the store can be used as whom the webhook uses it."""
    if data.trouble:
        yield error("store", f"{where}: {data.trouble}", "see the store, its address, user and network policies")
        return
    version = f"version {data.version}" if data.version else "no version yet: nothing has used it"
    yield ok("store's data", f"{version}; this program writes version {DATA_VERSION}")
    if data.refused:
        seen = f"{where} cannot be written: {data.refused}"
        yield error("store", seen, "give it memory and disk, and its user the rights in docs/security.md")
    else:
        yield ok("store", f"{where} answers, and can be written")


def judge_store(servers: Sequence[Seen], *, fails_over: bool, wait_replicas: int) -> Iterator[Finding]:
    """Judge each server of the store.

    Args:
        servers: What was seen.
        fails_over: Whether a replica may take a server's place.
        wait_replicas: How many replicas must have a grant before it counts.
    """
    for seen in servers:
        check = f"store {seen.address}"
        if seen.trouble:
            yield error(check, seen.trouble, "see whether it runs, and its network policies")
            continue
        yield from _judge_server(check, seen)
        if seen.info:
            for text in shortcomings(seen.info, fails_over=fails_over, wait_replicas=wait_replicas):
                yield warning(check, text, "see docs/operations.md on replicas, and set appendonly yes")
            yield from _judge_memory(check, seen.info)


def judge_lock(mode: str, servers: Sequence[Seen]) -> Iterator[Finding]:
    """Judge the servers of the lock, and how far apart their clocks are."""
    up = [seen for seen in servers if not seen.trouble]
    majority = len(servers) // 2 + 1
    check = f"lock ({mode})"
    enough = len(up) >= (majority if mode == "redlock" else 1)
    for seen in servers:
        each = f"{check} {seen.address}"
        if not seen.trouble:
            yield from _judge_server(each, seen)
        elif enough:
            yield warning(each, seen.trouble, "bring it back: the lock has no more servers to lose than a minority")
        else:
            yield error(each, seen.trouble, "bring it back: without it no key is used for the first time or resized")
    if enough:
        yield ok(check, f"{len(up)} of {len(servers)} servers answer")
    else:
        seen_ = f"{len(up)} of {len(servers)} servers answer, and it takes {majority if mode == 'redlock' else 1}"
        yield error(check, seen_, "bring the others back")
    clocks = [seen.ahead for seen in up if seen.ahead is not None]
    if len(clocks) > 1 and max(clocks) - min(clocks) > CLOCK_SECONDS:
        apart = f"the servers' clocks are {max(clocks) - min(clocks):.1f} s apart"
        yield warning(f"{check} clocks", apart, "synchronise them: Redlock relies on them")


def _judge_server(check: str, seen: Seen) -> Iterator[Finding]:
    ahead = ""
    if seen.ahead is not None:
        ahead = f", its clock {abs(seen.ahead):.1f} s {'ahead of' if seen.ahead > 0 else 'behind'} ours"
    if seen.ahead is not None and abs(seen.ahead) > CLOCK_SECONDS:
        yield warning(check, f"{seen.version}{ahead}", "synchronise the clocks: leases are counted by the server's")
    else:
        yield ok(check, f"{seen.version}{ahead}")
    for alarm in seen.alarms:
        yield error(check, alarm, "see etcd's documentation on alarms: it may refuse grants")
    if seen.open:
        yield warning(check, "it answers without authentication", "give it a user: docs/security.md has the rights")
    if seen.tls is False:
        yield warning(check, "it is talked to without TLS", "use rediss://, etcds:// or https://")


def _judge_memory(check: str, info: Mapping[bytes, bytes]) -> Iterator[Finding]:
    policy = info.get(b"maxmemory_policy", b"").decode()
    limit, used = int(info.get(b"maxmemory", b"0")), int(info.get(b"used_memory", b"0"))
    if policy and policy != "noeviction":
        seen = f"maxmemory-policy is {policy}: an evicted key is a forgotten semaphore"
        found = error if limit else warning
        yield found(check, seen, "set it to noeviction")
    if limit and used * 10 > limit * 9:
        yield warning(
            check, f"{used * 100 // limit} % of maxmemory is used", "give it memory: at the limit no permit is granted"
        )
