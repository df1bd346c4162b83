"""How a Redis or Valkey server is talked to: one way to connect, one translation of what goes wrong."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from at_least_semaphore_pod_hook.addresses import Address

    Learned = Callable[[dict[bytes, bytes]], None]

INFO_SECTIONS = ("server", "replication", "persistence")


class NotSentError(RedisConnectionError):
    """There is no connection, so that nothing was sent; the cause says why."""


class _Credentials(CredentialProvider):
    """Reads user and password anew for each connection."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            username, password = self._address.credentials()
        except UnavailableError as error:
            raise RedisConnectionError(str(error)) from error
        return (username, password) if username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class _Trust:
    """Whom to trust, and how to show who we are; files are read anew for each connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return what to open a connection with; raises OSError that names the file."""
        address = self._address
        # The system's authorities take milliseconds to read, and don't change while a process runs.
        context = self._context
        try:
            if context is None:
                context = ssl.create_default_context(cafile=address.ca_file or None)
                self._context = None if address.ca_file else context
            if address.cert_file:
                context.load_cert_chain(address.cert_file, address.key_file)
        except OSError as error:
            files = ", ".join(filter(None, (address.ca_file, address.cert_file, address.key_file)))
            raise OSError(error.errno, f"{error.strerror or error}: one of {files}") from error
        return context


class OwnConnection(Connection):
    """Talks over TCP, TLS or a Unix socket as its address says, and may know the server's epoch.

    It is opened anew where the server has ended it while it was idle: redis-py finds out by writing to it, which uvloop
    answers with a RuntimeError after a reset.
    """

    epoch = ""

    def __init__(self, *, address: Address, trust: _Trust, **options: Any) -> None:
        super().__init__(host=address.host, port=address.port, **options)
        self._address = address
        self._trust = trust

    async def open(self) -> None:
        """Connect, unless that is so already; raises NotSentError where that fails."""
        await self._drop_if_ended()
        if self.is_connected:
            return
        try:
            await self.connect()  # type: ignore[no-untyped-call]
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise NotSentError(str(error)) from error

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send, on a connection that lives."""
        await self._drop_if_ended()
        await super().send_packed_command(command, check_health)

    def abort(self) -> None:
        """End it under whoever waits for an answer on it, who is told that it was closed."""
        if self._writer:
            self._writer.transport.abort()

    async def _drop_if_ended(self) -> None:
        if self._reader and self._writer and (self._reader.at_eof() or self._writer.transport.is_closing()):
            await self.disconnect(nowait=True)

    async def _connect(self) -> None:
        if not self._address.path:
            await super()._connect()  # type: ignore[no-untyped-call]
            return
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(self._address.path)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = dict(super()._connection_arguments())
        if self._address.tls:
            name = self._address.server_name or self._address.host
            arguments.update(ssl=self._trust.context(), server_hostname=name)
        return arguments

    def _host_error(self) -> str:
        return str(self._address)


async def _learn(connection: OwnConnection, learned: Learned) -> None:
    """Do what redis-py does on a new connection, and learn the server's epoch.

    It is made of the process's run id, which is another one after each start, and the replication id, which is another
    one after a replica has been made a primary (Redis documentation, "INFO" and "Redis replication"). Whatever takes
    data away changes one of the two and ends the connections.
    """
    await connection.on_connect()
    for section in INFO_SECTIONS:
        await connection.send_command("INFO", section, check_health=False)
    found: dict[bytes, bytes] = {}
    for _ in INFO_SECTIONS:
        for line in bytes(await connection.read_response()).splitlines():
            name, _, value = line.partition(b":")
            found[name] = value
    connection.epoch = f"{found.get(b'run_id', b'').decode()}-{found.get(b'master_replid', b'').decode()}"
    learned(found)


def connect(
    address: Address,
    *,
    timeout: float,
    max_connections: int,
    connect_timeout: float | None = None,
    bounded_by_caller: bool = False,
    learned: Learned | None = None,
    protocol: int | None = None,
) -> Redis:
    """Make a client of one server; it connects when it is first used and is closed with `aclose`.

    Args:
        address: The server, and the user, password and database to use there. With TLS the certificate is checked
            against the address's authorities, else the system's, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
        timeout: Seconds that connecting may take, and that each answer may take.
        max_connections: How many commands can be under way at once; a further one fails, it does not wait.
        connect_timeout: Seconds that connecting may take, where that is less.
        bounded_by_caller: No timeout for each answer: the caller has one for many of them.
        learned: Its connections learn the server's epoch when they are opened. What INFO says is handed to this, which
            may raise a RedisError to end the connection.
        protocol: The version of the Redis protocol; 2 for servers that may not know another.
    """
    has_credentials = address.username or address.password or address.username_file or address.password_file

    async def learn(connection: OwnConnection) -> None:
        if learned:
            await _learn(connection, learned)

    pool = ConnectionPool(
        connection_class=OwnConnection,
        max_connections=max_connections,
        address=address,
        trust=_Trust(address),
        db=address.database,
        credential_provider=_Credentials(address) if has_credentials else None,
        socket_timeout=None if bounded_by_caller else timeout,
        socket_connect_timeout=connect_timeout or timeout,
        # A command whose answer was lost may have been applied: who sends it knows whether it may be sent again.
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=learn if learned else None,
        protocol=protocol,
        # Neither is needed, and each costs a new connection a round trip and the user a right.
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)


class Asker:
    """Asks one server a few things over a connection of its own, one question at a time.

    Args:
        address: The server.
        timeout: Seconds that an answer may take, connecting included.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        self._redis = connect(address, timeout=timeout, max_connections=1, protocol=2)
        self._connection: OwnConnection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]

    async def ask(self, *commands: Sequence[str]) -> list[Any]:
        """Send commands and return their replies; one that is an error is returned as a ResponseError.

        Raises:
            UnavailableError: There was no answer in time.
        """
        with translate(self.address):
            try:
                async with asyncio.timeout(self._timeout):
                    await self._connection.open()
                    for command in commands:
                        await self._connection.send_command(*command, check_health=False)
                    return [await _reply(self._connection) for _ in commands]
            except BaseException:
                await self._connection.disconnect(nowait=True)
                raise

    async def close(self) -> None:
        """Let go of the connection."""
        await self._connection.disconnect(nowait=True)
        await self._redis.aclose()


async def _reply(connection: OwnConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


@contextmanager
def translate(address: Address, error: type[UnavailableError] = UnavailableError) -> Iterator[None]:
    """Raise `error`, naming the server, in place of what redis-py and the operating system raise.

    Whether the command was applied is unknown then, except where the server itself refused it.
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError) as caught:
        raise error(f"{address}: {reason(caught)}") from caught


def reason(error: BaseException) -> str:
    """Say what went wrong, in words that hold no secret."""
    if isinstance(error, NotSentError) and error.__cause__:
        return reason(error.__cause__)
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, AuthenticationError):
        return "the server refused the user or the password"
    if isinstance(error.__cause__, OSError) and error.__cause__.strerror:
        return error.__cause__.strerror
    return str(error) or type(error).__name__
