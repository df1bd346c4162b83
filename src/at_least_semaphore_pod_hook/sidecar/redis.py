"""What a sidecar asks of a Redis or Valkey server: to run a script, and a command now and then."""

from __future__ import annotations

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.sidecar.connection import Connection, printable
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError, ServerError, encode, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl
    from at_least_semaphore_pod_hook.sidecar.resp import Reply
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

    class Caller(Protocol):
        """Runs scripts: at one server, or wherever the semaphore is at the moment.

        `unanswered` counts the calls that were sent and got no reply: each may or may not have been applied.
        """

        @property
        def unanswered(self) -> int: ...  # noqa: D102

        def call(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
            """Run a script that returns a number; see `Server.call`."""

        def idle(self, until: float) -> None:
            """Let time pass; raises StopRequested."""

        def close(self) -> None:
            """Let go of connections."""


SCRIPTS = f"{__file__.rpartition('/')[0]}/../stores/redis/scripts"


class RefusedError(StoreUnavailableError):
    """The server has answered with an error, so nothing was done. `reply` is what it says."""

    def __init__(self, address: Address, reply: ServerError) -> None:
        super().__init__(f"{address}: it says: {printable(reply.text)}")
        self.reply = reply


class Script:
    """A script of the store, and the name that the store knows it by.

    One that is called once goes out `whole`: by its name it would mostly have to be sent a second time.
    """

    __slots__ = ("sha", "text", "whole")

    def __init__(self, name: str, *, whole: bool = False) -> None:
        self.whole = whole
        try:
            from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
        except ImportError:  # An interpreter that was built with OpenSSL's hashes alone.
            from hashlib import sha1  # noqa: PLC0415
        # Not pathlib: another 200 kB in each pod.
        with open(f"{SCRIPTS}/{name}.lua", "rb") as file:  # noqa: PTH123
            data = file.read()
        self.text = data.decode()
        self.sha: str = sha1(data).hexdigest()  # noqa: S324 - a name, not a secret


class Server:
    """One server. Whatever fails closes the connection, and the next call opens another."""

    def __init__(self, address: Address, signals: Signals) -> None:
        self.address = address
        self.unanswered = 0
        self._connection = Connection(address, signals)
        self._received = b""
        self.idle = self._connection.idle
        self.close = self._connection.close

    def call(
        self,
        script: Script,
        keys: tuple[str, ...],
        arguments: tuple[str, ...],
        deadline: float,
        *,
        asking: bool = False,
    ) -> int:
        """Run a script that returns a number.

        Args:
            script: What to run.
            keys: Its KEYS.
            arguments: Its ARGV.
            deadline: The moment, of the monotonic clock, at which to give up.
            asking: The server of a cluster is just receiving these keys.

        Raises:
            RefusedError: The server answers with an error.
            StoreUnavailableError: There was no such reply in time; the message says why and contains no secret.
            StopRequested: A signal asks to stop.
        """
        rest = (str(len(keys)), *keys, *arguments)
        by_text = ("EVAL", script.text, *rest)
        reply = self._reply(by_text if script.whole else ("EVALSHA", script.sha, *rest), deadline, asking)
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            reply = self._reply(by_text, deadline, asking)
        if isinstance(reply, ServerError):
            self.close()
            raise RefusedError(self.address, reply)
        if not isinstance(reply, int):
            self.close()
            raise MalformedReplyError(f"{self.address}: the reply to a script is not a number")
        return reply

    def ask(self, command: tuple[str, ...], deadline: float) -> Reply:
        """Send a command and return its reply; raises as `call` does."""
        reply = self._reply(command, deadline)
        if isinstance(reply, ServerError):
            self.close()
            raise RefusedError(self.address, reply)
        return reply

    def _reply(self, command: tuple[str, ...], deadline: float, asking: bool = False) -> Reply:
        return self._connection.through(lambda: self._counted(command, asking), deadline, self._greet)

    def _counted(self, command: tuple[str, ...], asking: bool) -> Reply:
        if asking:
            self._expect_ok("ASKING")
        self.unanswered += 1
        reply = self._exchange(*command)
        self.unanswered -= 1
        return reply

    def _exchange(self, *command: str) -> Reply:
        self._connection.send(encode(*command))
        while True:
            parsed = parse(self._received)
            if parsed is not None:
                reply, end = parsed
                self._received = self._received[end:]
                return reply
            self._received += self._connection.receive()

    def _greet(self) -> None:
        self._received = b""
        username, password = self.address.credentials()
        if username or password:
            self._expect_ok("AUTH", *((username, password) if username else (password,)))
        if self.address.database:
            self._expect_ok("SELECT", str(self.address.database))

    def _expect_ok(self, *command: str) -> None:
        reply = self._exchange(*command)
        if isinstance(reply, ServerError):
            # Its code alone: some servers repeat the arguments of a command that they don't know.
            raise StoreUnavailableError(f"it says {printable(reply.code)} to {command[0]}")
        if reply != b"OK":
            raise MalformedReplyError(f"the reply to {command[0]} is not OK")


class Moving:
    """What runs scripts at one server, which can be another one at the next call."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._server: Server | None = None
        self._unanswered = 0

    @property
    def unanswered(self) -> int:
        """How many calls were sent and got no reply."""
        return self._unanswered + (self._server.unanswered if self._server else 0)

    def idle(self, until: float) -> None:
        """Let time pass; raises StopRequested."""
        if self._server is None:
            self._signals.wait(until)
        else:
            self._server.idle(until)

    def close(self) -> None:
        """Let go of the connection, and of where the server was."""
        if self._server is not None:
            self._unanswered += self._server.unanswered
            self._server.close()
            self._server = None


class RedisStore:
    """The permits of one semaphore in Redis or Valkey, as a sidecar sees them."""

    def __init__(self, caller: Caller, semaphore: str) -> None:
        self._caller = caller
        queue, inflight = f"queue/{{{semaphore}}}", f"inflight/{{{semaphore}}}"
        # In the order of every script's KEYS, whether it uses them or not.
        self._keys = (queue, inflight, f"{inflight}/holders", f"{queue}/denied", f"{inflight}/ended")
        self._renew, self._release = Script("renew"), Script("release", whole=True)
        self.idle = caller.idle
        self.close = caller.close

    @property
    def unanswered(self) -> int:
        """See `stores.Store.unanswered`."""
        return self._caller.unanswered

    def renew(self, permit: str, pod: str, deadline: float) -> int:
        """See `stores.Store.renew`."""
        return self._caller.call(self._renew, self._keys, (permit, pod), deadline)

    def release(self, permit: str, pod: str, deadline: float) -> int:
        """See `stores.Store.release`."""
        return self._caller.call(self._release, self._keys, (permit, pod), deadline)


def open_redis(url: StoreUrl, semaphore: str, signals: Signals) -> RedisStore:
    """Open the store that is one server."""
    return RedisStore(Server(url.server, signals), semaphore)
