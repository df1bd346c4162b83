"""Store and API server for as long as a subcommand runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, InvalidInputError
from at_least_semaphore_pod_hook.semaphore.versions import VersionedStore
from at_least_semaphore_pod_hook.stores.opening import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from at_least_semaphore_pod_hook.console.options import Access
    from at_least_semaphore_pod_hook.semaphore.contracts import Store


class Reached(NamedTuple):
    """What could be opened; `kube` is None where nothing says how to reach the API server."""

    store: Store
    kube: Kube | None
    prefix: str


@asynccontextmanager
async def reach(access: Access, instance: str) -> AsyncGenerator[Reached]:
    """Open the store, and the API server where that is possible; nothing is sent yet.

    Args:
        access: Where they are.
        instance: Who we are in Events.

    Raises:
        InvalidInputError: The store is the webhook's memory; or the kubeconfig is named, and none. Where there is
            neither it nor a service account, the store alone can be asked.
    """
    prefix = annotation_prefix(access.variant)
    name = f"{access.variant}-{SIDECAR_NAME}" if access.variant else SIDECAR_NAME
    if access.queue.kind == "memory":
        raise InvalidInputError("memory:// is the webhook's own memory, seen by nobody else: use its --status-page")
    store = VersionedStore(open_store(access.queue), marks=False).store
    kube = None
    try:
        kube = Kube(Connection.open(access.kubeconfig), PodDecoder(prefix, name), instance=instance)
    except ApiUnavailableError as error:
        if access.kubeconfig:
            raise InvalidInputError(f"--kubeconfig: {error}") from error
    try:
        yield Reached(store, kube, prefix)
    finally:
        await store.close()
        if kube is not None:
            await kube.close()
