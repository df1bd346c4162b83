"""Script calls of one turn of the event loop go out as one pipeline.

A pipeline costs a client little more than a single call does, so batching raises throughput several times over without
a caller waiting for more than the calls before its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

logger = logging.getLogger(__name__)

MAX_PIPELINES = 3
MAX_CALLS = 512


class Script(NamedTuple):
    """A Lua script and the SHA-1 digest (hexadecimal) that Redis knows it by."""

    name: str
    text: str
    digest: str

    @classmethod
    def of(cls, name: str, text: str) -> Script:
        """Name a script's text."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class _Call(NamedTuple):
    script: Script
    keys: Sequence[str]
    args: Sequence[str | int]
    answer: asyncio.Future[Any]


class Batcher:
    """Calls scripts through one Redis client, many at a time.

    Every script must be idempotent: a call whose connection broke is sent once more.

    Args:
        redis: The client; its pool must have room for `MAX_PIPELINES` connections.
        where: What to call the server in messages.
    """

    def __init__(self, redis: Redis, where: str) -> None:
        self._redis = redis
        self._where = where
        self._waiting: list[_Call] = []
        self._scheduled = False
        self._pipelines: set[asyncio.Task[None]] = set()

    async def call(self, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run a script and return its reply.

        Raises:
            StoreUnavailableError: The server did not answer, or answered with an error.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(script, keys, args, answer))
        if not self._scheduled and len(self._pipelines) < MAX_PIPELINES:
            self._scheduled = True
            loop.call_soon(self._flush)
        return await answer

    async def close(self) -> None:
        """Wait for what is under way, then let go of the connections."""
        await asyncio.gather(*self._pipelines, return_exceptions=True)
        await self._redis.aclose()

    def _flush(self) -> None:
        self._scheduled = False
        calls = [call for call in self._waiting[:MAX_CALLS] if not call.answer.done()]
        del self._waiting[:MAX_CALLS]
        if calls:
            task = asyncio.get_running_loop().create_task(self._send(calls))
            self._pipelines.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._pipelines.discard(task)
        if self._waiting and not self._scheduled:
            self._flush()

    async def _send(self, calls: list[_Call]) -> None:
        try:
            try:
                replies = await self._execute(calls)
            except RedisConnectionError:
                replies = await self._execute(calls)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                replies = await self._load_and_repeat(calls, replies)
        except (RedisError, OSError, TimeoutError) as error:
            replies = [error] * len(calls)
        except BaseException:
            for call in calls:
                call.answer.cancel()
            raise
        for call, reply in zip(calls, replies, strict=True):
            if call.answer.done():
                continue
            if isinstance(reply, Exception):
                call.answer.set_exception(self._translate(call.script, reply))
            else:
                call.answer.set_result(reply)

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        # What redis-py's own pipeline does, except that hiredis packs the commands: that is most of a call's cost.
        pool = self._redis.connection_pool
        packed = b"".join(
            pack_command(("EVALSHA", script.digest, len(keys), *keys, *args))  # type: ignore[arg-type]
            for script, keys, args, _ in calls
        )
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(packed, check_health=False)
            return [await self._reply(connection) for _ in calls]
        except BaseException:
            # Answers may still come on it, and they would be taken for those of the next calls.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    @staticmethod
    async def _reply(connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error

    async def _load_and_repeat(self, calls: list[_Call], replies: list[Any]) -> list[Any]:
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        for text in {calls[index].script.text for index in unknown}:
            await self._redis.script_load(text)
        again = await self._execute([calls[index] for index in unknown])
        for index, reply in zip(unknown, again, strict=True):
            replies[index] = reply
        return replies

    def _translate(self, script: Script, error: Exception) -> StoreUnavailableError:
        reason = str(error) or type(error).__name__
        translated = StoreUnavailableError(f"the store at {self._where} did not {script.name}: {reason}")
        translated.__cause__ = error
        return translated
