"""The annotations by which a pod opts in. They are input: bounded, and validated before anything else happens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.semaphore.model import MAX_EXPIRATION_SECONDS, MAX_LENGTH

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

KEY_ACCEPTED = "1 to 63 of A-Z a-z 0-9 - _ . with a letter or digit first and last"

_key_pattern = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_number_pattern = re.compile(r"[1-9][0-9]{0,8}")
_SHOWN = 80


class Demand(NamedTuple):
    """What an opted-in pod asks for. `expiration` is in seconds."""

    key: str
    length: int
    expiration: int


def annotation_prefix(variant: str = "") -> str:
    """Return what all annotations begin with; a variant lets a second copy live in the same cluster."""
    return f"{variant}.{DOMAIN}/" if variant else f"{DOMAIN}/"


def parse(annotations: Mapping[str, str], prefix: str) -> Demand | None:
    """Read a pod's annotations.

    Args:
        annotations: All annotations of the pod.
        prefix: From `annotation_prefix`.

    Returns:
        The demand, or None where the pod has not opted in.

    Raises:
        InvalidInputError: An annotation is not what is accepted; the message names it, its value and what is.
    """
    opt_in = annotations.get(prefix + OPT_IN)
    if opt_in is None or opt_in == "false":
        return None
    if opt_in != "true":
        raise _refused(prefix + OPT_IN, opt_in, '"true" or "false"')
    key = annotations.get(prefix + KEY)
    if key is None or not _key_pattern.fullmatch(key):
        raise _refused(prefix + KEY, key, KEY_ACCEPTED)
    return Demand(
        key,
        _whole_number(annotations, prefix + LENGTH, MAX_LENGTH, "a whole number"),
        _whole_number(annotations, prefix + EXPIRATION, MAX_EXPIRATION_SECONDS, "a whole number of seconds"),
    )


def _whole_number(annotations: Mapping[str, str], name: str, most: int, what: str) -> int:
    value = annotations.get(name)
    if value is None or not _number_pattern.fullmatch(value) or int(value) > most:
        raise _refused(name, value, f"{what} from 1 to {most}")
    return int(value)


def _refused(name: str, value: str | None, accepted: str) -> InvalidInputError:
    if value is None:
        return InvalidInputError(f"annotation {name} is missing: it takes {accepted}")
    shown = ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
    return InvalidInputError(f"annotation {name}: {shown} is not accepted: it takes {accepted}")
