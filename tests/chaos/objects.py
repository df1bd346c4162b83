"""What a stand-in API server keeps: objects with versions, and the watches on them."""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

Object = dict[str, Any]
_KEPT = 20_000


class ConflictError(Exception):
    """A patch whose test or path does not fit the object."""


class Event(NamedTuple):
    """A change of a pod, as a watch tells it."""

    version: int
    kind: str
    line: bytes
    labels: frozenset[tuple[str, str]]


class Objects:
    """Pods, and what has happened to them."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], Object] = {}
        self.version = 1
        self.events: deque[Event] = deque(maxlen=_KEPT)
        self.oldest = 0
        """Versions up to this one are not known any more."""
        self.changed = asyncio.Event()

    def create(self, namespace: str, pod: Object) -> Object:
        """Store a pod as an API server completes it."""
        pod = copy.deepcopy(pod)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = pod["metadata"]
        metadata.setdefault("name", f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:8]}")
        metadata |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now}
        pod["spec"] = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30} | pod["spec"]
        pod["status"] = {"phase": "Pending"}
        self.pods[namespace, metadata["name"]] = pod
        return self.tell("ADDED", pod)

    def remove(self, pod: Object) -> Object:
        """Take a pod away."""
        del self.pods[pod["metadata"]["namespace"], pod["metadata"]["name"]]
        return self.tell("DELETED", pod)

    def tell(self, kind: str, pod: Object) -> Object:
        """Give a pod its next version and tell the watches."""
        pod["metadata"]["resourceVersion"] = str(self.version + 1)
        self.repeat(kind, pod)
        return pod

    def repeat(self, kind: str, pod: Object) -> None:
        """Tell the watches of a pod with the version that it has."""
        line = json.dumps({"type": kind, "object": pod}).encode() + b"\n"
        labels = frozenset((pod["metadata"].get("labels") or {}).items())
        self.version += 1
        self.events.append(Event(self.version, kind, line, labels))
        self.notify()

    def notify(self) -> None:
        """Wake the watches."""
        self.changed.set()
        self.changed = asyncio.Event()

    def since(self, version: int) -> Iterator[Event]:
        """Return the changes after a version, in order."""
        found = []
        for event in reversed(self.events):
            if event.version <= version:
                break
            found.append(event)
        return reversed(found)


def selected(labels: frozenset[tuple[str, str]], selector: str) -> bool:
    """Say whether labels fit a selector: names, or name=value, separated by commas."""
    names = {name for name, _ in labels}
    terms = [term.partition("=") for term in selector.split(",") if term]
    return all((name, value) in labels if equals else name in names for name, equals, value in terms)


def patched(document: Object, operations: list[Object]) -> Object:
    """Apply a JSON patch (RFC 6902: add, remove, replace, test); ConflictError where it does not fit."""
    result = copy.deepcopy(document)
    for operation in operations:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
        try:
            place: Any = result
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            _apply(place, last, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ConflictError(f"{operation}: {error!r}") from error
    return result


def _apply(place: Any, last: str, operation: Object) -> None:
    op, value = operation["op"], operation.get("value")
    if isinstance(place, list):
        if op == "add":
            place.insert(len(place) if last == "-" else int(last), value)
            return
        key: Any = int(last)
    else:
        key = last
        if op == "add":
            place[key] = value
            return
    if op == "test":
        if place[key] != value:
            raise ValueError("the test failed")
    elif op == "remove":
        del place[key]
    else:
        assert op == "replace", op
        place[key] = value


def merged(document: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
