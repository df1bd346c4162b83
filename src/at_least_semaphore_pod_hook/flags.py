"""What flags take: one converter for each kind of value, each with its environment variable."""

from __future__ import annotations

import argparse
import os
import re
import sys

from at_least_semaphore_pod_hook import addresses
from at_least_semaphore_pod_hook.addresses import MAX_PORT, Address, StoreUrl, parse_address, parse_store_url
from at_least_semaphore_pod_hook.errors import InvalidInputError

TYPE_CHECKING = False  # typing costs each sidecar 0.7 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

ANYWHERE = "0.0.0.0"  # noqa: S104 - a pod's own address is known to nobody beforehand
ENVIRONMENT_PREFIX = "AT_LEAST_SEMAPHORE_"
MAX_GRACE_SECONDS = 86_400
MIN_SETTLE_SECONDS, MAX_SETTLE_SECONDS = 0.1, 3600
MAX_DAYS = 3650


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Say it and exit."""
        sys.stderr.write(f"{self.prog}: {message}\n")
        raise SystemExit(2)


class Formatter(argparse.HelpFormatter):
    """Told no width, argparse imports shutil and with it every compression library, into every sidecar."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=120)


class Append(argparse.Action):
    """Collects a list flag's values over commas and repetition; the first one given replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Take the values of one occurrence in."""
        given = namespace.__dict__.setdefault(f"{self.dest} given", [])
        given.extend(values)
        setattr(namespace, self.dest, tuple(given))


def _redis_address(text: str) -> Address:
    return _accepted(lambda: parse_address(text, addresses.REDIS_SCHEMES, addresses.REDIS_PORT))


def redis_addresses(text: str) -> tuple[Address, ...]:
    """Read Redlock's servers, with commas between them."""
    return tuple(_redis_address(part) for part in text.split(","))


def _etcd_address(text: str) -> Address:
    return _accepted(lambda: parse_address(text, addresses.ETCD_SCHEMES, addresses.ETCD_PORT))


def etcd_addresses(text: str) -> tuple[Address, ...]:
    """Read etcd's members, with commas between them."""
    return tuple(_etcd_address(part) for part in text.split(","))


def queue_redis_address(text: str) -> tuple[StoreUrl, str]:
    """Read the store where it is a single Redis, and keep the text."""
    address = _redis_address(text)
    return StoreUrl("redis", (address,), address), text


def queue_url(text: str) -> tuple[StoreUrl, str] | None:
    """Read the store's URL, and keep the text; None for an empty one."""
    return (_accepted(lambda: parse_store_url(text)), text) if text else None


def bind_address(text: str) -> Address:
    """Read where to listen; `:port` is anywhere."""
    return _accepted(lambda: parse_address(f"{ANYWHERE}{text}" if text.startswith(":") else text, {}, 0))


def _accepted(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def port(text: str, least: int = 0) -> int:
    """Read a port; 0 is any that is free."""
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a port from {least} to {MAX_PORT}")
    return int(text)


def fixed_port(text: str) -> int:
    """Read a port that somebody else has to know."""
    return port(text, 1)


def seconds(text: str, least: float = 0, most: float = MAX_GRACE_SECONDS) -> float:
    """Read seconds, with up to three digits after the point."""
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text, re.ASCII) or not least <= float(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use seconds from {least} to {most}")
    return float(text)


def settle_seconds(text: str) -> float:
    """Read how long a change takes to be known everywhere."""
    return seconds(text, MIN_SETTLE_SECONDS, MAX_SETTLE_SECONDS)


def days(text: str) -> int:
    """Read how long a certificate holds."""
    if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) or int(text) > MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use days from 1 to {MAX_DAYS}")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Read names of certificates, with commas between them, or nothing."""
    found = tuple(text.split(",")) if text else ()
    if not all(re.fullmatch(r"[ -+\--~]{1,253}", name, re.ASCII) for name in found):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not accepted: use names of certificates with commas between them"
        )
    return found


def quantity(text: str) -> str:
    """Read a Kubernetes quantity of memory."""
    if not re.fullmatch(r"[1-9]\d{0,12}(Ki|Mi|Gi|k|M|G)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a memory quantity such as 32Mi")
    return text


def secret(text: str) -> str:
    """Read the name of a Secret, or nothing."""
    if text and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use the name of a Secret")
    return text


def configuration(text: str) -> str:
    """Read the name of a MutatingWebhookConfiguration."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use the name of a MutatingWebhookConfiguration")
    return text


def service(text: str) -> str:
    """Read the name of a Service."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use the name of a Service")
    return text


def image(text: str) -> str:
    """Read an image reference."""
    if not re.fullmatch(r"[\w.:/@-]{1,512}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use an image reference such as name:tag")
    return text


def permit_url(text: str) -> tuple[Address, str] | None:
    """Read where sidecars renew, and keep the text; None for an empty one."""
    if not text:
        return None
    address = _accepted(lambda: parse_address(text, {"https": True}, addresses.PERMIT_PORT))
    options = text.partition("?")[2]
    if not address.tls or address.username or address.password or address.database or "-file" in options:
        scheme = text.partition("://")[0]
        message = f"{scheme}://… is not accepted: use https://host:port, with ?server-name=name or not"
        raise argparse.ArgumentTypeError(message)
    return address, text


def semaphore(text: str) -> tuple[str, str]:
    """Read a semaphore's name as namespace and key."""
    namespace, _, key = text.partition("/")
    if not re.fullmatch(r"[a-z0-9-]{1,63}/[A-Za-z0-9._-]{1,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use <namespace>/<key>")
    return namespace, key


def permit(text: str) -> str:
    """Read a permit's name."""
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: a permit is 1 to 64 of A-Z a-z 0-9 -")
    return text


def boolean(text: str) -> bool:
    """Read true or false."""
    if text not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use true or false")
    return text == "true"


BOOLEAN: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
"""The options of a flag that is true where it is given without a value."""


def _variable(flag: str) -> str:
    """Name a flag's environment variable: --certDir and --cert-dir are AT_LEAST_SEMAPHORE_CERT_DIR."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", flag.lstrip("-")).replace("-", "_")
    return ENVIRONMENT_PREFIX + snake.upper()


def add(parser: argparse.ArgumentParser, name: str, *aliases: str, default: str, text: str, **options: Any) -> None:
    """Add a flag whose default comes from its environment variable.

    Defaults are strings, so that argparse checks them as it checks what is given.
    """
    variable = _variable(name)
    value = os.environ.get(variable)
    if value is None:
        value = default
    else:
        _check_variable(parser, variable, value, options)
    shown = f" ({default})" if default else ""
    parser.add_argument(name, *aliases, default=value, help=f"{text}{shown} [{variable}]", **options)


def _check_variable(parser: argparse.ArgumentParser, variable: str, value: str, options: Mapping[str, Any]) -> None:
    """End with a line that names the variable, since argparse would name the flag, which nobody gave."""
    if "choices" in options and value not in options["choices"]:
        parser.error(f"environment variable {variable}: {value!r} is not accepted: use {', '.join(options['choices'])}")
    try:
        options.get("type", str)(value)
    except argparse.ArgumentTypeError as error:
        parser.error(f"environment variable {variable}: {error}")
