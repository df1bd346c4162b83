"""Where servers are and how to talk to them, as users write it. Imported by the sidecar: nothing heavy here."""

from __future__ import annotations

from collections import namedtuple

from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError

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
REDIS_PORT, SENTINEL_PORT, ETCD_PORT = 6379, 26379, 2379
PERMIT_PORT = 9444
"""What the webhook serves sidecars on."""
REDIS_SCHEMES = {"redis": False, "rediss": True}
ETCD_SCHEMES = {"http": False, "https": True}
STORE_SCHEMES = {
    "redis": ("redis", False),
    "rediss": ("redis", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "unix": ("unix", False),
    "etcd": ("etcd", False),
    "etcds": ("etcd", True),
    "memory": ("memory", False),
}
"""Each scheme of a store's URL: the kind of store, and whether it is talked to by TLS."""
_PORTS = {"redis": REDIS_PORT, "cluster": REDIS_PORT, "sentinel": SENTINEL_PORT, "etcd": ETCD_PORT}
_CREDENTIAL_OPTIONS = ("username-file", "password-file")
_TLS_OPTIONS = ("ca-file", "cert-file", "key-file", "server-name")
_SENTINEL_OPTIONS = ("sentinel-username", "sentinel-username-file", "sentinel-password", "sentinel-password-file")


class Address(NamedTuple):
    """Where a server is, and as whom to talk to it.

    Attributes:
        host, port: Where it listens; unused where there is a `path`.
        tls: Whether to talk TLS.
        username, password: As whom, where no file says it.
        database: The number of a Redis database.
        path: Of a Unix domain socket, in place of host and port.
        username_file, password_file: Files to read these from for each connection, so that they can be changed.
        ca_file: The authorities to check the server's certificate against; the system's where empty. PEM.
        cert_file, key_file: The client's certificate and key, PEM; read for each connection.
        server_name: What the server's certificate is issued for, where that is not `host`.
    """

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str = ""
    database: int = 0
    path: str = ""
    username_file: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    def __str__(self) -> str:
        """Host and port alone: fit for a log, no secret."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def credentials(self) -> tuple[str, str]:
        """Return user name and password as they are now, each empty where there is none.

        Raises:
            UnavailableError: A file cannot be read.
        """
        return _current(self.username_file, self.username), _current(self.password_file, self.password)


class StoreUrl(NamedTuple):
    """Which store, and where.

    Attributes:
        kind: redis, sentinel, cluster, unix, etcd or memory.
        addresses: Whom to ask: the server itself, Sentinels, some nodes of the cluster, or etcd's members. With
            Sentinels these have the Sentinels' own credentials.
        server: How to talk to a server that the Sentinels or the cluster name; host and port are empty.
        service: What the Sentinels call the server.
        wait_replicas: How many replicas must have a grant before it counts; 0 for none.
    """

    kind: str
    addresses: tuple[Address, ...]
    server: Address
    service: str = ""
    wait_replicas: int = 0

    def __str__(self) -> str:
        """Fit for a log, no secret."""
        if self.kind == "memory":
            return "memory"
        places = ",".join(map(str, self.addresses))
        return f"{places}/{self.service}" if self.service else places


class _Parts(NamedTuple):
    """A URL, taken apart; percent signs are decoded already, except in `hosts`."""

    scheme: str
    username: str
    password: str
    hosts: str
    path: str
    options: dict[str, str]


def parse_address(text: str, schemes: dict[str, bool], default_port: int) -> Address:
    """Read `host:port` or `scheme://user:password@host:port/database?option=value&…`.

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
    parts = _split(text)
    if parts.scheme not in schemes:
        raise InvalidInputError(f"{parts.scheme}://… is not accepted: {accepted}")
    located = _host_port(parts.hosts, default_port)
    database = _number(parts.path)
    if located is None or database is None:
        reason = "what follows the last / is a database number, and a / or ? in a password is written %2F or %3F"
        raise InvalidInputError(f"{parts.scheme}://… is not accepted: {accepted}; {reason}")
    tls = schemes[parts.scheme]
    _check_options(parts, _CREDENTIAL_OPTIONS + (_TLS_OPTIONS if tls else ()))
    return _address(parts, tls)._replace(host=located[0], port=located[1], database=database)


def parse_store_url(text: str) -> StoreUrl:
    """Read the URL of a store.

    Accepted are `redis://host:port/db` and `rediss://…`, `redis+sentinel://host:port,…/service/db`,
    `redis+cluster://host:port,…`, both also with `rediss+`, `unix:///path?db=…`, `etcd://host:port,…`, `etcds://…` and
    `memory://`. Before a host stands `user:password@` where it is needed; options come after a question mark.

    Raises:
        InvalidInputError: It is none of these; the message does not repeat a password.
    """
    scheme = text.partition("://")[0]
    if "://" not in text or scheme not in STORE_SCHEMES:
        shown = f"{scheme}://…" if "://" in text else "what has no scheme"
        raise InvalidInputError(f"{shown} is not accepted: use one of {', '.join(f'{s}://' for s in STORE_SCHEMES)}")
    kind, tls = STORE_SCHEMES[scheme]
    parts = _split(text)
    _check_options(parts, _accepted_options(kind, tls=tls))
    server = _address(parts, tls)
    if kind == "memory":
        if parts.hosts or parts.path:
            raise InvalidInputError("memory://… is not accepted: use memory:// and nothing else")
        return StoreUrl(kind, (), server)
    if kind == "unix":
        database = _number(parts.options.get("db", ""))
        if parts.hosts or not parts.path or database is None:
            raise InvalidInputError("unix://… is not accepted: use unix:///path/of/the/socket, with ?db=number or not")
        server = server._replace(path=f"/{parts.path}", database=database)
        return StoreUrl("redis", (server,), server)
    return _networked(kind, parts, server)


def _networked(kind: str, parts: _Parts, server: Address) -> StoreUrl:
    located = [_host_port(host, _PORTS[kind]) for host in parts.hosts.split(",")]
    service, _, number = parts.path.partition("/") if kind == "sentinel" else ("", "", parts.path)
    database = _number(number)
    wait_replicas = _number(parts.options.get("wait-replicas", ""))
    wrong = ""
    if None in located or (kind == "redis" and len(located) > 1):
        wrong = "host:port" if kind == "redis" else "host:port,host:port,…"
    elif kind == "sentinel" and not service:
        wrong = "host:port,host:port,…/service"
    elif database is None or (database and kind in {"cluster", "etcd"}):
        wrong = "nothing after host and port" if kind in {"cluster", "etcd"} else "a number as the database"
    elif wait_replicas is None:
        wrong = "a number as wait-replicas"
    if wrong:
        reason = "a / or ? in a password is written %2F or %3F"
        raise InvalidInputError(f"{parts.scheme}://… is not accepted: use {wrong}; {reason}")
    server = server._replace(database=database or 0)
    asked = server
    if kind == "sentinel":
        asked = server._replace(
            username=parts.options.get("sentinel-username", ""),
            password=parts.options.get("sentinel-password", ""),
            database=0,
            username_file=parts.options.get("sentinel-username-file", ""),
            password_file=parts.options.get("sentinel-password-file", ""),
        )
    addresses = tuple(asked._replace(host=host, port=port) for host, port in filter(None, located))
    return StoreUrl(kind, addresses, addresses[0] if kind == "redis" else server, service, wait_replicas or 0)


def _accepted_options(kind: str, *, tls: bool) -> tuple[str, ...]:
    if kind == "memory":
        return ()
    options = _CREDENTIAL_OPTIONS + (_TLS_OPTIONS if tls else ())
    if kind == "unix":
        return (*options, "db")
    if kind == "sentinel":
        options += _SENTINEL_OPTIONS
    return (*options, "wait-replicas") if kind in {"redis", "sentinel", "cluster"} else options


def _split(text: str) -> _Parts:
    """Take a URL apart. Where it cannot be read, a part of the password may be in any of the parts."""
    scheme, _, rest = text.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = {}
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        options[name] = _unquote(value)
    return _Parts(scheme, _unquote(username), _unquote(password), hosts, _unquote(path), options)


def _check_options(parts: _Parts, accepted: tuple[str, ...]) -> None:
    for name, value in parts.options.items():
        if name not in accepted or not value:
            among = f"use {', '.join(accepted)}, each with a value" if accepted else "there are none"
            # What is no option of ours may be a piece of a password.
            shown = f"option {name!r}" if name in accepted + _TLS_OPTIONS else "an option"
            raise InvalidInputError(f"{parts.scheme}://…?…: {shown} is not accepted: {among}")
    if ("cert-file" in parts.options) != ("key-file" in parts.options):
        raise InvalidInputError(f"{parts.scheme}://…?…: cert-file and key-file come together")


def _address(parts: _Parts, tls: bool) -> Address:
    username_file, password_file, *tls_options = (
        parts.options.get(name, "") for name in _CREDENTIAL_OPTIONS + _TLS_OPTIONS
    )
    return Address("", 0, tls, parts.username, parts.password, 0, "", username_file, password_file, *tls_options)


def _current(file: str, value: str) -> str:
    if not file:
        return value
    try:
        # Not pathlib: another 200 kB in each pod.
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            return opened.read().strip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UnavailableError(f"{file}: {reason}") from error


def _number(digits: str) -> int | None:
    """Return a number, 0 for nothing, None for what is none."""
    if not digits:
        return 0
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < len(str(2**31)) else None


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
