"""A store of three members of etcd."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devcluster.polling import until
from devcluster.topologies_etcd import EtcdGroup, EtcdMember
from tests.chaos.history import Recorder
from tests.chaos.linked import LinkedGroup
from tests.chaos.proxy import NONE, Loop, Trouble
from tests.chaos.topology import Held, start_again

_HEAL_SECONDS = 15.0
_ELECTION = ("--heartbeat-interval=50", "--election-timeout=500")
"""Longer than a busy machine keeps a member waiting."""
_from = re.compile(rb"x-server-from: ([0-9a-f]+)", re.IGNORECASE)


class Etcd(LinkedGroup):
    """Three members, in which the lock is, too.

    What its callers do is recorded by themselves: a transaction is asked for in many requests.

    Args:
        directory: Their data.
        loop: Where links between them run.
        peers: Whether there are such links.
    """

    name = "etcd"
    locks = True

    group: EtcdGroup

    def __init__(self, directory: Path, loop: Loop, *, peers: bool) -> None:
        super().__init__(loop)
        self.cut_off = 0
        self.group = EtcdGroup(directory, arguments=_ELECTION, advertised=self.link if peers else None)

    def stops(self, data: bytes) -> bool:
        """Say whether a member speaks that is cut off from its peers."""
        found = _from.search(data)
        return found is not None and int(found[1], 16) == self.cut_off

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self.group.members]

    def rewritten(self, links: Mapping[int, int]) -> None:
        """Its clients go only where they are told to."""

    def tap(self, recorder: Recorder, process: str) -> None:
        """See above."""

    def flags(self, addresses: Sequence[str]) -> list[str]:
        members = ",".join(addresses)
        return ["--lock-mode=etcd", f"--etcd-addresses={members}", f"--queue-url=etcd://{members}"]

    def held(self) -> Held:
        held = Held({}, {})
        for name, _ in self._range("inflight/"):
            key, _, permit = name.split("/", 2)[2].rpartition("/")
            held.permits.setdefault(key, set()).add(permit)
        for name, value in self._range("queue/"):
            *_, key = name.split("/", 2)
            # What is empty is a mark beside a semaphore, and what is in no namespace the data's version.
            if value and name != "queue/version":
                held.lengths[key] = int(json.loads(value)["length"])
        return held

    def _range(self, prefix: str) -> list[tuple[str, bytes]]:
        # What follows a slash among the characters is a zero.
        first, end = (base64.b64encode(text.encode()).decode() for text in (prefix, f"{prefix[:-1]}0"))
        answer = self.post("/v3/kv/range", {"key": first, "range_end": end})
        return [
            (base64.b64decode(kv["key"]).decode(), base64.b64decode(kv.get("value", "")))
            for kv in answer.get("kvs", ())
        ]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask whichever member answers."""

        def asked() -> dict[str, Any] | None:
            for member in self.group.members:
                try:
                    answer = member.post(path, body)
                except (OSError, ValueError):
                    continue
                if "header" in answer:
                    return answer
            return None

        answer: dict[str, Any] = until(asked, f"a member answers {path}", _HEAL_SECONDS)
        return answer

    def leader(self) -> EtcdMember:
        """Return the member that leads, once one does."""
        found: EtcdMember = until(self._leader, "a member leads", _HEAL_SECONDS)
        return found

    def _leader(self) -> EtcdMember | None:
        for member in self.group.members:
            try:
                status = member.post("/v3/maintenance/status", {})
            except (OSError, ValueError):
                continue
            if status.get("leader", "0") == status.get("header", {}).get("member_id", "none"):
                return member
        return None

    def isolate(self, member: EtcdMember) -> None:
        """Cut a member off from its peers; clients still reach it."""
        status = member.post("/v3/maintenance/status", {})
        self.cut_off = int(status["header"]["member_id"])
        for port, link in self.peers.items():
            if port == member.peer_port:
                link.trouble(Trouble(refused=True))
            else:
                link.reset()

    def rejoin(self) -> None:
        """Let it be reached again."""
        self.cut_off = 0
        for link in self.peers.values():
            link.trouble(NONE)

    def restart(self, member: EtcdMember) -> None:
        """Start what was ended."""
        start_again(lambda: self.group.start(member))
