"""One connection to the store, opened when it is needed. No wait in here outlasts its deadline or a signal."""

from __future__ import annotations

import _socket
import errno
import os
import select
import time

from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.sidecar.lookup import Lookup, targets
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError, ServerError, encode, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from ssl import SSLContext
    from typing import TypeVar

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.sidecar.lookup import Target
    from at_least_semaphore_pod_hook.sidecar.resp import Reply
    from at_least_semaphore_pod_hook.sidecar.signals import Signals

    T = TypeVar("T")

SCRIPTS = f"{__file__.rpartition('/')[0]}/../stores/redis/scripts"
MAX_ERROR = 120
CHUNK = 4_096


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


class Connection:
    """Calls scripts. Whatever fails closes the connection, and the next call opens another.

    `unanswered` counts the calls that were sent and got no reply: each may or may not have been applied.
    """

    def __init__(self, address: Address, signals: Signals) -> None:
        self.unanswered = 0
        self._address = address
        self._signals = signals
        self._socket: _socket.socket | None = None
        self._received = b""
        self._deadline = 0.0
        self._lookup: Lookup | None = None
        self._known: list[Target] = []
        self._context: SSLContext | None = None
        self._want_read: tuple[type[OSError], ...] = ()
        self._want_write: tuple[type[OSError], ...] = ()

    def call(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...], deadline: float) -> int:
        """Run a script that returns a number.

        Args:
            script: What to run.
            keys: Its KEYS.
            arguments: Its ARGV.
            deadline: The moment, of the monotonic clock, at which to give up.

        Raises:
            StoreUnavailableError: There was no such reply in time; the message says why and contains no secret.
            StopRequested: A signal asks to stop.
        """
        self._deadline = deadline
        try:
            if self._socket is not None:
                try:
                    return self._run(script, keys, arguments)
                except OSError:
                    # Most likely closed while it was idle, by a store that has restarted: no failure yet.
                    self.close()
            self._open()
            return self._run(script, keys, arguments)
        except (OSError, ValueError) as error:
            self.close()
            raise StoreUnavailableError(f"{self._address}: {_reason(error)}") from error
        except StoreUnavailableError as error:
            self.close()
            raise StoreUnavailableError(f"{self._address}: {error}") from error
        except BaseException:
            # Its reply is still to come: nobody may take it for the next one's.
            self.close()
            raise

    def idle(self, until: float) -> None:
        """Let time pass, and let go of a connection that the store closes meanwhile; raises StopRequested."""
        if self._socket is not None and self._signals.wait(until, self._socket.fileno()):
            self.close()
        self._signals.wait(until)

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self, script: Script, keys: tuple[str, ...], arguments: tuple[str, ...]) -> int:
        rest = (str(len(keys)), *keys, *arguments)
        reply = self._ask("EVAL", script.text, *rest) if script.whole else self._ask("EVALSHA", script.sha, *rest)
        if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
            reply = self._ask("EVAL", script.text, *rest)
        if isinstance(reply, ServerError):
            raise StoreUnavailableError(f"it says: {_printable(reply.text)}")
        if not isinstance(reply, int):
            raise MalformedReplyError("the reply to a script is not a number")
        return reply

    def _ask(self, *command: str) -> Reply:
        self.unanswered += 1
        reply = self._exchange(*command)
        self.unanswered -= 1
        return reply

    def _exchange(self, *command: str) -> Reply:
        sock = self._socket
        if sock is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        data = memoryview(encode(*command))
        while data:
            left = data
            data = data[self._patiently(lambda left=left: sock.send(left), select.POLLOUT) :]  # type: ignore[misc]
        while True:
            parsed = parse(self._received)
            if parsed is not None:
                reply, end = parsed
                self._received = self._received[end:]
                return reply
            chunk: bytes = self._patiently(lambda: sock.recv(CHUNK), select.POLLIN)
            if not chunk:
                raise OSError(errno.ECONNRESET, "it closed the connection")
            self._received += chunk

    def _patiently(self, operation: Callable[[], T], blocked_on: int) -> T:
        """Do what may have to wait for the other side."""
        while True:
            try:
                return operation()
            except self._want_read:
                events = select.POLLIN
            except self._want_write:
                events = select.POLLOUT
            except BlockingIOError:
                events = blocked_on
            self._wait(events)

    def _wait(self, events: int) -> None:
        if self._socket is None or not self._signals.wait(self._deadline, self._socket.fileno(), events):
            raise StoreUnavailableError("no answer in time")

    def _open(self) -> None:
        found = self._find()
        for index, target in enumerate(found):
            # What is left is shared out among the addresses that are left, so that a dead one does not eat it all.
            now = time.monotonic()
            share = now + (self._deadline - now) / (len(found) - index)
            try:
                self._connect(target, share)
                break
            except (OSError, StoreUnavailableError):
                self.close()
                if index == len(found) - 1:
                    raise
        if self._address.tls:
            self._encrypt()
        self._greet()

    def _find(self) -> list[Target]:
        name = self._address.host
        host = name.encode("ascii" if name.isascii() else "idna")
        try:
            return targets(host, self._address.port, _socket.AI_NUMERICHOST)
        except OSError:
            self._lookup = self._lookup or Lookup(host, self._address.port)
        now = time.monotonic()
        if self._signals.wait((now + self._deadline) / 2, self._lookup.reader):
            lookup, self._lookup = self._lookup, None
            try:
                self._known = lookup.result()
            except OSError:
                if not self._known:
                    raise
        # Where names can't be looked up at the moment, the store most likely still is where it was.
        if not self._known:
            raise StoreUnavailableError("its name could not be looked up in time")
        return self._known

    def _connect(self, target: Target, deadline: float) -> None:
        family, kind, protocol, address = target
        sock = self._socket = _socket.socket(family, kind, protocol)
        sock.setblocking(False)
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._received = b""
        self._want_read = self._want_write = ()
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            if not self._signals.wait(deadline, sock.fileno(), select.POLLOUT):
                raise StoreUnavailableError("no connection in time")
            code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _encrypt(self) -> None:
        import socket  # noqa: PLC0415 - what ssl wraps
        import ssl  # noqa: PLC0415 - 4 MB that only TLS needs

        if self._socket is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if self._context is None:
            self._context = ssl.create_default_context()
        self._want_read, self._want_write = (ssl.SSLWantReadError,), (ssl.SSLWantWriteError,)
        plain = socket.socket(fileno=self._socket.detach())
        try:
            tls = self._context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=self._address.host)
        except BaseException:
            self._socket = None
            plain.close()
            raise
        self._socket = tls
        self._patiently(tls.do_handshake, select.POLLIN)

    def _greet(self) -> None:
        address = self._address
        if address.username or address.password:
            who = (address.username, address.password) if address.username else (address.password,)
            self._expect_ok("AUTH", *who)
        if address.database:
            self._expect_ok("SELECT", str(address.database))

    def _expect_ok(self, *command: str) -> None:
        reply = self._exchange(*command)
        if isinstance(reply, ServerError):
            # Its code alone: some servers repeat the arguments of a command that they don't know.
            raise StoreUnavailableError(f"it says {_printable(reply.code)} to {command[0]}")
        if reply != b"OK":
            raise MalformedReplyError(f"the reply to {command[0]} is not OK")


def _reason(error: Exception) -> str:
    return _printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_ERROR])
