"""The serving certificate: loaded, checked, and taken up again when its files change."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0


@contextmanager
def _copy(file: Path) -> Iterator[str]:
    """Name a copy of a file that lies in memory, since a context reads files only, and the file system is read-only."""
    with open(os.memfd_create(file.name), "wb") as copy:  # noqa: PTH123 - it has no path
        copy.write(file.read_bytes())
        copy.flush()
        yield f"/proc/self/fd/{copy.fileno()}"


class ServingCertificate:
    """`tls.crt` and `tls.key` of a directory, in a TLS context that stays the same while they change.

    Python's `SSLContext.load_cert_chain` on a live context serves the new certificate to new connections and leaves
    those that are open alone.

    Args:
        directory: Where the two files are, e.g. a mounted Secret of cert-manager.
    """

    def __init__(self, directory: str) -> None:
        self._certificate = Path(directory) / "tls.crt"
        self._key = Path(directory) / "tls.key"
        self._seen: tuple[tuple[int, int, int], ...] = ()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])

    def load(self) -> None:
        """Take the files up.

        Raises:
            InvalidInputError: One of them is missing or unreadable, or they do not belong together.
        """
        try:
            self._seen = self._fingerprint()
            with _copy(self._certificate) as certificate, _copy(self._key) as key:
                # A pair that is no good must not reach the live context, which would lose the one that it has. Files
                # may change at any moment: what is checked is what is taken up.
                for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                    context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise InvalidInputError(
                f"--certDir: {self._certificate} and {self._key.name} are no certificate and its key: {reason}"
            ) from error
        metrics.CERTIFICATE_RELOADS.inc()

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
        stats = [file.stat() for file in (self._certificate, self._key)]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
