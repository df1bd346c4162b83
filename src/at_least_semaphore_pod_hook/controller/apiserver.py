"""Whether the cluster's API server can be reached, and as whom."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from httpx2 import HTTPError
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ConfigError
from lightkube.resources.authentication_v1 import SelfSubjectReview

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

CHECK_SECONDS = 30.0


async def watch(kubeconfig: str, report: Callable[[bool], None]) -> None:
    """Ask the API server now and then who we are, until cancelled; log each change.

    Args:
        kubeconfig: A file's path; empty for the service account of the pod that we run in.
        report: Told after each try whether the API server answered.
    """
    up: bool | None = None
    client: AsyncClient | None = None
    while True:
        try:
            client = client or _client(kubeconfig)
            user = await _who_am_i(client)
            if up is not True:
                logger.info("API server reached", extra={"user": user})
            up = True
        except (ConfigError, HTTPError, OSError, ValueError) as error:
            if up is not False:
                logger.warning(
                    "API server not reached: admissions are served, expiry alone takes permits back",
                    extra={"reason": f"{type(error).__name__}: {error}"},
                )
            up = False
            if client is not None:
                await client.aclose()
                client = None
        report(up)
        await asyncio.sleep(CHECK_SECONDS)


def _client(kubeconfig: str) -> AsyncClient:
    config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
    return AsyncClient(config.get())


async def _who_am_i(client: AsyncClient) -> str:
    """Name the user that the API server takes us for; every authenticated user may ask."""
    review = await client.create(SelfSubjectReview())
    user = review.status.userInfo if review.status else None
    return (user.username if user else None) or "an unnamed user"
