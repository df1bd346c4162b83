"""Whose a permit is, by what a store has noted of it. Imported by the sidecar, where etcd is its store."""

from __future__ import annotations

GENERATED_PREFIX = 58
"""How much of a `generateName` the API server keeps in front of the random end of the name that it makes of it."""


def is_anothers(noted: str, noted_uid: str, *, confirmed: bool, pod: str, uid: str) -> bool:
    """Say whether a permit is another pod's than the one that has shown its name and its UID.

    `renew.lua` and `release.lua` say the same.

    Args:
        noted: The name of the permit's pod as far as it is known: whole, the prefix of a generated one with `*` after
            it, or empty where nothing was known.
        noted_uid: Its UID; empty as long as that is not known.
        confirmed: Whether a sidecar has renewed the permit; then its name is known.
        pod: The name that was shown.
        uid: The UID that was shown.
    """
    if noted_uid:
        return noted_uid != uid
    if not confirmed and noted.endswith("*"):
        return not pod.startswith(noted[:-1][:GENERATED_PREFIX])
    return noted != pod and (confirmed or noted != "")
