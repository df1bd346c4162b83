"""Script calls read along on a connection to Redis become operations of a history."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hiredis

import at_least_semaphore_pod_hook
from tests.chaos.history import Handle, Recorder

SCRIPTS = Path(at_least_semaphore_pod_hook.__file__).parent / "stores/redis/scripts"
NOT_APPLIED = (
    "NOSCRIPT",
    "READONLY",
    "LOADING",
    "OOM",
    "MOVED",
    "ASK",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "NOAUTH",
    "NOPERM",
)
"""With what a server refuses a script before any of it has run."""

WAITS_FOR_REPLICAS = {"granted", "resumed"}
"""What an acquire answers that counts only once replicas have it."""

_MORE = object()
_semaphore = re.compile(r"queue/\{(.+)\}")
Ender = Callable[[Handle, Any], None]


class Asked(NamedTuple):
    """An operation as its script's arguments say it, and how its reply is read."""

    kind: str
    permit: str
    arguments: dict[str, Any]
    end: Ender


def _acquire(argv: Sequence[str]) -> Asked:
    permit, carried, identity, pod, length, lease, _fresh, dry_run, _assumed, owner, uid = (*argv, "", "")[:11]

    def end(handle: Handle, reply: Any) -> None:
        outcome, found, held, *rest = reply
        answer: dict[str, Any] = {"outcome": outcome.decode(), "length": found, "held": held, "permit": "", "token": 0}
        if rest:
            answer |= {"permit": rest[0].decode(), "token": int(rest[1])}
        handle.ok(**answer, lease_ms=int(lease))

    arguments: dict[str, Any] = {"length": int(length), "expiration_ms": int(lease), "identity": identity, "pod": pod}
    arguments |= {"carried": carried, "owner": owner, "uid": uid, "dry_run": dry_run == "1"}
    return Asked("acquire", permit, arguments, end)


def _renew(argv: Sequence[str]) -> Asked:
    arguments = {"pod": argv[1]} | ({"uid": argv[2]} if len(argv) > 2 else {})
    return Asked("keep" if len(argv) > 2 else "renew", argv[0], arguments, lambda h, reply: h.ok(lease_ms=reply))


def _release(argv: Sequence[str]) -> Asked:
    arguments = {"pod": argv[1], "ended": argv[2:3] == ["1"]}
    return Asked("release", argv[0], arguments, lambda h, reply: h.ok(released=bool(reply)))


def _reclaim(_argv: Sequence[str]) -> Asked:
    return Asked("reclaim", "", {}, lambda h, reply: h.ok(count=reply))


def _begin(argv: Sequence[str]) -> Asked:
    def end(handle: Handle, reply: Any) -> None:
        if not reply[0]:
            handle.fail()
        else:
            handle.ok(token=int(reply[1]), length=reply[2], held=reply[3])

    return Asked("begin", "", {"domain": argv[0], "token": int(argv[1])}, end)


def _set_length(argv: Sequence[str]) -> Asked:
    length = int(argv[2])

    def end(handle: Handle, reply: Any) -> None:
        if reply:
            handle.ok(length=length)
        else:
            handle.fail()

    return Asked("set_length", "", {"domain": argv[0], "token": int(argv[1]), "length": length}, end)


def _adopt(argv: Sequence[str]) -> Asked:
    rows = [argv[start : start + 5] for start in range(2, len(argv), 5)]
    permits = [{"permit": row[0]} | ({"token": int(row[3])} if row[3] != "0" else {}) for row in rows]

    def end(handle: Handle, reply: Any) -> None:
        if reply < 0:
            handle.fail()
        elif reply == len(permits):
            handle.ok(permits=permits)
        else:
            # The others were held already, and it does not say which these are.
            handle.unknown()

    return Asked("adopt", "", {"domain": argv[0], "token": int(argv[1]), "permits": permits}, end)


def _state(_argv: Sequence[str]) -> Asked:
    def end(handle: Handle, reply: Any) -> None:
        handle.ok(length=reply[0][0], permits=[permit.decode() for permit in reply[1][::3]])

    return Asked("state", "", {}, end)


_READERS: dict[str, Callable[[Sequence[str]], Asked]] = {
    "acquire": _acquire,
    "renew": _renew,
    "release": _release,
    "reclaim": _reclaim,
    "begin": _begin,
    "set_length": _set_length,
    "adopt": _adopt,
    "state": _state,
}


def _digest(text: bytes) -> str:
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


_BY_DIGEST = {_digest((SCRIPTS / f"{name}.lua").read_bytes()): reader for name, reader in _READERS.items()}


def _grants(asked: Asked, reply: Any) -> bool:
    return asked.kind == "acquire" and reply[0].decode() in WAITS_FOR_REPLICAS


class _Pending:
    __slots__ = ("asked", "forwarded", "handle", "waits")

    def __init__(self, asked: Asked | None, handle: Handle | None, *, waits: bool = False) -> None:
        self.asked = asked
        self.handle = handle
        self.forwarded = False
        self.waits = waits


class RespTap:
    """Reads along on one connection that speaks RESP; see `proxy.Tap`.

    Args:
        recorder: Where operations go.
        process: Who calls; empty where it is the sidecar of the pod that the script's arguments name.
        wait_replicas: How many replicas must have a grant before it counts. It is answered with the WAIT that follows,
            and unknown where too few have it.
    """

    def __init__(self, recorder: Recorder, process: str, wait_replicas: int = 0) -> None:
        self._recorder = recorder
        self._process = process
        self._wait_replicas = wait_replicas
        self._waiting: list[tuple[Asked, Handle, Any]] = []
        self._requests = hiredis.Reader(notEnoughData=_MORE)
        self._replies = hiredis.Reader(notEnoughData=_MORE)
        self._pending: deque[_Pending] = deque()
        self._subscribed = False

    def asked(self, data: bytes) -> None:
        self._requests.feed(data)
        while (command := self._requests.gets()) is not _MORE:
            if command[0].upper() in {b"SUBSCRIBE", b"PSUBSCRIBE"}:
                self._subscribed = True
            self._pending.append(self._begin(command))

    def forwarded(self) -> None:
        for pending in self._pending:
            pending.forwarded = True

    def answered(self, data: bytes) -> None:
        if self._subscribed:  # what comes then answers nothing
            return
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not _MORE:
            pending = self._pending.popleft()
            if pending.waits:
                self._replicated(reply)
            if pending.handle is None or pending.asked is None:
                continue
            if not isinstance(reply, hiredis.ReplyError):
                if self._wait_replicas and _grants(pending.asked, reply):
                    self._waiting.append((pending.asked, pending.handle, reply))
                else:
                    pending.asked.end(pending.handle, reply)
            elif str(reply).startswith(NOT_APPLIED):
                pending.handle.fail()
            else:
                pending.handle.unknown()

    def _replicated(self, replicas: Any) -> None:
        enough = isinstance(replicas, int) and replicas >= self._wait_replicas
        for asked, handle, reply in self._waiting:
            if enough:
                asked.end(handle, reply)
            else:
                handle.unknown()
        self._waiting.clear()

    def ended(self) -> None:
        self._replicated(None)
        for pending in self._pending:
            if pending.handle is not None:
                if pending.forwarded:
                    pending.handle.unknown()
                else:
                    pending.handle.fail()
        self._pending.clear()

    def _begin(self, command: Sequence[bytes]) -> _Pending:
        name = command[0].upper()
        if name not in {b"EVALSHA", b"EVAL"}:
            return _Pending(None, None, waits=name == b"WAIT")
        digest = command[1].decode() if name == b"EVALSHA" else _digest(command[1])
        reader = _BY_DIGEST.get(digest)
        keys = int(command[2])
        found = _semaphore.fullmatch(command[3].decode()) if keys else None
        if reader is None or found is None:
            return _Pending(None, None)
        asked = reader([part.decode() for part in command[3 + keys :]])
        process = self._process or f"sidecar {asked.arguments.get('pod', '')}"
        return _Pending(asked, self._recorder.invoke(process, asked.kind, found[1], asked.permit, **asked.arguments))
