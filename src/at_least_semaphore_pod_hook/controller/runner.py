"""The controller's life: elected, it works; where the API server cannot be reached, it says so and tries again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.controller.configuration import own_namespace
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.controller import Controller
from at_least_semaphore_pod_hook.controller.effects import Effects
from at_least_semaphore_pod_hook.controller.election import Election
from at_least_semaphore_pod_hook.controller.kube import Kube
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.controller.reflector import Reflector
from at_least_semaphore_pod_hook.controller.reports import Reports
from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.controller.meter import Meter
    from at_least_semaphore_pod_hook.controller.survey import Survey
    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService

logger = logging.getLogger(__name__)

CONFIGURE_SECONDS = 30.0
CHECK_SECONDS = 2.0
SILENT_SECONDS = 45.0


class Options(NamedTuple):
    """What the runner needs to know.

    Attributes:
        kubeconfig: A file's path; empty for the service account of the pod that we run in.
        prefix: What our annotations and labels begin with.
        sidecar_name: The name of our container in pods.
        lease: The Lease's name.
        wake_owners: Whether owners of denied pods are touched when a permit is free.
    """

    kubeconfig: str
    prefix: str
    sidecar_name: str
    lease: str
    wake_owners: bool


async def run(
    options: Options,
    store: Store,
    service: SemaphoreService,
    survey: Survey,
    *,
    on_up: Callable[[bool], None],
    on_leading: Callable[[bool], None],
    meter: Meter,
) -> None:
    """Stand for election and work, until cancelled.

    Args:
        options: See there.
        store: Where semaphores live.
        service: Creates and resizes semaphores.
        survey: Is told of the API server, leading or not.
        on_up: Told whether the API server answers.
        on_leading: Told whether we are the one that works.
        meter: Told of what the controller counts and measures.
    """
    kube = await _connect(options, on_up)
    survey.connect(kube)
    controller: asyncio.Task[None] | None = None

    async def start() -> None:
        nonlocal controller
        on_leading(True)
        controller = asyncio.create_task(_work(kube, options, store, service, on_up, meter))

    async def stop() -> None:
        nonlocal controller
        on_leading(False)
        if controller is not None:
            controller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await controller
            controller = None

    identity = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    election = Election(kube, own_namespace(), options.lease, identity, on_started=start, on_stopped=stop)
    try:
        await election.run()
    finally:
        await kube.close()


async def _connect(options: Options, on_up: Callable[[bool], None]) -> Kube:
    decoder = PodDecoder(options.prefix, options.sidecar_name)
    said = False
    while True:
        try:
            connection = Connection.open(options.kubeconfig)
        except UnavailableError as error:
            on_up(False)
            if not said:
                logger.warning(
                    "API server not reached: admissions are served, expiry alone takes permits back",
                    extra={"reason": str(error)},
                )
                said = True
            await asyncio.sleep(CONFIGURE_SECONDS)
        else:
            return Kube(connection, decoder, instance=socket.gethostname())


async def _work(
    kube: Kube,
    options: Options,
    store: Store,
    service: SemaphoreService,
    on_up: Callable[[bool], None],
    meter: Meter,
) -> None:
    reports = Reports(kube, on_drop=meter.event_dropped)
    effects = Effects(
        kube,
        store,
        service,
        prefix=options.prefix,
        wake_owners=options.wake_owners,
        meter=meter,
        reports=reports,
    )
    controller = Controller(store, effects, meter, reports)
    reflector = Reflector(kube, f"{options.prefix}key", controller.observe)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reflector.run())
        tasks.create_task(_report(reflector, on_up))
        # What is not in the list is not there: nothing is decided before it has come.
        await reflector.synced.wait()
        logger.info("pods watched", extra={"pods": len(reflector.pods)})
        tasks.create_task(reports.run())
        tasks.create_task(controller.run())


async def _report(reflector: Reflector, on_up: Callable[[bool], None]) -> None:
    while True:
        on_up(reflector.silent_seconds < SILENT_SECONDS)
        await asyncio.sleep(CHECK_SECONDS)
