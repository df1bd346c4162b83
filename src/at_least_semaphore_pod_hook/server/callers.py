"""Who may send admissions: clients that show a certificate (RFC 8446, section 4.4.2) of authorities that we trust."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from at_least_semaphore_pod_hook.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
_NAMED = frozenset({"DNS", "URI", "email"})


class Callers:
    """The authorities of a file, asked of every client of a TLS context.

    Authorities that are added to the file are taken up while it is in use. One that is taken out goes on being trusted
    until the process ends: OpenSSL's store of a context that is in use only grows.

    Args:
        file: PEM certificates of authorities.
        context: The server's context.
    """

    def __init__(self, file: str, context: ssl.SSLContext) -> None:
        self._file = Path(file)
        self._context = context
        self._seen = b""

    def load(self) -> None:
        """Ask every new client for a certificate of these authorities.

        Raises:
            InvalidInputError: The file is missing, unreadable, or holds no certificate.
        """
        try:
            content = self._file.read_bytes()
            self._context.load_verify_locations(cadata=content.decode("ascii"))
        except (OSError, ValueError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise InvalidInputError(f"--client-ca-file: {self._file} holds no certificates: {reason}") from error
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._seen = content

    async def follow(self) -> None:
        """Take a changed file up until cancelled. One that is no good is logged once, and changes nothing."""
        refused = b""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                content = self._file.read_bytes()
                if content not in {self._seen, refused}:
                    refused = content
                    self.load()
                    logger.info("client authorities taken up", extra={"file": str(self._file)})
            except InvalidInputError as error:
                logger.warning("client authorities not taken up", extra={"reason": str(error)})
            except OSError:
                # Between removal and creation there is no file; the next look finds it.
                continue


def names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Return a client certificate's names, as `SSLSocket.getpeercert` shows it: common names and alternative names."""
    common = (
        value for attributes in certificate.get("subject", ()) for kind, value in attributes if kind == "commonName"
    )
    other = (value for kind, value in certificate.get("subjectAltName", ()) if kind in _NAMED)
    return frozenset([*common, *other])


def admits(allowed: Collection[str], certificate: Mapping[str, Any] | None) -> bool:
    """Say whether a client may send admissions: where names are given, its certificate has to have one of them."""
    return not allowed or bool(certificate and names(certificate) & frozenset(allowed))
