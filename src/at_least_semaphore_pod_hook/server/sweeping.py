"""What each replica does every few seconds: look after the store, and take expired permits back."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import DataVersionError, UnavailableError
from at_least_semaphore_pod_hook.semaphore.versions import VersionedStore
from at_least_semaphore_pod_hook.server import metrics
from at_least_semaphore_pod_hook.stores.opening import open_store

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import StoreUrl
    from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
LOOK_SECONDS = 1.0
"""How long the start waits for the store. One that does not answer is looked at when it does."""


async def open_understood(url: StoreUrl) -> VersionedStore:
    """Open the store, and look whether its data is understood, where it answers.

    Raises:
        DataVersionError: It is not.
    """
    versioned = VersionedStore(open_store(url))
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await versioned.check()
    except DataVersionError:
        await versioned.store.close()
        raise
    except (UnavailableError, TimeoutError):
        pass
    return versioned


async def sweep(service: SemaphoreService, versioned: VersionedStore) -> None:
    """Take expired permits back, whether anyone asks for one or not.

    Raises:
        DataVersionError: Somebody has put data into the store that is not understood.
    """
    up: bool | None = None
    while True:
        try:
            await versioned.check()
            await service.sweep()
            if up is False:
                logger.info("store answers again")
            up = True
        except DataVersionError:
            raise
        except UnavailableError as error:
            if up is not False:
                logger.error("store does not answer", extra={"reason": str(error)})  # noqa: TRY400
            up = False
        except Exception:
            # Whatever it is that one sweep stumbles over, the next one is needed all the same.
            logger.exception("sweep failed unexpectedly")
        metrics.STORE_UP.set(bool(up))
        await asyncio.sleep(SWEEP_SECONDS)


def raise_ended(sweeping: asyncio.Task[None]) -> None:
    """Raise what a sweep has ended with, unless it was told to end."""
    with suppress(asyncio.CancelledError):
        sweeping.result()
