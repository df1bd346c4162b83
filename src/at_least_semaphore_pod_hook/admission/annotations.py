"""The annotations by which a pod opts in. They are input: bounded, and validated before anything else happens."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.semaphore.model import MAX_EXPIRATION_SECONDS, MAX_LENGTH
from at_least_semaphore_pod_hook.settings import MIN_FENCED_EXPIRATION_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN = "at-least-semaphore-pod-hook.kaidotio.github.io"

OPT_IN = "at-least-semaphore-pod"
"""`"true"` puts the pod under its key's semaphore; `"false"` is as good as no annotation."""
KEY = "key"
"""The semaphore's name within the namespace."""
LENGTH = "length"
"""How many pods of the key run at once, a whole number."""
EXPIRATION = "expiration"
"""Seconds that a permit outlives its holder's last sign of life."""
WHEN_FULL = "when-full"
"""What becomes of the pod while no permit is free: `deny` or `gate`; optional."""
RELEASE_ON = "release-on"
"""When the permit goes back: at the first SIGTERM (`sigterm`), or when the other containers have ended (`exit`)."""

ARRIVED = "arrived"
"""Ours to write: when a waiter came, in microseconds since the epoch, as creation timestamps have whole seconds."""
FENCING_TOKEN = "fencing-token"  # noqa: S105 - a number that everybody may know
"""Ours to write: the fencing token of the pod's permit, for the workload to read by the downward API."""
GATE = "permit"
"""What the prefix is followed by in the name of the scheduling gate that waiters wait behind."""

WOKEN = "woken"
"""Ours to write to owners of denied pods: when a permit was free for one of them, in seconds since the epoch."""

OPT_IN_ACCEPTED = '"true" or "false"'
KEY_ACCEPTED = "1 to 63 of A-Z a-z 0-9 - _ . with a letter or digit first and last"
LENGTH_ACCEPTED = f"a whole number from 1 to {MAX_LENGTH}"

_key_pattern = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_number_pattern = re.compile(r"[1-9][0-9]{0,8}")
_SHOWN = 80


class WhenFull(StrEnum):
    """What becomes of a pod while no permit is free."""

    DENY = "deny"
    GATE = "gate"


class ReleaseOn(StrEnum):
    """When a permit goes back."""

    SIGTERM = "sigterm"
    EXIT = "exit"


Choice = TypeVar("Choice", bound=StrEnum)


class Demand(NamedTuple):
    """What an opted-in pod asks for. `expiration` is in seconds; what is optional and left out is None."""

    key: str
    length: int
    expiration: int
    when_full: WhenFull | None = None
    release_on: ReleaseOn | None = None


class Read(NamedTuple):
    """An annotation that a pod is given by whoever writes it. For the reference; `name` comes after the prefix."""

    name: str
    accepted: str
    default: str
    meaning: str


class Written(NamedTuple):
    """A name that is ours to write. For the reference; `name` comes after the prefix."""

    name: str
    where: str
    meaning: str


def _choices_accepted(choices: type[StrEnum]) -> str:
    return " or ".join(f'"{choice}"' for choice in choices)


def _expiration_accepted(shortest: int = 1) -> str:
    return f"a whole number of seconds from {shortest} to {MAX_EXPIRATION_SECONDS}"


READ = (
    Read(OPT_IN, OPT_IN_ACCEPTED, "not opted in", '"true" opts in; "false" is as good as no annotation'),
    Read(KEY, KEY_ACCEPTED, "needed", "the semaphore's name within the namespace"),
    Read(
        LENGTH,
        LENGTH_ACCEPTED,
        "needed",
        "how many permits the semaphore has; the pod created last decides",
    ),
    Read(
        EXPIRATION,
        f"{_expiration_accepted()}; with --fence from {MIN_FENCED_EXPIRATION_SECONDS}",
        "needed",
        "how long a permit lives without a renewal",
    ),
    Read(
        WHEN_FULL,
        _choices_accepted(WhenFull),
        "the webhook's --when-full",
        "what becomes of the pod while no permit is free: it is denied, or waits behind a scheduling gate",
    ),
    Read(
        RELEASE_ON,
        _choices_accepted(ReleaseOn),
        '"exit" with native sidecars, else "sigterm"',
        "when the permit goes back: at the pod's first signal, or when its other containers have ended",
    ),
)
"""What is read from a pod."""

WRITTEN = (
    Written(
        FENCING_TOKEN,
        "annotation of a pod with a permit",
        "a number that rises with each grant of the key, for the workload to show to what it writes to",
    ),
    Written(ARRIVED, "annotation of a pod that waits", "when it came, in microseconds since the epoch"),
    Written(GATE, "scheduling gate of a pod that waits", "what it waits behind"),
    Written(KEY, "label of a pod that has opted in", "its key, by which the controller finds the pod"),
    Written(
        WOKEN,
        "annotation of an owner of denied pods",
        "when a permit was free for one of them, in seconds since the epoch",
    ),
)
"""What is written."""


def annotation_prefix(variant: str = "") -> str:
    """Return what all annotations begin with; a variant lets a second copy live in the same cluster."""
    return f"{variant}.{DOMAIN}/" if variant else f"{DOMAIN}/"


def parse(annotations: Mapping[str, str], prefix: str, *, fence: bool = False) -> Demand | None:
    """Read a pod's annotations.

    Args:
        annotations: All annotations of the pod.
        prefix: From `annotation_prefix`.
        fence: Whether the expiration has to leave time to stop the pod's work.

    Returns:
        The demand, or None where the pod has not opted in.

    Raises:
        InvalidInputError: An annotation is not what is accepted; the message names it, its value and what is.
    """
    opt_in = annotations.get(prefix + OPT_IN)
    if opt_in is None or opt_in == "false":
        return None
    if opt_in != "true":
        raise _refused(prefix + OPT_IN, opt_in, OPT_IN_ACCEPTED)
    key = annotations.get(prefix + KEY)
    if key is None or not _key_pattern.fullmatch(key):
        raise _refused(prefix + KEY, key, KEY_ACCEPTED)
    shortest = MIN_FENCED_EXPIRATION_SECONDS if fence else 1
    return Demand(
        key,
        _whole_number(annotations, prefix + LENGTH, LENGTH_ACCEPTED, MAX_LENGTH),
        _whole_number(
            annotations,
            prefix + EXPIRATION,
            _expiration_accepted(shortest) + " with --fence" * fence,
            MAX_EXPIRATION_SECONDS,
            shortest,
        ),
        _one_of(annotations, prefix + WHEN_FULL, WhenFull),
        _one_of(annotations, prefix + RELEASE_ON, ReleaseOn),
    )


def _one_of(annotations: Mapping[str, str], name: str, choices: type[Choice]) -> Choice | None:
    value = annotations.get(name)
    if value is None:
        return None
    try:
        return choices(value)
    except ValueError:
        raise _refused(name, value, _choices_accepted(choices)) from None


def _whole_number(annotations: Mapping[str, str], name: str, accepted: str, most: int, least: int = 1) -> int:
    value = annotations.get(name)
    if value is None or not _number_pattern.fullmatch(value) or not least <= int(value) <= most:
        raise _refused(name, value, accepted)
    return int(value)


def _refused(name: str, value: str | None, accepted: str) -> InvalidInputError:
    if value is None:
        return InvalidInputError(f"annotation {name} is missing: it takes {accepted}")
    shown = ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
    return InvalidInputError(f"annotation {name}: {shown} is not accepted: it takes {accepted}")
