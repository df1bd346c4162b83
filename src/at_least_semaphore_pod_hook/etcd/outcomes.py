"""What became of a request: answered, refused, surely not arrived, or in doubt."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec

from at_least_semaphore_pod_hook.etcd import wire
from at_least_semaphore_pod_hook.etcd.errors import EtcdRefusedError, EtcdUnavailableError
from at_least_semaphore_pod_hook.etcd_permits import IN_DOUBT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from at_least_semaphore_pod_hook.addresses import Address

_T = TypeVar("_T")


class UnreachedError(Exception):
    """The request did not get as far as the endpoint."""


class UnansweredError(Exception):
    """The request was sent, and what became of it is not known."""


@contextlib.contextmanager
def told_apart(endpoint: Address) -> Iterator[None]:
    """Tell requests that surely did not arrive from those that may have."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        cause = error.__cause__ or error
        raise UnreachedError(f"{endpoint}: TLS: {getattr(cause, 'verify_message', '') or cause}") from error
    except aiohttp.ClientConnectorError as error:
        reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
        raise UnreachedError(f"{endpoint}: {reason}") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise UnreachedError(f"{endpoint}: no connection in time") from error
    except TimeoutError as error:
        raise UnansweredError(f"{endpoint}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UnansweredError(f"{endpoint}: {error or type(error).__name__}") from error


def failure_of(endpoint: Address, status: int, answer: bytes) -> Exception:
    """Return what an answer with an HTTP status other than 200 means."""
    try:
        refusal = decode(answer, wire.Refusal)
    except EtcdUnavailableError:
        refusal = wire.Refusal()
    text = refusal.message or refusal.error
    if not text or refusal.code in IN_DOUBT:
        return UnansweredError(f"{endpoint}: {text or f'HTTP status {status}'}")
    return EtcdRefusedError(text, refusal.code)


def decode(answer: bytes, kind: type[_T]) -> _T:
    """Read JSON as a message of that kind; raises EtcdUnavailableError where it is none."""
    try:
        return msgspec.json.decode(answer, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise EtcdUnavailableError(f"etcd: not its JSON: {error}") from error
