"""A look at the webhook's port, as the API server has it."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import aiohttp
from cryptography import x509

from at_least_semaphore_pod_hook.connector import Connector
from at_least_semaphore_pod_hook.console.doctor.certificate import Served

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import Address

LOOK_SECONDS = 5.0


async def look(address: Address, name: str, bundle: bytes) -> Served:
    """Look what is served at an address.

    Args:
        address: The webhook's.
        name: As whom the API server calls it; empty where that, and `bundle`, is not known.
        bundle: What the API server is told to trust (PEM).
    """
    where = str(address)
    try:
        certificate = await _certificate(address, _trusting_anybody())
    except (OSError, TimeoutError) as error:
        return Served(where, _said(error))
    if certificate is None:
        return Served(where, "it shows no certificate")
    loaded = x509.load_der_x509_certificate(certificate)
    try:
        named = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names: tuple[str, ...] = ()
    else:
        addresses = (str(each) for each in named.get_values_for_type(x509.IPAddress))
        names = (*named.get_values_for_type(x509.DNSName), *addresses)
    return Served(
        where,
        names=names,
        begin=loaded.not_valid_before_utc.timestamp(),
        end=loaded.not_valid_after_utc.timestamp(),
        distrust=await _distrust(address, name, bundle) if name else None,
        answers_strangers=await _answers(address),
    )


async def _certificate(address: Address, context: ssl.SSLContext, name: str = "") -> bytes | None:
    """Return the certificate that is shown, in DER."""
    async with asyncio.timeout(LOOK_SECONDS):
        _, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=name or address.host
        )
    try:
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown
    finally:
        writer.transport.abort()


async def _distrust(address: Address, name: str, bundle: bytes) -> str | None:
    """Return why somebody who trusts `bundle` alone does not trust what is served; None where it does."""
    if not bundle:
        return "it is empty"
    try:
        context = ssl.create_default_context(cadata=bundle.decode(errors="replace"))
    except ssl.SSLError as error:
        return f"it is no PEM: {_said(error)}"
    try:
        await _certificate(address, context, name)
    except (OSError, TimeoutError) as error:
        return _said(error)
    return None


async def _answers(address: Address) -> bool:
    """Whether somebody without a client certificate gets an answer, whatever it is."""
    try:
        async with (
            asyncio.timeout(LOOK_SECONDS),
            aiohttp.ClientSession(connector=Connector(ssl=_trusting_anybody())) as session,
            session.get(f"https://{address}/") as answer,
        ):
            await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
    return True


def _trusting_anybody() -> ssl.SSLContext:
    # What is shown is looked at, and nothing is said to whoever shows it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _said(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", "") or error)
