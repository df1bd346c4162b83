"""The lock over independent Redis or Valkey servers, by majority.

The algorithm is Redlock as published at https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/: take
a key with a random value and a time to live on every server, hold the lock where a majority said yes well before the
keys end, and give it back by removing the key only where it still has one's own value.

What it cannot do, by its nature: it relies on the servers' clocks running at about the same speed, and on a server that
lost its data staying away for one time to live (persist with `appendfsync always`, or restart it late). The fence that
comes with the lock makes up for both, and for a holder that is paused: the store counts guarded steps and refuses an
older one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from at_least_semaphore_pod_hook.errors import InvalidInputError, LockUnavailableError
from at_least_semaphore_pod_hook.locks.lifetime import Cleanups, stopped_at
from at_least_semaphore_pod_hook.locks.turns import Turns
from at_least_semaphore_pod_hook.redis_client import connect, translate
from at_least_semaphore_pod_hook.semaphore.model import Fence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from at_least_semaphore_pod_hook.addresses import Address

_LOG: Final = logging.getLogger(__name__)
_RELEASE: Final = files(__package__).joinpath("scripts/release.lua").read_text(encoding="utf-8")
_FENCE: Final = Fence("redlock", 0)
_SIZES: Final = (1, 3, 5)
_CONNECTIONS: Final = 16
_DRIFT_FACTOR: Final = 0.01
_DRIFT_SECONDS: Final = 0.002
_BACKOFF_SECONDS: Final = 0.01
_BACKOFF_MAX_SECONDS: Final = 0.08
_GRACE_SECONDS: Final = 0.25
_ATTEMPTS_UNREACHABLE: Final = (
    2  # servers that restarted cost one attempt: old connections are found dead by using them
)


def quorum(servers: int) -> int:
    """How many of the servers are a majority."""
    return servers // 2 + 1


def validity(ttl: float, elapsed: float) -> float:
    """How many seconds a lock still lasts when taking it took `elapsed` seconds; none are left where it is 0 or less.

    The servers' clocks may run 1 % faster than ours, and a key may end up to 2 ms early: a server counts in whole
    milliseconds, and so does a time to live.
    """
    return ttl - elapsed - (ttl * _DRIFT_FACTOR + _DRIFT_SECONDS)


def backoffs() -> Iterator[float]:
    """Seconds to wait after each attempt, without end: random, to part contenders, and longer while it stays taken."""
    ceiling = _BACKOFF_SECONDS
    while True:
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads contenders, guards nothing
        ceiling = min(2 * ceiling, _BACKOFF_MAX_SECONDS)


class Redlock:
    """A lock (`semaphore.contracts.Lock`) over 1, 3 or 5 servers that know nothing of each other.

    A minority of them may be down. Callers of one name within the process stand in a line of their own, so that a
    process has one contender a name, and its callers are served in order.

    Args:
        addresses: The servers; replicas of one another, or databases of one server, are not independent.
        ttl: Seconds until the lock of a holder that crashed is free. A holder is stopped shortly before.
        node_timeout: Seconds within which a server must have answered, connecting included; well below the ttl, of
            which it is a twentieth by default.

    Raises:
        InvalidInputError: The addresses or times are not what is accepted.
    """

    def __init__(self, addresses: Sequence[Address], *, ttl: float = 10.0, node_timeout: float | None = None) -> None:
        node_timeout = ttl / 20 if node_timeout is None else node_timeout
        places = {(address.host, address.port) for address in addresses}
        if len(addresses) not in _SIZES or len(places) != len(addresses):
            given = ", ".join(map(str, addresses)) or "none"
            raise InvalidInputError(f"a redlock needs 1, 3 or 5 Redis addresses, each a server of its own, not {given}")
        if not 0 < node_timeout < validity(ttl, 0):
            raise InvalidInputError(
                f"a redlock's node timeout is above 0 s and below its ttl, not {node_timeout} of {ttl} s"
            )
        self._ttl = ttl
        self._nodes = [_Node(address, node_timeout) for address in addresses]
        self._turns = Turns()
        self._cleanups = Cleanups(min(_GRACE_SECONDS, node_timeout))
        self._close_seconds = 2 * node_timeout + _GRACE_SECONDS  # a vote that is under way, and its release after it

    @asynccontextmanager
    async def hold(self, name: str, timeout: float) -> AsyncIterator[Fence]:
        """Hold the lock `name`, as `Lock.hold` says; `timeout` is in seconds.

        Raises:
            LockUnavailableError: It is taken until the timeout; or a majority of the servers does not answer, which is
                said as soon as it is known; or the body took longer than the lock lasts, and was stopped.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._turns.turn(name, deadline) as waited:
            if waited:  # lest a process with a line of its own shuts out the others
                await asyncio.sleep(random.uniform(0, _BACKOFF_SECONDS))  # noqa: S311 - spreads contenders
            attempt = await self._acquire(name, deadline)
            try:
                async with stopped_at(attempt.valid_until, name):
                    yield _FENCE
            finally:
                await self._let_go(attempt)

    async def ping(self) -> None:
        """Return where a majority of the servers answers; LockUnavailableError names those that do not."""
        answers = await asyncio.gather(*(node.ping() for node in self._nodes))
        failures = [answer for answer in answers if answer]
        if len(self._nodes) - len(failures) < quorum(len(self._nodes)):
            raise _unreachable("redlock", failures, len(self._nodes))

    async def close(self) -> None:
        """Finish giving back locks, within bounds, and let go of connections."""
        await self._cleanups.close(self._close_seconds)
        for node in self._nodes:
            await node.close()

    async def _acquire(self, name: str, deadline: float) -> _Attempt:
        loop = asyncio.get_running_loop()
        failures: list[str] | None = None
        unreachable = 0
        for pause in backoffs():
            attempt = _Attempt(self._nodes, f"lock/{name}", self._ttl)
            decided = False
            try:
                async with asyncio.timeout_at(deadline):
                    if await attempt.succeeds():
                        return attempt
                    decided = True
            except TimeoutError:
                pass  # its reasons are told below, after what was taken has been given back
            except asyncio.CancelledError:
                await self._let_go(attempt)
                raise
            if decided or failures is None:  # an attempt that the deadline cut off tells less than the one before it
                failures = attempt.failures(pending_too=not decided)
                unreachable = unreachable + 1 if len(self._nodes) - len(failures) < quorum(len(self._nodes)) else 0
            await self._let_go(attempt)
            late = loop.time() + pause >= deadline
            if unreachable and (late or unreachable == _ATTEMPTS_UNREACHABLE):
                raise _unreachable(f"lock {name!r}", failures, len(self._nodes))
            if late:
                break
            await asyncio.sleep(pause)
        but = f" ({'; '.join(failures)})" if failures else ""
        raise LockUnavailableError(f"lock {name!r} is still taken{but}")

    async def _let_go(self, attempt: _Attempt) -> None:
        # A server that refused has nothing to remove: the value was never set there. One that granted answers at once,
        # and its caller may want the lock again. The others may be down: nobody should wait for them.
        granted, undecided = attempt.granted(), attempt.undecided()
        if undecided:
            self._cleanups.start(attempt.release(undecided))
        if granted:
            await self._cleanups.run(attempt.release(granted))


class _Attempt:
    """One try to take a key on every server, with a random value of its own; it begins at once."""

    def __init__(self, nodes: Sequence[_Node], key: str, ttl: float) -> None:
        self._key = key
        self._value = secrets.token_hex(16)
        self.valid_until = asyncio.get_running_loop().time() + validity(ttl, 0)
        self._votes = {node: asyncio.create_task(node.take(key, self._value, round(ttl * 1000))) for node in nodes}

    async def succeeds(self) -> bool:
        """Say whether the lock was had, as soon as that is decided: a slow server is awaited only where it matters."""
        needed = quorum(len(self._votes))
        pending = set(self._votes.values())
        while True:
            granted = len(self.granted())
            if granted >= needed or granted + len(pending) < needed:
                return granted >= needed and asyncio.get_running_loop().time() < self.valid_until
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    def failures(self, *, pending_too: bool) -> list[str]:
        """Name the servers that failed, and why; on demand also those that have not answered yet."""
        failures = []
        for node, vote in self._votes.items():
            answer = vote.result() if vote.done() else f"{node.address}: no answer in time"
            if isinstance(answer, str) and (vote.done() or pending_too):
                failures.append(answer)
        return failures

    def granted(self) -> list[_Node]:
        """Name the servers that have granted the key."""
        return [node for node, vote in self._votes.items() if vote.done() and vote.result() is True]

    def undecided(self) -> list[_Node]:
        """Name the servers that have neither granted nor refused it: they may have set it, or may yet do so."""
        return [node for node, vote in self._votes.items() if not vote.done() or isinstance(vote.result(), str)]

    async def release(self, nodes: Sequence[_Node]) -> None:
        """Remove the key from these servers, from each once its vote is over."""
        await asyncio.gather(*(self._release(node) for node in nodes))

    async def _release(self, node: _Node) -> None:
        if await self._votes[node] is False:
            return
        failure = await node.release(self._key, self._value)
        if failure:
            _LOG.warning("%s was not removed and ends by itself: %s", self._key, failure)


class _Node:
    """One of the servers. It answers within its timeout or counts as failed; failures are returned as text."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        # Any, because redis-py leaves execute_command without types.
        self._client: Any = connect(address, timeout=timeout, max_connections=_CONNECTIONS)
        self._slots = asyncio.Semaphore(_CONNECTIONS)  # redis-py's pool fails where all its connections are in use

    async def take(self, key: str, value: str, milliseconds: int) -> bool | str:
        """Set the key where it is absent. Returns whether that was so, or the failure."""
        try:
            return await self._ask("SET", key, value, "NX", "PX", milliseconds) is not None
        except LockUnavailableError as failure:
            return str(failure)

    async def release(self, key: str, value: str) -> str:
        """Remove the key where it has the value. Returns the failure, if any."""
        try:
            await self._ask("EVAL", _RELEASE, 1, key, value)
        except LockUnavailableError as failure:
            return str(failure)
        return ""

    async def ping(self) -> str:
        """Return the failure, if any."""
        try:
            await self._ask("PING")
        except LockUnavailableError as failure:
            return str(failure)
        return ""

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, *command: str | int) -> Any:
        with translate(self.address, LockUnavailableError):
            async with asyncio.timeout(self._timeout), self._slots:
                return await self._client.execute_command(*command)


def _unreachable(what: str, failures: list[str], servers: int) -> LockUnavailableError:
    needed = quorum(servers)
    return LockUnavailableError(f"{what} needs {needed} of {servers} Redis servers: {'; '.join(failures)}")
