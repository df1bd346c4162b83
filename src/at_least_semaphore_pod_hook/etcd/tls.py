"""TLS as an address asks for it, with files that may change while the process runs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.etcd.errors import EtcdUnavailableError

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import Address


class TlsContext:
    """The context for one address. Its certificates are read again when their files have changed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._context: ssl.SSLContext | None = None
        self._read: tuple[tuple[int, int, int], ...] = ()

    def current(self) -> ssl.SSLContext:
        """Return the context with the files as they are now.

        Raises:
            EtcdUnavailableError: A file cannot be read, or is not what it should be.
        """
        address = self._address
        names = [name for name in (address.ca_file, address.cert_file, address.key_file) if name]
        try:
            stats = [Path(name).stat() for name in names]
            read = tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)
            if self._context is None or read != self._read:
                context = ssl.create_default_context(cafile=address.ca_file or None)
                if address.cert_file:
                    context.load_cert_chain(address.cert_file, address.key_file)
                self._context, self._read = context, read
        except OSError as error:  # of which ssl.SSLError is one
            raise EtcdUnavailableError(f"{address}: {', '.join(names)}: {error.strerror or error}") from error
        return self._context
