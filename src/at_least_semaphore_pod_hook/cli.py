"""The command line. Each subcommand imports what it runs when it runs it, so that the sidecar stays small."""

from __future__ import annotations

import argparse
import os
import re
import sys

from at_least_semaphore_pod_hook import __version__, addresses, settings
from at_least_semaphore_pod_hook.addresses import MAX_PORT, Address, StoreUrl, parse_address, parse_store_url
from at_least_semaphore_pod_hook.errors import InvalidInputError

TYPE_CHECKING = False  # typing costs each sidecar 0.7 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

PROGRAM = "at-least-semaphore-pod-hook"
ANYWHERE = "0.0.0.0"  # noqa: S104 - a pod's own address is known to nobody beforehand
ENVIRONMENT_PREFIX = "AT_LEAST_SEMAPHORE_"
LOG_LEVELS = ("debug", "info", "warning", "error")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
RELEASE_ON = ("sigterm", "exit")
WHEN_FULL = ("deny", "gate")
MAX_GRACE_SECONDS = 86_400


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        raise SystemExit(2)


class _Formatter(argparse.HelpFormatter):
    """Told no width, argparse imports shutil and with it every compression library, into every sidecar."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=120)


class _Append(argparse.Action):
    """Collects a list flag's values over commas and repetition; the first one given replaces the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        given = namespace.__dict__.setdefault(f"{self.dest} given", [])
        given.extend(values)
        setattr(namespace, self.dest, tuple(given))


def _redis_address(text: str) -> Address:
    return _accepted(lambda: parse_address(text, addresses.REDIS_SCHEMES, addresses.REDIS_PORT))


def _redis_addresses(text: str) -> tuple[Address, ...]:
    return tuple(_redis_address(part) for part in text.split(","))


def _etcd_address(text: str) -> Address:
    return _accepted(lambda: parse_address(text, addresses.ETCD_SCHEMES, addresses.ETCD_PORT))


def _etcd_addresses(text: str) -> tuple[Address, ...]:
    return tuple(_etcd_address(part) for part in text.split(","))


def _queue_redis_address(text: str) -> tuple[StoreUrl, str]:
    address = _redis_address(text)
    return StoreUrl("redis", (address,), address), text


def _queue_url(text: str) -> tuple[StoreUrl, str] | None:
    return (_accepted(lambda: parse_store_url(text)), text) if text else None


def _bind_address(text: str) -> Address:
    return _accepted(lambda: parse_address(f"{ANYWHERE}{text}" if text.startswith(":") else text, {}, 0))


def _accepted(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a port from 0 to {MAX_PORT}")
    return int(text)


def _fixed_port(text: str) -> int:
    port = _port(text)
    if not port:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a port from 1 to {MAX_PORT}")
    return port


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text, re.ASCII) or float(text) > MAX_GRACE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use seconds from 0 to {MAX_GRACE_SECONDS}")
    return float(text)


def _quantity(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,12}(Ki|Mi|Gi|k|M|G)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a memory quantity such as 32Mi")
    return text


def _secret(text: str) -> str:
    if text and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use the name of a Secret")
    return text


def _image(text: str) -> str:
    if not re.fullmatch(r"[\w.:/@-]{1,512}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use an image reference such as name:tag")
    return text


def _semaphore(text: str) -> tuple[str, str]:
    namespace, _, key = text.partition("/")
    if not re.fullmatch(r"[a-z0-9-]{1,63}/[A-Za-z0-9._-]{1,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use <namespace>/<key>")
    return namespace, key


def _permit(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: a permit is 1 to 64 of A-Z a-z 0-9 -")
    return text


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use true or false")
    return text == "true"


BOOLEAN: dict[str, Any] = {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
"""The options of a flag that is true where it is given without a value."""


def _variable(flag: str) -> str:
    """Name a flag's environment variable: --certDir and --cert-dir are AT_LEAST_SEMAPHORE_CERT_DIR."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", flag.lstrip("-")).replace("-", "_")
    return ENVIRONMENT_PREFIX + snake.upper()


def _flag(parser: argparse.ArgumentParser, name: str, *aliases: str, default: str, text: str, **options: Any) -> None:
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


def _common_flags(parser: argparse.ArgumentParser) -> None:
    _flag(
        parser,
        "--lock-mode",
        default="redlock",
        choices=("redlock", "etcd"),
        text="what locks a semaphore for its first use and for a resize",
    )
    _flag(
        parser,
        "--redis-addresses",
        default="127.0.0.1:6379",
        type=_redis_addresses,
        action=_Append,
        metavar="ADDRESS,…",
        text="the 1, 3 or 5 independent Redis of Redlock, each host:port or redis[s]://user:password@host:port/db",
    )
    _flag(
        parser,
        "--etcd-addresses",
        default="127.0.0.1:2379",
        type=_etcd_addresses,
        action=_Append,
        metavar="ADDRESS,…",
        text="the members of the etcd cluster, each host:port or http[s]://user:password@host:port",
    )
    _flag(
        parser,
        "--queue-redis-address",
        default="127.0.0.1:6379",
        type=_queue_redis_address,
        metavar="ADDRESS",
        text="the Redis that semaphores live in, host:port or redis[s]://user:password@host:port/db",
    )
    _flag(
        parser,
        "--queue-url",
        default="",
        type=_queue_url,
        metavar="URL",
        text="the store that semaphores live in, in place of that Redis: redis[s]://, redis[s]+sentinel://, "
        "redis[s]+cluster://, unix://, etcd[s]:// or memory://",
    )
    _flag(parser, "--log-level", default="info", choices=LOG_LEVELS, text="the least severe lines that are logged")
    _flag(parser, "--log-format", default="json", choices=("json", "text"), text="how lines are logged")


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser; of the subcommands, only the one that is asked for gets its flags."""
    parser = _Parser(
        prog=PROGRAM,
        description="A semaphore for Kubernetes pods: at most N run at once, and N of them always can.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{webhook,sidecar}")
    common: dict[str, Any] = {"formatter_class": _Formatter, "allow_abbrev": False}
    webhook = commands.add_parser("webhook", help="answer the API server's admission requests", **common)
    sidecar = commands.add_parser("sidecar", help="renew a pod's permit and give it back at its end", **common)
    if command == "webhook":
        _common_flags(webhook)
        _webhook_flags(webhook)
    if command == "sidecar":
        _common_flags(sidecar)
        _flag(
            sidecar,
            "--termination-grace-period-seconds",
            default="10",
            type=_seconds,
            metavar="SECONDS",
            text="how long it keeps trying to give the permit back",
        )
        _flag(
            sidecar,
            "--release-on",
            default="sigterm",
            choices=RELEASE_ON,
            text="give the permit back on SIGTERM, or when the pod's other containers have ended",
        )
        _flag(
            sidecar,
            "--end-with-pod",
            default="false",
            **BOOLEAN,
            text="end within seconds of the pod's other containers, so that a Job's pod completes",
        )
        _flag(
            sidecar,
            "--confirm-port",
            default="0",
            type=_port,
            metavar="PORT",
            text="listen on this port once the permit is confirmed; 0 for none",
        )
        _flag(
            sidecar,
            "--fence",
            default="false",
            **BOOLEAN,
            text="close that port before a lease ends that cannot be renewed",
        )
        sidecar.add_argument("semaphore", type=_semaphore, metavar="<namespace>/<key>", help="the semaphore")
        sidecar.add_argument("permit", type=_permit, help="the permit that the webhook took for this pod")
    return parser


def _webhook_flags(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, *aliases: str, **options: Any) -> None:
        _flag(parser, name, *aliases, **options)

    flag("--host", default=ANYWHERE, text="the address that admissions are served on")
    flag("--port", default="9443", type=_port, text="the port that admissions are served on")
    flag(
        "--certDir",
        "--cert-dir",
        dest="cert_dir",
        default="/var/k8s-webhook-server/serving-certs",
        metavar="DIRECTORY",
        text="where tls.crt and tls.key are; they are read again when they change",
    )
    flag(
        "--sidecar-image", default=f"{PROGRAM}:{__version__}", type=_image, metavar="IMAGE", text="the sidecar's image"
    )
    flag("--sidecar-image-pull-policy", default="IfNotPresent", choices=PULL_POLICIES, text="when it is pulled")
    flag(
        "--sidecar-memory-limit", default="32Mi", type=_quantity, metavar="QUANTITY", text="the sidecar's memory limit"
    )
    flag(
        "--sidecar-queue-url",
        default="",
        type=_queue_url,
        metavar="URL",
        text="what sidecars are told of the store in place of the webhook's own flag, such as a user with fewer rights",
    )
    flag(
        "--sidecar-secret",
        default="",
        type=_secret,
        metavar="NAME",
        text="a Secret of each pod's namespace with the files that the sidecars' URL names, mounted into the sidecar "
        "at /var/run/at-least-semaphore-pod-hook",
    )
    flag(
        "--enable-sidecar-containers",
        default="false",
        **BOOLEAN,
        text="inject native sidecars, which end after the pod's main containers: for Kubernetes 1.29 and later",
    )
    flag(
        "--metrics-bind-address",
        default=f"{ANYWHERE}:8080",
        type=_bind_address,
        metavar="HOST:PORT",
        text="where /metrics is served",
    )
    flag(
        "--health-probe-bind-address",
        default=f"{ANYWHERE}:8081",
        type=_bind_address,
        metavar="HOST:PORT",
        text="where /healthz and /readyz are served",
    )
    flag(
        "--kubeconfig",
        default="",
        metavar="FILE",
        text="how to reach the API server where the webhook does not run in its cluster",
    )
    flag(
        "--wake-owners",
        default="true",
        **BOOLEAN,
        text="touch an annotation of the owners of denied pods when a permit is free, so that they try again at once",
    )
    flag(
        "--when-full",
        default="deny",
        choices=WHEN_FULL,
        text="deny a pod while no permit is free, or let it wait behind a scheduling gate, unless it says which itself",
    )
    flag(
        "--confirm",
        default="false",
        **BOOLEAN,
        text="hold main containers back until the sidecar has confirmed the permit; needs native sidecars",
    )
    flag(
        "--confirm-port",
        default="9779",
        type=_fixed_port,
        metavar="PORT",
        text="the port by which a sidecar says that it has; pods with hostNetwork get one of their own",
    )
    flag(
        "--fence",
        default="false",
        **BOOLEAN,
        text="the same, and stop main containers before a lease ends that cannot be renewed; needs native sidecars",
    )


def parse(arguments: Sequence[str]) -> settings.Webhook | settings.Sidecar:
    """Read the command line and its environment variables.

    Raises:
        SystemExit: With 2 and one line on standard error where something is not accepted; with 0 after --help or
            --version.
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    given = vars(_parser(command).parse_args(arguments))
    queue, queue_text = given["queue_url"] or given["queue_redis_address"]
    common = settings.Common(
        lock_mode=given["lock_mode"],
        redis_addresses=given["redis_addresses"],
        etcd_addresses=given["etcd_addresses"],
        queue=queue,
        log_level=given["log_level"],
        log_format=given["log_format"],
    )
    if given["command"] == "sidecar":
        namespace, key = given["semaphore"]
        if given["fence"] and not given["confirm_port"]:
            _parser(None).error("--fence needs --confirm-port: by that port the kubelet stops the pod's work")
        return settings.Sidecar(
            common=common,
            namespace=namespace,
            key=key,
            permit=given["permit"],
            pod=os.environ.get("POD_NAME") or os.environ.get("HOSTNAME", ""),
            termination_grace_period_seconds=given["termination_grace_period_seconds"],
            release_on=given["release_on"],
            end_with_pod=given["end_with_pod"],
            confirm_port=given["confirm_port"],
            fence=given["fence"],
        )
    handed_on = given["sidecar_queue_url"] or given["queue_url"]
    variant = os.environ.get("VARIANT", "")
    if variant and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", variant):
        _parser(None).error(f"environment variable VARIANT: {variant!r} is not accepted: use 1 to 20 of a-z 0-9 -")
    given["confirm"] |= given["fence"]
    if given["confirm"] and not given["enable_sidecar_containers"]:
        named = "--fence" if given["fence"] else "--confirm"
        _parser(None).error(
            f"{named} needs --enable-sidecar-containers: only native sidecars hold main containers back"
        )
    return settings.Webhook(
        common=common,
        queue_flag=f"--queue-url={handed_on[1]}" if handed_on else f"--queue-redis-address={queue_text}",
        variant=variant,
        **{name: given[name] for name in settings.Webhook._fields if name in given},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    if isinstance(parsed, settings.Sidecar):
        from at_least_semaphore_pod_hook import sidecar  # noqa: PLC0415

        return sidecar.run(parsed)
    from at_least_semaphore_pod_hook.server import run  # noqa: PLC0415

    return run.main(parsed)
