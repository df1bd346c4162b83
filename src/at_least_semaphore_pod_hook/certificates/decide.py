"""What to do next about certificate, authority and trust: pure functions of what is seen.

A rotation has four steps, each of them one write that leaves a sound state behind:

1. STAGE: a new pair and its authority are put into the Secret, beside those in use.
2. TRUST: the API server is told to trust both authorities.
3. PROMOTE: once it has been seen to for `settle_seconds`, the new pair is the one to serve.
4. RETIRE: once that has been so for twice as long, the old authority goes; TRUST follows.

Times are measured by each replica's own steady clock, from what it has seen itself. So a replica that starts anew
waits anew, and no two machines' clocks are compared; only the dates in certificates are wall-clock times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_AUTHORITIES = 16
"""How many are kept at most, so that a Secret that is spoilt again and again does not grow without end."""
RETIRE_FACTOR = 2
"""How much longer an old authority is trusted after its successor's pair was promoted: a replica that sees that one for
the first time waits for `settle_seconds` itself."""


class Authority(NamedTuple):
    """A certificate authority; it has signed one certificate, and its key is gone.

    Attributes:
        pem: Its certificate.
        not_after: When it ends, seconds since the epoch.
    """

    pem: str
    not_after: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A serving certificate and its key.

    Attributes:
        certificate, key: PEM.
        authority: Whose it is.
        not_before, not_after: From when and until when it holds, seconds since the epoch.
        named: Whether it has all names that are wanted.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    authority: Authority
    not_before: float
    not_after: float
    named: bool = True

    def holds(self, now: float) -> bool:
        """Whether it can be served at this time."""
        return self.not_before <= now < self.not_after


class Contents(NamedTuple):
    """What the Secret says.

    Attributes:
        current: To be served; None where there is no usable pair.
        next: Staged, to be served next.
        authorities: To be trusted.
        asked: Whether somebody wants a rotation now.
    """

    current: Pair | None
    next: Pair | None
    authorities: tuple[Authority, ...]
    asked: bool = False


class Step(Enum):
    """What to write next."""

    REPLACE = "replace"
    """A new Secret, or a new pair in place of one that is of no use."""
    TRUST = "trust"
    STAGE = "stage"
    PROMOTE = "promote"
    RETIRE = "retire"
    NONE = "none"


def decide(
    contents: Contents | None,
    in_step: bool,
    now: float,
    trusted: Mapping[str, float],
    settled_seconds: float,
    settle_seconds: float,
) -> Step:
    """Say what to write next.

    Args:
        contents: What the Secret says; None where there is none.
        in_step: Whether the API server is told to trust just what the Secret says.
        now: Seconds since the epoch.
        trusted: For how many seconds each authority, by its PEM, has been seen to be trusted.
        settled_seconds: For how long pair and authorities have been seen as they are, and in step.
        settle_seconds: How long a change takes to be known everywhere.
    """
    if contents is None or contents.current is None or not contents.current.holds(now):
        staged = contents.next if contents else None
        return Step.PROMOTE if staged and staged.holds(now) else Step.REPLACE
    current, staged = contents.current, contents.next
    if not in_step:
        step = Step.TRUST
    elif staged and staged.holds(now):
        step = Step.PROMOTE if trusted.get(staged.authority.pem, 0) >= settle_seconds else Step.NONE
    elif any(authority != current.authority for authority in contents.authorities):
        step = Step.RETIRE if settled_seconds >= RETIRE_FACTOR * settle_seconds else Step.NONE
    else:
        step = Step.STAGE if is_due(current, now) or contents.asked else Step.NONE
    return step


def is_due(pair: Pair, now: float) -> bool:
    """Whether two thirds of a certificate's life are over, or its names are not those that are wanted."""
    return not pair.named or now >= pair.not_before + (pair.not_after - pair.not_before) * 2 / 3


def serves(
    offered: Pair | None, serving: Pair | None, now: float, trusted: Mapping[str, float], settle_seconds: float
) -> bool:
    """Say whether a replica takes up the pair that the Secret offers.

    Not before the API server trusts it: at once where what is served is of no use any more, and otherwise only when
    every API server has surely heard of it.
    """
    if offered is None or not offered.holds(now) or offered == serving or offered.authority.pem not in trusted:
        return False
    if serving is None or not serving.holds(now) or serving.authority.pem not in trusted:
        return True
    return trusted[offered.authority.pem] >= settle_seconds


def kept(authorities: Iterable[Authority], now: float) -> tuple[Authority, ...]:
    """Return those that have not ended, each once, in their order; of very many, the first ones."""
    unique = dict.fromkeys(authority for authority in authorities if authority.not_after > now)
    return tuple(unique)[:MAX_AUTHORITIES]


class Seen:
    """For how long things have been seen, by a steady clock.

    Args:
        gap_seconds: What was not looked at for longer than this may have changed meanwhile, and counts from anew.
    """

    def __init__(self, gap_seconds: float) -> None:
        self._gap_seconds = gap_seconds
        self._since: dict[object, float] = {}
        self._last = 0.0

    def look(self, things: Iterable[object], at: float) -> dict[object, float]:
        """Take in what is seen now; return for how many seconds each of it has been."""
        before = self._since if at - self._last <= self._gap_seconds else {}
        self._since = {thing: before.get(thing, at) for thing in things}
        self._last = at
        return {thing: at - since for thing, since in self._since.items()}
