"""Script calls go out as pipelines, a few at a time: what is called while they are under way makes up the next one.

A pipeline costs a client and a server little more than a single call does. So the busier it is, the cheaper a call.
"""

from __future__ import annotations

import asyncio
import hashlib
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.redis_client import reason

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from redis.asyncio import Redis

    from at_least_semaphore_pod_hook.redis_client import OwnConnection

MAX_PIPELINES = 3
MAX_CALLS = 512
WATCH_SECONDS = 0.05


class Script(NamedTuple):
    """A Lua script and the SHA-1 digest (hexadecimal) that Redis knows it by."""

    name: str
    text: str
    digest: str
    epoch: bool

    @classmethod
    def of(cls, name: str, text: str, *, epoch: bool = False) -> Script:
        """Name a script's text. With `epoch`, its last argument is the server's epoch, which the connection knows."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), epoch)


class _Call(NamedTuple):
    script: Script
    keys: Sequence[str]
    args: Sequence[str | int]
    deadline: float
    answer: asyncio.Future[Any]


class Batcher:
    """Calls scripts through one Redis client, many at a time.

    Every script must be idempotent: a call whose connection broke is sent once more.

    Args:
        redis: The client, without timeouts of its own for answers, whose connections learn the server's epoch.
        where: What to call the server in messages.
        timeout: Seconds after which a pipeline and its connection are given up.
    """

    def __init__(self, redis: Redis, where: str, timeout: float) -> None:
        self._redis = redis
        self._where = where
        self._timeout = timeout
        # Asked for once: asking for the running loop is a system call each time in Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Call] = []
        self._scheduled = False
        self._pipelines: dict[asyncio.Task[None], float] = {}
        self._idle: list[OwnConnection] = []
        self._watched: list[_Call] = []
        self._watch: asyncio.TimerHandle | None = None

    async def call(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int], timeout: float | None = None
    ) -> Any:
        """Run a script and return its reply.

        Args:
            script: The script.
            keys: Its KEYS.
            args: Its ARGV.
            timeout: Seconds to wait for the reply, kept to within `WATCH_SECONDS`.

        Raises:
            StoreUnavailableError: The server did not answer in time, or answered with an error.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        call = _Call(script, keys, args, loop.time() + (self._timeout if timeout is None else timeout), answer)
        self._waiting.append(call)
        self._watched.append(call)
        if self._watch is None:
            self._watch = loop.call_later(WATCH_SECONDS, self._give_late_ones_up, loop)
        if not self._scheduled and len(self._pipelines) < MAX_PIPELINES:
            self._scheduled = True
            loop.call_soon(self._flush, loop)
        return await answer

    async def close(self) -> None:
        """Wait for what is under way, then let go of the connections."""
        while self._pipelines:
            await asyncio.wait(self._pipelines)
        if self._watch is not None:
            self._watch.cancel()
        for connection in self._idle:
            await connection.disconnect()
        await self._redis.aclose()

    def _give_late_ones_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all calls and pipelines: one for each would cost more than the rest of a call."""
        now = loop.time()
        for pipeline, deadline in self._pipelines.items():
            if deadline <= now:
                pipeline.cancel()
        still: list[_Call] = []
        for call in self._watched:
            if call.answer.done():
                continue
            if call.deadline > now:
                still.append(call)
            else:
                call.answer.set_exception(self._translate(call.script, TimeoutError()))
        self._watched = still
        again = still or self._pipelines
        self._watch = loop.call_later(WATCH_SECONDS, self._give_late_ones_up, loop) if again else None

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        waiting = [call for call in self._waiting if not call.answer.done()]
        calls, self._waiting = waiting[:MAX_CALLS], waiting[MAX_CALLS:]
        if calls:
            pipeline = loop.create_task(self._send(calls))
            self._pipelines[pipeline] = loop.time() + self._timeout
            pipeline.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._pipelines[task]
        if self._waiting and not self._scheduled:
            self._flush(task.get_loop())

    async def _send(self, calls: list[_Call]) -> None:
        try:
            try:
                replies = await self._execute(calls)
            except RedisConnectionError:
                # Not those that nobody waits for any more: they are being undone.
                calls = [call for call in calls if not call.answer.done()]
                replies = await self._execute(calls)
        except asyncio.CancelledError:
            # Only this class cancels it, when it takes too long.
            replies = [TimeoutError()] * len(calls)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody waits in vain
            replies = [error] * len(calls)
        for call, reply in zip(calls, replies, strict=True):
            if call.answer.done():
                continue
            if isinstance(reply, Exception):
                call.answer.set_exception(self._translate(call.script, reply))
            else:
                call.answer.set_result(reply)

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        replies = await self._exchange(calls)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            texts = {calls[index].script.text for index in unknown}
            again = await self._exchange([calls[index] for index in unknown], texts)
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

    async def _exchange(self, calls: Sequence[_Call], loads: Collection[str] = ()) -> list[Any]:
        """Send calls, after the texts of scripts that the server has to learn, and return the calls' replies."""
        # What redis-py's own pipeline does, except that hiredis packs the commands: that is most of a call's cost.
        # And connections are kept at hand: one that is dead is found out by the call, which is then sent again.
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            await connection.open()
            commands: list[tuple[str | int, ...]] = [("SCRIPT", "LOAD", text) for text in loads]
            commands += [_command(call, connection.epoch) for call in calls]
            packed = b"".join(map(pack_command, commands))  # type: ignore[arg-type]
            await connection.send_packed_command(packed, check_health=False)
            replies = [await self._reply(connection) for _ in commands]
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                # Should it be made a primary, that is another epoch, of which only a new connection learns.
                await connection.disconnect(nowait=True)
            return replies[len(loads) :]
        except BaseException:
            # Answers may still come on it, and they would be taken for those of the next calls.
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._idle.append(connection)

    def _connect(self) -> OwnConnection:
        connection: OwnConnection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    @staticmethod
    async def _reply(connection: OwnConnection) -> Any:
        try:
            return await connection.read_response(timeout=inf)
        except ResponseError as error:
            return error

    def _translate(self, script: Script, error: Exception) -> StoreUnavailableError:
        translated = StoreUnavailableError(f"the store at {self._where} did not {script.name}: {reason(error)}")
        translated.__cause__ = error
        return translated


def _command(call: _Call, epoch: str) -> tuple[str | int, ...]:
    command = ("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.args)
    return (*command, epoch) if call.script.epoch else command
