"""Validated settings, frozen. Imported by the sidecar: nothing heavy here."""

from __future__ import annotations

from collections import namedtuple

from at_least_semaphore_pod_hook.errors import InvalidInputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple
else:

    class _NamedTupleType(type):
        """Does what typing.NamedTuple does, without the 0.7 MB that typing costs each sidecar."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            """Make a class body's annotated names the fields of a named tuple."""
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = list(body["__annotations__"])
            defaults = [body.pop(field) for field in fields if field in body]
            return type(name, (namedtuple(name, fields, defaults=defaults),), {"__slots__": (), **body})  # noqa: PYI024

    class NamedTuple(metaclass=_NamedTupleType):
        """The base class by which a class body becomes a named tuple."""


MAX_PORT = 65535


class Address(NamedTuple):
    """Where a server is, and as whom to talk to it."""

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str = ""
    database: int = 0

    def __str__(self) -> str:
        """Host and port alone: fit for a log, no secret."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Common(NamedTuple):
    """What webhook and sidecar share."""

    lock_mode: str
    redis_addresses: tuple[Address, ...]
    etcd_addresses: tuple[Address, ...]
    queue_redis_address: Address
    log_level: str
    log_format: str


class Webhook(NamedTuple):
    """The webhook's settings.

    Attributes:
        queue_redis_address_flag: The address as it was given, to be handed on to the sidecars.
        variant: Sets the annotations of a second copy in the same cluster apart.
    """

    common: Common
    host: str
    port: int
    cert_dir: str
    sidecar_image: str
    sidecar_image_pull_policy: str
    sidecar_memory_limit: str
    enable_sidecar_containers: bool
    metrics_bind_address: Address
    health_probe_bind_address: Address
    kubeconfig: str
    wake_owners: bool
    when_full: str
    queue_redis_address_flag: str
    variant: str


class Sidecar(NamedTuple):
    """The sidecar's settings.

    Attributes:
        pod: The pod's own name where it is known.
        termination_grace_period_seconds: How long it keeps trying to give the permit back.
        release_on: When it gives the permit back: "sigterm", or "exit" of the pod's other containers.
        end_with_pod: Whether to end soon after the pod's other containers, unasked.
    """

    common: Common
    namespace: str
    key: str
    permit: str
    pod: str
    termination_grace_period_seconds: float
    release_on: str = "sigterm"
    end_with_pod: bool = False


def parse_address(text: str, schemes: dict[str, bool], default_port: int) -> Address:
    """Read `host:port` or `scheme://user:password@host:port/database`.

    Args:
        text: What the user gave.
        schemes: The URL schemes that are accepted, each with whether it means TLS.
        default_port: The port where a URL names none; a bare host needs one of its own.

    Raises:
        InvalidInputError: It is neither; the message does not repeat a password.
    """
    accepted = f"use host:port, with a port from 0 to {MAX_PORT}"
    if schemes:
        accepted += " or " + ", ".join(f"{scheme}://user:password@host:port" for scheme in schemes)
    if "://" not in text:
        located = _host_port(text, None)
        if located is None:
            shown = f"…@{text.rpartition('@')[2]}" if "@" in text else text
            raise InvalidInputError(f"{shown!r} is not accepted: {accepted}")
        return Address(*located)
    scheme, _, rest = text.partition("://")
    if scheme not in schemes:
        raise InvalidInputError(f"{scheme}://… is not accepted: {accepted}")
    # Where this cannot be read, a part of the password may be anywhere in it.
    authority, _, path = rest.partition("/")
    userinfo, _, location = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    located = _host_port(location, default_port)
    if located is None or (path and not (path.isascii() and path.isdecimal())):
        reason = "what follows the last / is a database number, and a / in a password is written %2F"
        raise InvalidInputError(f"{scheme}://… is not accepted: {accepted}; {reason}")
    return Address(*located, schemes[scheme], _unquote(username), _unquote(password), int(path or 0))


def _host_port(text: str, default_port: int | None) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, port = text, "" if default_port is None else str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    known = host.replace("-", "").replace(".", "").replace("_", "").replace(":", "").replace("%", "")
    if not known.isalnum() or not (port.isascii() and port.isdecimal()) or not 0 <= int(port) <= MAX_PORT:
        return None
    return host, int(port)


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # noqa: PLC0415 - half a megabyte that a sidecar seldom needs

    return unquote(text)
