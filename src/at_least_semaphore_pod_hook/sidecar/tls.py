"""TLS to a server, by what the standard library's `ssl` is made of: `ssl` itself takes another 2 MB in each pod.

Imported where TLS is used, as OpenSSL takes 5 MB.
"""

from __future__ import annotations

import _ssl

from at_least_semaphore_pod_hook.errors import StoreUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from at_least_semaphore_pod_hook.addresses import Address

PROTOCOL_TLS_CLIENT = 16
"""Of which it is the default to ask for a certificate that is trusted and has the server's name."""
WANT_READ, WANT_WRITE = _ssl.SSLWantReadError, _ssl.SSLWantWriteError


class Encrypted:
    """TLS over a socket that does not block, and that can be referred to weakly.

    What cannot go on at once raises WANT_READ or WANT_WRITE.
    """

    def __init__(self, plain: socket, context: _ssl._SSLContext, server_name: str) -> None:
        self._plain = plain
        wrap = context._wrap_socket  # type: ignore[attr-defined]  # noqa: SLF001 - what ssl calls
        tls = wrap(plain, False, server_name)
        self.do_handshake, self.send, self.recv = tls.do_handshake, tls.write, tls.read
        self.fileno, self.close = plain.fileno, plain.close


def trust(address: Address, authorities: str) -> _ssl._SSLContext:
    """Return whom to trust and how to show who we are.

    Args:
        address: Names the files that say it.
        authorities: Certificates (PEM) to trust; where there are none, those of a file, else the system's.

    Raises:
        StoreUnavailableError: A file cannot be used; the message names it.
    """
    context = _ssl._SSLContext(PROTOCOL_TLS_CLIENT)  # noqa: SLF001
    try:
        if authorities:
            context.load_verify_locations(None, None, authorities)
        elif address.ca_file:
            context.load_verify_locations(address.ca_file, None, None)
        else:
            context.set_default_verify_paths()
        if address.cert_file:
            context.load_cert_chain(address.cert_file, address.key_file, None)
    except OSError as error:
        # It does not say which of them.
        files = ", ".join(filter(None, (address.ca_file, address.cert_file, address.key_file)))
        raise StoreUnavailableError(f"{error.strerror or error}: one of {files or 'the authorities'}") from error
    return context
