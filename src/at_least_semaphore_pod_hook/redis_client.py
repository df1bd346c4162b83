"""How a Redis or Valkey server is talked to: one way to connect, one translation of what goes wrong."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from at_least_semaphore_pod_hook.addresses import Address


class OwnConnection(AbstractConnection):
    """Is opened anew where the server has ended it while it was idle, and may know the server's epoch.

    redis-py finds out by writing to it, which uvloop answers with a RuntimeError after a reset.
    """

    epoch = ""

    async def open(self) -> None:
        """Connect, unless that is so already."""
        await self._drop_if_ended()
        await self.connect()  # type: ignore[no-untyped-call]

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send, on a connection that lives."""
        await self._drop_if_ended()
        await super().send_packed_command(command, check_health)

    async def _drop_if_ended(self) -> None:
        if self._reader and self._writer and (self._reader.at_eof() or self._writer.transport.is_closing()):
            await self.disconnect(nowait=True)


class _Plain(OwnConnection, Connection):
    pass


class _Encrypted(OwnConnection, SSLConnection):
    pass


async def learn_epoch(connection: OwnConnection) -> None:
    """Do what redis-py does on a new connection, and learn the server's epoch.

    It is made of the process's run id, which is another one after each start, and the replication id, which is another
    one after a replica has been made a primary (Redis documentation, "INFO" and "Redis replication"). Whatever takes
    data away changes one of the two and ends the connections.
    """
    await connection.on_connect()
    for section in ("server", "replication"):
        await connection.send_command("INFO", section, check_health=False)
    found: dict[bytes, bytes] = {}
    for _ in range(2):
        for line in bytes(await connection.read_response()).splitlines():
            name, _, value = line.partition(b":")
            found[name] = value
    connection.epoch = f"{found.get(b'run_id', b'').decode()}-{found.get(b'master_replid', b'').decode()}"


def connect(
    address: Address, *, timeout: float, max_connections: int, bounded_by_caller: bool = False, epochs: bool = False
) -> Redis:
    """Make a client of one server; it connects when it is first used and is closed with `aclose`.

    Args:
        address: The server, and the user, password and database to use there. With TLS the certificate is checked
            against the system's authorities, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
        timeout: Seconds that connecting may take, and that each answer may take.
        max_connections: How many commands can be under way at once; a further one fails, it does not wait.
        bounded_by_caller: No timeout for each answer: the caller has one for many of them.
        epochs: Its connections learn the server's epoch.
    """
    redis = Redis(
        host=address.host,
        port=address.port,
        db=address.database,
        username=address.username or None,
        password=address.password or None,
        ssl=address.tls,
        socket_timeout=None if bounded_by_caller else timeout,
        socket_connect_timeout=timeout,
        max_connections=max_connections,
        # A command whose answer was lost may have been applied: who sends it knows whether it may be sent again.
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=learn_epoch if epochs else None,
        # Neither is needed, and each costs a new connection a round trip and the user a right.
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    redis.connection_pool.connection_class = _Encrypted if address.tls else _Plain
    return redis


@contextmanager
def translate(address: Address, error: type[UnavailableError] = UnavailableError) -> Iterator[None]:
    """Raise `error`, naming the server, in place of what redis-py and the operating system raise.

    Whether the command was applied is unknown then, except where the server itself refused it.
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError) as caught:
        raise error(f"{address}: {reason(caught)}") from caught


def reason(error: Exception) -> str:
    """Say what went wrong, in words that hold no secret."""
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, AuthenticationError):
        return "the server refused the user or the password"
    if isinstance(error.__cause__, OSError) and error.__cause__.strerror:
        return error.__cause__.strerror
    return str(error) or type(error).__name__
