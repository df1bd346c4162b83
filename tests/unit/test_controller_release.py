"""What the store hears of a permit that the controller takes back."""

from __future__ import annotations

from typing import Any, cast

import pytest

from at_least_semaphore_pod_hook.controller.controller import Controller
from at_least_semaphore_pod_hook.controller.reflector import Change, ChangeKind
from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.unit.fakes import PREFIX, LocalLock
from tests.unit.views import SIDECAR, pod_view

KEY = SemaphoreKey("default", "key")
RUNS: dict[str, Any] = {"name": SIDECAR, "started": True, "state": {"running": {}}}
OVER: dict[str, Any] = {"name": "main", "state": {"terminated": {"exitCode": 0}}}


@pytest.mark.parametrize(
    ("kind", "status", "answer"),
    [
        (ChangeKind.MODIFIED, {"phase": "Running", "containerStatuses": [OVER, RUNS]}, -1),
        (ChangeKind.MODIFIED, {"phase": "Failed", "containerStatuses": [OVER, RUNS]}, -1),
        (ChangeKind.DELETED, {"phase": "Running", "containerStatuses": [RUNS]}, 0),
    ],
)
async def test_a_sidecar_is_told_where_its_pods_other_containers_have_ended(
    kind: ChangeKind, status: dict[str, Any], answer: int
) -> None:
    store = MemoryStore()
    service = SemaphoreService(store, LocalLock())
    await service.acquire(AcquireRequest(KEY, 1, 60, "p", "identity"), 1)
    await store.renew(KEY, "p", "web-0")
    controller = Controller(cast("Any", None), store, service, prefix=PREFIX)
    containers = [{"name": "main"}, {"name": SIDECAR, "args": ["sidecar", "default/key", "p"]}]
    pod = pod_view(spec={"containers": containers, "restartPolicy": "Never"}, status=status)
    controller.observe(Change(kind, pod))
    await controller.reconcile(KEY)
    assert (await store.state(KEY)).held == 0
    assert await store.renew(KEY, "p", "web-0") == answer
