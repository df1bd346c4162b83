"""The serving certificate where the webhook makes and rotates it itself."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.certificates.manager import Manager
from at_least_semaphore_pod_hook.certificates.manager import Settings as Wanted
from at_least_semaphore_pod_hook.certificates.objects import Objects, SecretView
from at_least_semaphore_pod_hook.controller.configuration import own_namespace
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.controller.events import CERTIFICATE_REPLACED
from at_least_semaphore_pod_hook.controller.kube import Kube, Reference
from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.server.certificate_metrics import ROTATIONS, TRUSTED
from at_least_semaphore_pod_hook.server.certificates import new_context, take_up

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.certificates.decide import Pair
    from at_least_semaphore_pod_hook.settings import Webhook

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
DAY_SECONDS = 86_400


class ManagedCertificate:
    """A certificate of a Secret that every replica reads, and any of them writes.

    Args:
        settings: The webhook's.
    """

    def __init__(self, settings: Webhook) -> None:
        self._settings = settings
        self._namespace = own_namespace()
        self._kube: Kube | None = None
        self._events: set[asyncio.Task[None]] = set()
        self.context, self.open_context = new_context(), new_context()
        self.authorities = ""
        self.ready = False

    async def follow(self) -> None:
        """See to the certificate until cancelled."""
        settings = self._settings
        connection = await self._connect()
        prefix = annotation_prefix(settings.variant)
        self._kube = Kube(connection, PodDecoder(prefix, ""), instance=socket.gethostname())
        name, namespace = settings.service_name, self._namespace
        names = (f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local", f"{name}.{namespace}", name)
        objects = Objects(
            connection, namespace, settings.certificate_secret, settings.webhook_configuration, f"{prefix}rotate"
        )
        wanted = Wanted(names, settings.certificate_days * DAY_SECONDS, settings.certificate_settle_seconds)
        try:
            await Manager(objects, wanted, self).run()
        finally:
            for event in self._events:
                event.cancel()
            await asyncio.gather(*self._events, return_exceptions=True)
            await self._kube.close()

    def serve(self, pair: Pair) -> None:
        """See `manager.Listener`."""
        take_up((self.context, self.open_context), pair.certificate, pair.key)

    def known(self, authorities: bytes) -> None:
        """See `manager.Listener`."""
        self.authorities = authorities.decode("ascii")

    def trusted(self, yes: bool) -> None:
        """See `manager.Listener`. Once ready, a replica stays so: to take it out of service would help nobody."""
        TRUSTED.set(yes)
        self.ready |= yes

    def rotated(self) -> None:
        """See `manager.Listener`."""
        ROTATIONS.inc()

    def replaced(self, secret: SecretView) -> None:
        """See `manager.Listener`."""
        task = asyncio.create_task(self._tell(secret))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _tell(self, secret: SecretView) -> None:
        about = Reference("v1", "Secret", self._namespace, self._settings.certificate_secret, secret.uid)
        note = "the Secret held no usable certificate of the webhook; it was replaced"
        try:
            if self._kube:
                await self._kube.create_event(
                    about,
                    CERTIFICATE_REPLACED.reason,
                    note,
                    action=CERTIFICATE_REPLACED.action,
                    warning=CERTIFICATE_REPLACED.warning,
                )
        except UnavailableError as error:
            logger.warning("Event not written", extra={"reason": str(error)})

    async def _connect(self) -> Connection:
        said = False
        while True:
            try:
                return Connection.open(self._settings.kubeconfig)
            except UnavailableError as error:
                if not said:
                    logger.error("no certificate without the API server", extra={"reason": str(error)})  # noqa: TRY400
                    said = True
            await asyncio.sleep(RETRY_SECONDS)
