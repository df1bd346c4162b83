"""What the API server was asked by whom, and whether that was their right: its audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

DECISION = "authorization.k8s.io/decision"


class Asked(NamedTuple):
    """One request.

    Attributes:
        user: Who has sent it.
        verb: As RBAC has it.
        group: The resource's API group; empty for the core's.
        resource: The resource, with its subresource if there is one: `pods/exec`.
        name: The object's name; empty where there is none, as when one is created.
        allowed: Whether it was within the user's rights; what became of it then is another matter.
        at: When it came.
    """

    user: str
    verb: str
    group: str
    resource: str
    name: str
    allowed: bool
    at: datetime


def policy(users: Sequence[str]) -> str:
    """Return an audit policy that notes who asked for what, without bodies, for these users alone."""
    rules = [{"level": "Metadata", "users": list(users), "omitStages": ["RequestReceived"]}, {"level": "None"}]
    return json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules if users else rules[1:]})


def read(log: Path) -> Iterator[Asked]:
    """Yield what was asked about resources; a watch comes when it begins and again when it ends."""
    with log.open() as lines:
        for line in lines:
            event = json.loads(line)
            about = event.get("objectRef")
            if about is None:
                continue
            resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            # A request that was refused before anybody looked at rights, such as one with an old token, has none.
            allowed = event.get("annotations", {}).get(DECISION) != "forbid"
            user = event["user"].get("username", "")
            group, name, at = about.get("apiGroup", ""), about.get("name", ""), event["requestReceivedTimestamp"]
            yield Asked(user, event["verb"], group, resource, name, allowed, datetime.fromisoformat(at))
