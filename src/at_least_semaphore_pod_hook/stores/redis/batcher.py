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
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.redis_client import NotSentError, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from redis.asyncio import Redis

    from at_least_semaphore_pod_hook.redis_client import OwnConnection

MAX_PIPELINES = 3
WAIT_MS = 1000
"""How long replicas may take to confirm a pipeline's grants, in milliseconds."""
WITHOUT_A_GRANT = (b"full", b"other_length", b"incomplete")
MAX_CALLS = 512
WATCH_SECONDS = 0.05
ANOTHER = "another server is in charge now"


class Script(NamedTuple):
    """A Lua script and the SHA-1 digest (hexadecimal) that Redis knows it by."""

    name: str
    text: str
    digest: str
    epoch: bool
    grants: bool

    @classmethod
    def of(cls, name: str, text: str, *, epoch: bool = False, grants: bool = False) -> Script:
        """Name a script's text.

        With `epoch`, its last argument is the server's epoch, which the connection knows. With `grants`, what it does
        counts only where as many replicas have it as the batcher was told.
        """
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), epoch, grants)


class _Call(NamedTuple):
    script: Script
    keys: Sequence[str]
    args: Sequence[str | int]
    deadline: float
    answer: asyncio.Future[Any]
    asking: bool


class Batcher:
    """Calls scripts through one Redis client, many at a time.

    Every script must be idempotent: a call whose connection broke is sent once more.

    Args:
        redis: The client, without timeouts of its own for answers, whose connections learn the server's epoch.
        where: What to call the server in messages.
        timeout: Seconds after which a pipeline and its connection are given up.
        wait_replicas: How many replicas must have a grant before it counts.
        resend: Whether it is this class that sends a call once more; else the caller does, who may know a better place.
    """

    def __init__(
        self, redis: Redis, where: str, timeout: float, *, wait_replicas: int = 0, resend: bool = True
    ) -> None:
        self._redis = redis
        self._where = where
        self._timeout = timeout
        self._wait_replicas = wait_replicas
        self._resend = resend
        self._abandoned = False
        # Asked for once: asking for the running loop is a system call each time in Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Call] = []
        self._scheduled = False
        self._pipelines: dict[asyncio.Task[None], float] = {}
        self._idle: list[OwnConnection] = []
        self._watched: list[_Call] = []
        self._watch: asyncio.TimerHandle | None = None

    async def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[str | int],
        timeout: float | None = None,
        *,
        asking: bool = False,
    ) -> Any:
        """Run a script and return its reply.

        Args:
            script: The script.
            keys: Its KEYS.
            args: Its ARGV.
            timeout: Seconds to wait for the reply, kept to within `WATCH_SECONDS`.
            asking: The server of a cluster is just receiving these keys.

        Raises:
            StoreUnavailableError: The server did not answer in time, or answered with an error, which is the cause.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        call = _Call(script, keys, args, deadline, answer, asking)
        self._waiting.append(call)
        self._watched.append(call)
        if self._watch is None:
            self._watch = loop.call_later(WATCH_SECONDS, self._give_late_ones_up, loop)
        if not self._scheduled and len(self._pipelines) < MAX_PIPELINES:
            self._scheduled = True
            loop.call_soon(self._flush, loop)
        return await answer

    async def abandon(self) -> None:
        """Let go of the server at once: whoever waits for an answer is told that the connection was lost."""
        self._abandoned = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if not call.answer.done():
                call.answer.set_exception(self._translate(call.script, NotSentError(ANOTHER)))
        for pipeline in tuple(self._pipelines):
            pipeline.cancel()
        await self.close()

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
                if not self._resend:
                    raise
                # Not those that nobody waits for any more: they are being undone.
                calls = [call for call in calls if not call.answer.done()]
                replies = await self._execute(calls)
        except asyncio.CancelledError:
            # Only this class cancels it, when it takes too long.
            given_up = RedisConnectionError(ANOTHER) if self._abandoned else TimeoutError()
            replies = [given_up] * len(calls)
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
            for call in calls:
                if call.asking:
                    commands.append(("ASKING",))
                commands.append(_command(call, connection.epoch))
            waits = self._wait_replicas > 0 and any(call.script.grants for call in calls)
            if waits:
                commands.append(("WAIT", self._wait_replicas, WAIT_MS))
            packed = b"".join(map(pack_command, commands))  # type: ignore[arg-type]
            await connection.send_packed_command(packed, check_health=False)
            replies = [await self._reply(connection) for _ in commands]
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                # Should it be made a primary, that is another epoch, of which only a new connection learns.
                await connection.disconnect(nowait=True)
            answers = [reply for command, reply in zip(commands, replies, strict=True) if command[0] == "EVALSHA"]
            return self._as_far_as_replicated(calls, answers, replies[-1]) if waits else answers
        except BaseException:
            # Answers may still come on it, and they would be taken for those of the next calls.
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._idle.append(connection)

    def _as_far_as_replicated(self, calls: Sequence[_Call], answers: list[Any], replicas: Any) -> list[Any]:
        if isinstance(replicas, int) and replicas >= self._wait_replicas:
            return answers
        why = (
            str(replicas)
            if isinstance(replicas, Exception)
            else f"{replicas} of {self._wait_replicas} replicas have it"
        )
        failure = RedisError(f"{why}, so it does not count")
        return [failure if _has_granted(call, answer) else answer for call, answer in zip(calls, answers, strict=True)]

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


def _has_granted(call: _Call, answer: Any) -> bool:
    if not call.script.grants or isinstance(answer, Exception):
        return False
    return not (isinstance(answer, list) and answer[0] in WITHOUT_A_GRANT)
