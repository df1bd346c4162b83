"""What is logged of a decision: the same fields, whoever decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey


def decided(key: SemaphoreKey | None, permit: str, pod: str, outcome: str, seconds: float) -> dict[str, object]:
    """Return the fields of a line on a decision.

    Args:
        key: The semaphore; None where it is not known.
        permit: The permit that it is about; empty where there is none.
        pod: The pod's name, as far as it is known.
        outcome: What came of it, in a word.
        seconds: How long it took.
    """
    return {
        "semaphore": str(key) if key else "",
        "namespace": key.namespace if key else "",
        "key": key.key if key else "",
        "pod": pod,
        "permit": permit,
        "outcome": outcome,
        "milliseconds": round(seconds * 1000, 1),
    }
