"""What etcd holds of a semaphore, and how a permit is renewed and given back there: one text for store and sidecar.

`renew` and `release` are generators that do no input or output themselves: they yield requests to etcd's JSON gateway
and are sent its answers. The webhook drives them with asyncio, the sidecar with a plain socket. Every request may be
sent twice: its conditions see to it that the second time changes nothing. An answer that something does not exist
(gRPC code 5) is sent in like any other; whoever drives deals with all other failures.

Keys of a semaphore `<namespace>/<key>`:

    queue/<namespace>/<key>              head, JSON: length, token (fencing token of the last grant), fences (the newest
                                         guarded step by domain), epoch (in which its holders were last known to be
                                         complete), held (an upper bound of how many permits are held)
    queue/<namespace>/<key>/freed        an empty mark, written where a permit was freed and the head was not: while
                                         head and mark are unchanged, no more than ends of leases can have made what was
                                         counted fewer; the next grant removes it
    inflight/<namespace>/<key>/<permit>  holder, JSON: identity, pod, uid, token, lease_ms (what a renewal lasts),
                                         confirmed, silent (seconds without the sidecar before the last renewal),
                                         granted_us (when it was granted by the clock of who did, µs since 1970: only
                                         to tell the age of what is confirmed, by which nothing is decided)
    denied/<namespace>/<key>/<owner>     a note that pods of an owner were denied
    ended/<namespace>/<key>/<permit>     a note that a permit's pod has ended
    epoch                                a random value, replaced whenever data may have been lost

A holder is bound to an etcd lease of its own: etcd itself frees the permit at the lease's end.

Imported by the sidecar, where etcd is its store: nothing heavy here.
"""

from __future__ import annotations

import json
import os
from binascii import a2b_base64, b2a_base64

from at_least_semaphore_pod_hook.holding import is_anothers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, NamedTuple, TypeAlias

    Answer: TypeAlias = dict[str, Any]
    Body: TypeAlias = dict[str, Any]
    Flow: TypeAlias = Generator[tuple[str, Body], Answer, Any]
else:
    from at_least_semaphore_pod_hook.addresses import NamedTuple

TXN, LEASE_GRANT, LEASE_REVOKE = "/v3/kv/txn", "/v3/lease/grant", "/v3/lease/revoke"
KEEP_ALIVE = "/v3/lease/keepalive"
AUTHENTICATE = "/v3/auth/authenticate"
NOT_FOUND = 5
LOGIN_AGAIN = ("invalid auth token", "revision of auth store is old", "user name is empty")
"""What etcd says to a token that it does not know, or not any more: nothing was applied."""
IN_DOUBT = (1, 2, 4, 14)
"""gRPC's codes for cancelled, unknown, deadline exceeded and unavailable: the request may still be applied."""

EPOCH = "epoch"
INFLIGHT = "inflight/"
EXACT = 1000
"""Up to how many holders are counted with each grant; above that, `held` in the head is relied on."""
ENDED_SECONDS = 3600
ENDED = -1
"""What a renewal answers where the permit is not held because its pod has ended."""


class Renewed(NamedTuple):
    """What became of a renewal: the permit's lease in milliseconds, 0 or `ENDED`, and the etcd lease that it is under.

    With the number of the etcd lease the next renewal takes one request less. `anothers` is whether nothing was done,
    as the permit is another pod's than the one that has shown its UID.
    """

    lease_ms: int
    lease: int = 0
    anothers: bool = False


class Released(NamedTuple):
    """Whether a permit was given back, and the etcd lease that serves no purpose any more, or 0.

    `anothers` is as above.
    """

    released: bool
    lease: int = 0
    anothers: bool = False


class Found(NamedTuple):
    """A key as it was read; one that does not exist has no value and modification revision 0."""

    value: dict[str, Any] | None
    revision: int = 0
    lease: int = 0


def head_key(semaphore: str) -> str:
    """Name the head of the semaphore `<namespace>/<key>`."""
    return f"queue/{semaphore}"


def freed_key(semaphore: str) -> str:
    """Name the mark that a permit was freed without the head being written."""
    return f"{head_key(semaphore)}/freed"


def holder_key(semaphore: str, permit: str) -> str:
    """Name a holder; with an empty permit, what all holders begin with."""
    return f"{INFLIGHT}{semaphore}/{permit}"


def ended_key(semaphore: str, permit: str) -> str:
    """Name the note that a permit's pod has ended."""
    return f"ended/{semaphore}/{permit}"


def new_lease() -> int:
    """Choose the number of a lease at random: so a grant that got no answer can be repeated, and be revoked."""
    return int.from_bytes(os.urandom(8), "big") >> 1 or 1


def is_of_another(holder: dict[str, Any], pod: str, uid: str = "") -> bool:
    """Say whether a permit was confirmed by a pod of another name; without a name, nobody is another.

    With a UID, which the pod has shown to be its own, as `Store.renew` says.
    """
    if not uid:
        return bool(holder["confirmed"] and pod not in {"", holder["pod"]})
    return is_anothers(holder["pod"], holder["uid"], confirmed=holder["confirmed"], pod=pod, uid=uid)


def confirmed(holder: dict[str, Any], pod: str, uid: str = "") -> dict[str, Any] | None:
    """Return the holder as its sidecar's renewal leaves it, or None where it is like that already."""
    known = pod in {"", holder["pod"]} and uid in {"", holder["uid"]}
    if known and holder["confirmed"] and not holder.get("silent"):
        return None
    named = {"pod": pod or holder["pod"], "uid": uid or holder["uid"]}
    return {**holder, "confirmed": True, **named, "silent": 0}


def renew(semaphore: str, permit: str, pod: str = "", lease: int = 0, uid: str = "") -> Flow:
    """Extend a permit's lease on behalf of its sidecar, as `Store.renew` says.

    The lease is kept alive first, and the holder is read after that: found under that lease, it was held all the time,
    and is for a whole lease from now. The other way round it could have expired in between.

    Args:
        semaphore: Its name, `<namespace>/<key>`.
        permit: The permit's name.
        pod: The pod's name, or an empty string.
        lease: The etcd lease as far as it is known.
        uid: The pod's UID where name and UID are shown to be its own; then the lease is not known.

    Returns (as the generator's value):
        A `Renewed`. etcd deletes what expires, so nothing is left to be revived: that is answered with 0.
    """
    while True:
        extended = bool(lease) and _seconds_left((yield KEEP_ALIVE, {"ID": str(lease)})) > 0
        found, note = read_answers((yield TXN, _reads(holder_key(semaphore, permit), ended_key(semaphore, permit))))
        if found.value is None:
            return Renewed(ENDED if note.revision else 0)
        if is_of_another(found.value, pod, uid):
            return Renewed(0, anothers=bool(uid))
        if found.lease != lease:
            lease = found.lease
            continue
        if not extended:
            return Renewed(0)  # its lease has ended, and etcd is about to delete it
        changed = confirmed(found.value, pod, uid)
        if changed is None or succeeded((yield TXN, rewrite(holder_key(semaphore, permit), changed, found))):
            return Renewed(found.value["lease_ms"], lease)


def release(semaphore: str, permit: str, pod: str = "", *, uid: str = "", ended: bool = False) -> Flow:
    """Give a permit back, as `Store.release` says.

    Args:
        semaphore: Its name, `<namespace>/<key>`.
        permit: The permit's name.
        pod: The name of the pod that gives it back, or an empty string.
        uid: The pod's UID where name and UID are shown to be its own, or an empty string.
        ended: Whether to note that the pod has ended.

    Returns (as the generator's value):
        A `Released`. Where the holder was deleted by a request that got no answer, the next one finds it gone: it
        says so, as nobody can tell who has deleted it.
    """
    keys = holder_key(semaphore, permit), head_key(semaphore)
    note, again = 0, False
    found, head = read_answers((yield TXN, _reads(*keys)))
    while True:
        if found.value is not None and is_of_another(found.value, pod, uid):
            return Released(False, note, anothers=bool(uid))
        if found.value is None and not ended:
            return Released(False)
        if ended and not note:
            note = new_lease()
            yield LEASE_GRANT, {"ID": str(note), "TTL": str(ENDED_SECONDS)}
        conditions = [unchanged(keys[0], found)]
        steps: list[Body] = []
        if found.value is not None:
            steps.append({"request_delete_range": {"key": encoded(keys[0])}})
            if again or _is_relied_on(head):
                steps.append(_one_less(semaphore, head))
            else:
                # Without any write, so that it works in an etcd that is full. But only at first: who takes permits
                # must not hold up for long who gives one back.
                conditions.append(unchanged(keys[1], head))
        if ended:
            steps.append({"request_put": {"key": encoded(ended_key(semaphore, permit)), "lease": str(note)}})
        answer = yield TXN, {"compare": conditions, "success": steps, **_otherwise(*keys)}
        if succeeded(answer):
            return Released(found.value is not None, found.lease)
        found, head = read_answers(answer)
        again = True


def _is_relied_on(head: Found) -> bool:
    """Say whether the head's bound takes the place of a count."""
    return head.value is not None and head.value["held"] > EXACT


def _one_less(semaphore: str, head: Found) -> Body:
    """Lower the head's bound, where it is relied on and nobody has written the head meanwhile; else leave a mark."""
    key = head_key(semaphore)
    lower: list[Body] = []
    if head.value is not None and _is_relied_on(head):
        lowered = {**head.value, "held": head.value["held"] - 1}
        lower = [{"request_put": {"key": encoded(key), "value": encoded(json.dumps(lowered))}}]
    mark = {"request_put": {"key": encoded(freed_key(semaphore))}}
    return {"request_txn": {"compare": [unchanged(key, head)], "success": lower, "failure": [mark]}}


def rewrite(key: str, value: dict[str, Any], found: Found) -> Body:
    """Return a transaction that writes a key, under the lease that it has, where it is as it was found."""
    put = {"key": encoded(key), "value": encoded(json.dumps(value)), "lease": str(found.lease)}
    return {"compare": [unchanged(key, found)], "success": [{"request_put": put}]}


def unchanged(key: str, found: Found) -> Body:
    """Return the condition that a key is as it was found."""
    return {"key": encoded(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(found.revision)}


def _reads(*keys: str) -> Body:
    return {"success": [{"request_range": {"key": encoded(key)}} for key in keys]}


def _otherwise(*keys: str) -> Body:
    return {"failure": _reads(*keys)["success"]}


def succeeded(answer: Answer) -> bool:
    """Say whether a transaction's conditions held."""
    return bool(answer.get("succeeded"))


def read_answers(answer: Answer) -> list[Found]:
    """Return what the reads of a transaction found; nothing at all where it was not done."""
    found = []
    for response in answer.get("responses", ()):
        kvs = response.get("response_range", {}).get("kvs")
        if kvs:
            kv = kvs[0]
            text = a2b_base64(kv.get("value", ""))
            value = json.loads(text) if text else {}
            found.append(Found(value, int(kv["mod_revision"]), int(kv.get("lease", 0))))
        else:
            found.append(Found(None))
    return found


def _seconds_left(answer: Answer) -> int:
    return int(answer.get("result", {}).get("TTL", 0))


def encoded(text: str) -> str:
    """Return base64, as the gateway wants keys and values."""
    return b2a_base64(text.encode(), newline=False).decode()
