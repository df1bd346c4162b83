"""The serving certificate: loaded, checked, and taken up again when its files change."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import ssl
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which has no name in Python."""


class Certificate(Protocol):
    """What the webhook serves."""

    context: ssl.SSLContext
    """Stays the same while the certificate in it changes; may ask clients for one of theirs."""
    open_context: ssl.SSLContext
    """The same for ports whose clients are never asked for a certificate."""

    @property
    def authorities(self) -> str:
        """The certificates (PEM) of whom vouches for it, by now or soon; empty where that is not known."""

    @property
    def ready(self) -> bool:
        """Whether there is one that may be served."""

    async def follow(self) -> None:
        """Keep it up to date until cancelled."""


def new_context() -> ssl.SSLContext:
    """Return a server's TLS context, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A handshake is the dearest thing that a client can ask for: one a connection is enough.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def take_up(contexts: Iterable[ssl.SSLContext], certificate: bytes, key: bytes) -> None:
    """Serve a pair (PEM) to new connections; those that are open are left alone.

    Raises:
        OSError, ValueError: They are no certificate and its key. The one before stays in service.
    """
    with _file("tls.crt", certificate) as certificate_file, _file("tls.key", key) as key_file:
        # A pair that is no good must not reach a live context, which would lose the one that it has.
        tried = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for each in (tried, *contexts):
            each.load_cert_chain(certificate_file, key_file)
    metrics.CERTIFICATE_RELOADS.inc()
    # The live one may ask its clients for a certificate.
    metrics.CERTIFICATE_EXPIRES.set(_expires(tried))


@contextmanager
def _file(name: str, content: bytes) -> Iterator[str]:
    """Name a file in memory, since a context reads files only, and the file system is read-only."""
    with open(os.memfd_create(name), "wb") as file:  # noqa: PTH123 - it has no path
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _expires(served: ssl.SSLContext) -> float:
    """Return when a served certificate ends, in seconds since the epoch, as a client sees it; NaN where none is served.

    The standard library reads a certificate's fields for those alone who have verified it, which takes a handshake.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate vouches for itself, whoever has issued it, and also after its end.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    for trusting in (False, True):
        client.verify_mode = ssl.CERT_REQUIRED if trusting else ssl.CERT_NONE
        try:
            shown = _handshake(client, served)
        except ssl.SSLError:
            break
        if not trusting:
            client.load_verify_locations(cadata=shown.getpeercert(binary_form=True) or b"")
        elif ends := (shown.getpeercert() or {}).get("notAfter"):
            return ssl.cert_time_to_seconds(str(ends))
    return math.nan


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """Let both shake hands in memory, and return the client's end. Raises SSLError where they do not."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(3):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0]


class ServingCertificate:
    """`tls.crt` and `tls.key` of a directory, in a TLS context that stays the same while they change; with `ca.crt`.

    Python's `SSLContext.load_cert_chain` on a live context serves the new certificate to new connections and leaves
    those that are open alone.

    Args:
        directory: Where the files are, e.g. a mounted Secret of cert-manager.
    """

    def __init__(self, directory: str) -> None:
        self._certificate = Path(directory) / "tls.crt"
        self._key = Path(directory) / "tls.key"
        self._seen: tuple[tuple[int, int, int], ...] = ()
        self._authorities = Path(directory) / "ca.crt"
        self.context, self.open_context = new_context(), new_context()
        self.authorities = ""
        self.ready = False

    def load(self) -> None:
        """Take the files up.

        Raises:
            InvalidInputError: One of them is missing or unreadable, or they do not belong together.
        """
        try:
            self._seen = self._fingerprint()
            take_up((self.context, self.open_context), self._certificate.read_bytes(), self._key.read_bytes())
            self.authorities = self._authorities.read_text("ascii") if self._authorities.exists() else ""
        except (OSError, ValueError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise InvalidInputError(
                f"--certDir: {self._certificate} and {self._key.name} are no certificate and its key: {reason}"
            ) from error
        self.ready = True

    async def follow(self) -> None:
        """Take changed files up until cancelled. A pair that is no good is logged once and the old one stays."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if self._fingerprint() == self._seen:
                    continue
                self.load()
                logger.info("certificate taken up", extra={"file": str(self._certificate)})
            except InvalidInputError as error:
                logger.warning("certificate not taken up", extra={"reason": str(error)})
            except OSError:
                # Between removal and creation there is no file; the next look finds it.
                continue

    def _fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        files = (self._certificate, self._key, self._authorities)
        stats = [file.stat() for file in files if file is not self._authorities or file.exists()]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
