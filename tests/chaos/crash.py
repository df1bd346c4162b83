"""Starts the product as it is, to be killed (SIGKILL) at a named point of its own doing.

`python crash.py -m at_least_semaphore_pod_hook webhook …`. The environment variable CHAOS_CRASH names a file that says
"<point> <n>": the first process that comes to that point for the n-th time since it has seen the file removes it and
kills itself. Where there is no such file nothing happens. A point is `webhook:store.acquire:after` or the like.

Where CHAOS_JOURNAL names a file, what is asked of the store is written down there (see `journal`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VARIABLE = "CHAOS_CRASH"
COROUTINE = 0x80
STORE_CALLS = ("acquire", "keep", "release", "reclaim", "begin", "set_length", "adopt", "state", "forget_denied")
KUBE_CALLS = (
    "list_pods",
    "get_pod",
    "patch_pod",
    "create_event",
    "node_ready",
    "get_lease",
    "create_lease",
    "update_lease",
)
SERVICE_CALLS = ("acquire", "resize", "sweep", "_undo")
SIDECAR_CALLS = ("open", "send", "receive", "idle", "close", "_connect")
HOLDING_CALLS = ("hold", "release", "_renew_once", "_release_once")


def _names(who: str, what: str, calls: tuple[str, ...]) -> list[str]:
    return [f"{who}:{what}.{call.lstrip('_')}:{when}" for call in calls for when in ("before", "after")]


WEBHOOK_POINTS = [
    *_names("webhook", "store", STORE_CALLS),
    *_names("webhook", "kube", KUBE_CALLS),
    *_names("webhook", "service", SERVICE_CALLS),
    *_names("webhook", "lock", ("enter", "exit")),
    *_names("webhook", "admission", ("handle",)),
    "webhook:kube.watch_pods:before",
    "webhook:kube.watch_pods:item",
    "webhook:store.semaphores:before",
    "webhook:store.semaphores:item",
    "webhook:store.changes:item",
]
SIDECAR_POINTS = [
    *_names("sidecar", "connection", SIDECAR_CALLS),
    *_names("sidecar", "holding", HOLDING_CALLS),
]

POINTS = [*WEBHOOK_POINTS, *SIDECAR_POINTS]

_file = os.environ.get(VARIABLE, "")
_hits: Counter[str] = Counter()


def reached(point: str) -> None:
    """Die here where that is what the file says."""
    try:
        with open(_file) as order:  # noqa: PTH123 - a sidecar that is measured imports as little as the product's
            wanted, count = order.read().split()
    except (OSError, ValueError):
        return
    if wanted != point:
        return
    _hits[point] += 1
    if _hits[point] < int(count):
        return
    try:
        os.rename(_file, f"{_file}.hit")  # noqa: PTH104
    except OSError:
        return  # another process was first
    os.kill(os.getpid(), signal.SIGKILL)


def _around(kind: type, call: str, point: str) -> None:
    original = getattr(kind, call)

    def plain(*arguments: Any, **named: Any) -> Any:
        reached(f"{point}:before")
        result = original(*arguments, **named)
        reached(f"{point}:after")
        return result

    async def awaited(*arguments: Any, **named: Any) -> Any:
        reached(f"{point}:before")
        result = await original(*arguments, **named)
        reached(f"{point}:after")
        return result

    # By the code's own flag: asyncio and inspect are more than all of a sidecar.
    setattr(kind, call, awaited if original.__code__.co_flags & COROUTINE else plain)


def _around_items(kind: type, call: str, point: str) -> None:
    original = getattr(kind, call)

    async def items(*arguments: Any, **named: Any) -> Any:
        reached(f"{point}:before")
        async for item in original(*arguments, **named):
            reached(f"{point}:item")
            yield item

    setattr(kind, call, items)


def _around_hold(kind: type) -> None:
    original: Callable[..., Any] = kind.hold  # type: ignore[attr-defined]

    class Held:
        def __init__(self, *arguments: Any) -> None:
            self._held = original(*arguments)

        async def __aenter__(self) -> Any:
            reached("webhook:lock.enter:before")
            fence = await self._held.__aenter__()
            reached("webhook:lock.enter:after")
            return fence

        async def __aexit__(self, *error: object) -> Any:
            reached("webhook:lock.exit:before")
            answer = await self._held.__aexit__(*error)
            reached("webhook:lock.exit:after")
            return answer

    def hold(self: Any, *arguments: Any) -> Held:
        return Held(self, *arguments)

    kind.hold = hold  # type: ignore[attr-defined]


def _wrap_webhook() -> None:
    from at_least_semaphore_pod_hook.admission.handler import AdmissionHandler  # noqa: PLC0415
    from at_least_semaphore_pod_hook.controller.kube import Kube  # noqa: PLC0415
    from at_least_semaphore_pod_hook.locks.etcd import EtcdLock  # noqa: PLC0415
    from at_least_semaphore_pod_hook.locks.redlock import Redlock  # noqa: PLC0415
    from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.etcd.store import EtcdStore  # noqa: PLC0415
    from at_least_semaphore_pod_hook.stores.redis.store import RedisStore  # noqa: PLC0415

    stores, locks = (RedisStore, EtcdStore), (Redlock, EtcdLock)
    calls: list[tuple[type, str, tuple[str, ...]]] = [
        *((store, "store", STORE_CALLS) for store in stores),
        (Kube, "kube", KUBE_CALLS),
        (SemaphoreService, "service", SERVICE_CALLS),
        (AdmissionHandler, "admission", ("handle",)),
    ]
    for kind, what, names in calls:
        for call in names:
            _around(kind, call, f"webhook:{what}.{call.lstrip('_')}")
    _around_items(Kube, "watch_pods", "webhook:kube.watch_pods")
    for store in stores:
        _around_items(store, "semaphores", "webhook:store.semaphores")
        _around_items(store, "changes", "webhook:store.changes")
    for lock in locks:
        _around_hold(lock)


def _wrap_sidecar() -> None:
    from at_least_semaphore_pod_hook.sidecar.connection import Connection  # noqa: PLC0415
    from at_least_semaphore_pod_hook.sidecar.main import _Holding  # noqa: PLC0415

    for kind, what, calls in ((Connection, "connection", SIDECAR_CALLS), (_Holding, "holding", HOLDING_CALLS)):
        for call in calls:
            _around(kind, call, f"sidecar:{what}.{call.lstrip('_')}")


def main() -> int:
    """Wrap the calls of what is asked for, then run it."""
    arguments = sys.argv[3:]  # what comes before them is "-m" and the package's name
    if arguments[0] == "webhook":
        _wrap_webhook()
    else:
        _wrap_sidecar()
    if "CHAOS_JOURNAL" in os.environ:
        from tests.chaos import journal  # noqa: PLC0415

        (journal.record_webhook if arguments[0] == "webhook" else journal.record_sidecar)()
    from at_least_semaphore_pod_hook import cli  # noqa: PLC0415

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
