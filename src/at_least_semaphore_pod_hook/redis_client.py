"""stand-in until the lock engineer's version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.settings import Address


def connect(address: Address, *, timeout: float, max_connections: int) -> Redis:
    return Redis(
        host=address.host,
        port=address.port,
        db=address.database,
        username=address.username or None,
        password=address.password or None,
        ssl=address.tls,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        max_connections=max_connections,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        protocol=3,
    )
