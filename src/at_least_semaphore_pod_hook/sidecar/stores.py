"""From settings to the permits of a semaphore, as a sidecar sees them. Only what the settings name is imported."""

from __future__ import annotations

from at_least_semaphore_pod_hook.errors import StoreUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from at_least_semaphore_pod_hook.addresses import StoreUrl
    from at_least_semaphore_pod_hook.settings import Sidecar
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

    class Store(Protocol):
        """What a sidecar needs of a store: one semaphore's permits.

        Deadlines are moments of the monotonic clock. No wait outlasts its deadline, and each is ended by a signal, by
        StopRequested. What goes wrong otherwise is a StoreUnavailableError, whose message contains no secret.

        `unanswered` counts the calls that were sent and got no reply: each may or may not have been applied.
        """

        @property
        def unanswered(self) -> int: ...  # noqa: D102

        def renew(self, permit: str, pod: str, deadline: float) -> int:
            """Renew a permit; returns the lease in milliseconds, 0 or -1 as `semaphore.contracts.Store.renew` does."""

        def release(self, permit: str, pod: str, deadline: float) -> int:
            """Give a permit back; returns 1, or 0 where it was not ours any more."""

        def idle(self, until: float) -> None:
            """Let time pass, and let go of connections that end meanwhile."""

        def close(self) -> None:
            """Let go of connections."""


def _redis(url: StoreUrl, semaphore: str, signals: Signals) -> Store:
    from at_least_semaphore_pod_hook.sidecar.redis import open_redis  # noqa: PLC0415

    return open_redis(url, semaphore, signals)


def _etcd(url: StoreUrl, semaphore: str, signals: Signals) -> Store:
    from at_least_semaphore_pod_hook.sidecar.etcd import open_etcd  # noqa: PLC0415

    return open_etcd(url, semaphore, signals)


def _sentinel(url: StoreUrl, semaphore: str, signals: Signals) -> Store:
    from at_least_semaphore_pod_hook.sidecar.sentinel import open_sentinel  # noqa: PLC0415

    return open_sentinel(url, semaphore, signals)


def _cluster(url: StoreUrl, semaphore: str, signals: Signals) -> Store:
    from at_least_semaphore_pod_hook.sidecar.cluster import open_cluster  # noqa: PLC0415

    return open_cluster(url, semaphore, signals)


_OPENERS: dict[str, Callable[[StoreUrl, str, Signals], Store]] = {
    "redis": _redis,
    "sentinel": _sentinel,
    "cluster": _cluster,
    "etcd": _etcd,
}
"""How each kind of store is opened, by `StoreUrl.kind`. The memory store is not here: nobody can talk to it."""


def open_store(settings: Sidecar, signals: Signals) -> Store:
    """Open what a sidecar's settings name: the webhook, or a store. It connects when it is first used.

    Raises:
        StoreUnavailableError: A sidecar cannot talk to such a store.
    """
    url, semaphore = settings.common.queue, f"{settings.namespace}/{settings.key}"
    if settings.api is not None:
        from at_least_semaphore_pod_hook.sidecar.api import ApiStore  # noqa: PLC0415

        return ApiStore(settings.api, semaphore, signals)
    if url.kind not in _OPENERS:
        raise StoreUnavailableError(f"a sidecar cannot talk to a store of kind {url.kind}")
    return _OPENERS[url.kind](url, semaphore, signals)
