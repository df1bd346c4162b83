"""The command line. Each subcommand imports what it runs when it runs it, so that the sidecar stays small."""

from __future__ import annotations

import os
import re
import sys

from at_least_semaphore_pod_hook import __version__, flags, settings
from at_least_semaphore_pod_hook.addresses import PERMIT_PORT

TYPE_CHECKING = False  # typing costs each sidecar 0.7 MB
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

PROGRAM = "at-least-semaphore-pod-hook"
LOG_LEVELS = ("debug", "info", "warning", "error")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
RELEASE_ON = ("sigterm", "exit")
WHEN_FULL = ("deny", "gate")
SIDECAR_MODES = ("direct", "api")
METRICS_AUTH = ("none", "kubernetes")
TOKEN_FILE = "/var/run/at-least-semaphore-pod-hook/token"  # noqa: S105 - where it is, not what it is
CONSOLE = {
    "status": "show semaphores, who holds their permits, and who waits",
    "release": "give a permit back by hand",
    "doctor": "examine an installation, and say what to do about it",
}
"""What people run by hand."""


def _store_flags(parser: argparse.ArgumentParser) -> None:
    flags.add(
        parser,
        "--queue-redis-address",
        default="127.0.0.1:6379",
        type=flags.queue_redis_address,
        metavar="ADDRESS",
        text="the Redis that semaphores live in, host:port or redis[s]://user:password@host:port/db",
    )
    flags.add(
        parser,
        "--queue-url",
        default="",
        type=flags.queue_url,
        metavar="URL",
        text="the store that semaphores live in, in place of that Redis: redis[s]://, redis[s]+sentinel://, "
        "redis[s]+cluster://, unix://, etcd[s]:// or memory://",
    )


def _common_flags(parser: argparse.ArgumentParser) -> None:
    _store_flags(parser)
    flags.add(
        parser,
        "--lock-mode",
        default="redlock",
        choices=("redlock", "etcd"),
        text="what locks a semaphore for its first use and for a resize",
    )
    flags.add(
        parser,
        "--redis-addresses",
        default="127.0.0.1:6379",
        type=flags.redis_addresses,
        action=flags.Append,
        metavar="ADDRESS,…",
        text="the 1, 3 or 5 independent Redis of Redlock, each host:port or redis[s]://user:password@host:port/db",
    )
    flags.add(
        parser,
        "--etcd-addresses",
        default="127.0.0.1:2379",
        type=flags.etcd_addresses,
        action=flags.Append,
        metavar="ADDRESS,…",
        text="the members of the etcd cluster, each host:port or http[s]://user:password@host:port",
    )
    flags.add(
        parser,
        "--permit-url",
        default="",
        type=flags.permit_url,
        metavar="URL",
        text="where sidecars renew that are told of no store, https://host:port; in api mode the webhook's Service and "
        "permit port unless it is said",
    )
    flags.add(
        parser,
        "--permit-authorities",
        default="",
        metavar="PEM",
        text="the certificates of whom they trust there; in api mode those of the webhook's own certificate",
    )
    flags.add(parser, "--log-level", default="info", choices=LOG_LEVELS, text="the least severe lines that are logged")
    flags.add(parser, "--log-format", default="json", choices=("json", "text"), text="how lines are logged")


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser; of the subcommands, only the one that is asked for gets its flags."""
    parser = flags.Parser(
        prog=PROGRAM,
        description="A semaphore for Kubernetes pods: at most N run at once, and N of them always can.",
        formatter_class=flags.Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{webhook,sidecar,status,release,doctor}")
    common: dict[str, Any] = {"formatter_class": flags.Formatter, "allow_abbrev": False}
    webhook = commands.add_parser("webhook", help="answer the API server's admission requests", **common)
    sidecar = commands.add_parser("sidecar", help="renew a pod's permit and give it back at its end", **common)
    # Nobody asks a sidecar what else there is.
    for name, text in CONSOLE.items() if command != "sidecar" else ():
        by_hand = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **common)
        if command == name:
            from at_least_semaphore_pod_hook import commands as console  # noqa: PLC0415

            if name == "doctor":
                _common_flags(by_hand)
                _webhook_flags(by_hand)
            else:
                _store_flags(by_hand)
            console.add_flags(by_hand, name)
    if command == "webhook":
        _common_flags(webhook)
        _webhook_flags(webhook)
    if command == "sidecar":
        _common_flags(sidecar)
        flags.add(
            sidecar,
            "--termination-grace-period-seconds",
            default="10",
            type=flags.seconds,
            metavar="SECONDS",
            text="how long it keeps trying to give the permit back",
        )
        flags.add(
            sidecar,
            "--release-on",
            default="sigterm",
            choices=RELEASE_ON,
            text="give the permit back on SIGTERM, or when the pod's other containers have ended",
        )
        flags.add(
            sidecar,
            "--end-with-pod",
            default="false",
            **flags.BOOLEAN,
            text="end within seconds of the pod's other containers, so that a Job's pod completes",
        )
        flags.add(
            sidecar,
            "--confirm-port",
            default="0",
            type=flags.port,
            metavar="PORT",
            text="listen on this port once the permit is confirmed; 0 for none",
        )
        flags.add(
            sidecar,
            "--fence",
            default="false",
            **flags.BOOLEAN,
            text="close that port before a lease ends that cannot be renewed",
        )
        flags.add(
            sidecar,
            "--permit-token-file",
            default=TOKEN_FILE,
            metavar="FILE",
            text="the token of its pod",
        )
        sidecar.add_argument("semaphore", type=flags.semaphore, metavar="<namespace>/<key>", help="the semaphore")
        sidecar.add_argument("permit", type=flags.permit, help="the permit that the webhook took for this pod")
    return parser


def _webhook_flags(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, *aliases: str, **options: Any) -> None:
        flags.add(parser, name, *aliases, **options)

    flag("--host", default=flags.ANYWHERE, text="the address that admissions are served on")
    flag("--port", default="9443", type=flags.port, text="the port that admissions are served on")
    flag(
        "--certDir",
        "--cert-dir",
        dest="cert_dir",
        default="/var/k8s-webhook-server/serving-certs",
        metavar="DIRECTORY",
        text="where tls.crt and tls.key are; they are read again when they change",
    )
    flag(
        "--certificate-secret",
        default="",
        type=flags.secret,
        metavar="NAME",
        text="a Secret of its namespace in which the webhook keeps and rotates a certificate of its own making, "
        "in place of --certDir",
    )
    flag(
        "--service-name",
        default=PROGRAM,
        type=flags.service,
        metavar="NAME",
        text="the Service that this certificate is for",
    )
    flag(
        "--webhook-configuration",
        default=PROGRAM,
        type=flags.configuration,
        metavar="NAME",
        text="the MutatingWebhookConfiguration that is told to trust it",
    )
    flag(
        "--certificate-days",
        default="90",
        type=flags.days,
        metavar="DAYS",
        text="how long it holds; it is rotated when two thirds are over",
    )
    flag(
        "--certificate-settle-seconds",
        default="300",
        type=flags.settle_seconds,
        metavar="SECONDS",
        text="how long API servers and replicas get to hear of a change before the next step of a rotation",
    )
    flag(
        "--client-ca-file",
        default="",
        metavar="FILE",
        text="take admissions only from clients with a certificate of these authorities; read again when it changes",
    )
    flag(
        "--client-names",
        default="",
        type=flags.names,
        action=flags.Append,
        metavar="NAME,…",
        text="and with one of these names, as common or alternative name; any, where none is given",
    )
    flag(
        "--sidecar-image",
        default=f"{PROGRAM}:{__version__}",
        type=flags.image,
        metavar="IMAGE",
        text="the sidecar's image",
    )
    flag("--sidecar-image-pull-policy", default="IfNotPresent", choices=PULL_POLICIES, text="when that image is pulled")
    flag(
        "--sidecar-memory-limit",
        default="32Mi",
        type=flags.quantity,
        metavar="QUANTITY",
        text="the sidecar's memory limit",
    )
    flag(
        "--sidecar-queue-url",
        default="",
        type=flags.queue_url,
        metavar="URL",
        text="what sidecars are told of the store in place of the webhook's own flag, such as a user with fewer rights",
    )
    flag(
        "--sidecar-mode",
        default="direct",
        choices=SIDECAR_MODES,
        text="sidecars renew in the store, or, in api mode, at the webhook, and know no store's address or password",
    )
    flag(
        "--permit-port",
        default=str(PERMIT_PORT),
        type=flags.port,
        metavar="PORT",
        text="the port that sidecars are served on in api mode",
    )
    flag(
        "--sidecar-secret",
        default="",
        type=flags.secret,
        metavar="NAME",
        text="a Secret of each pod's namespace with the files that the sidecars' URL names, mounted into the sidecar "
        "at /var/run/at-least-semaphore-pod-hook",
    )
    flag(
        "--enable-sidecar-containers",
        default="false",
        **flags.BOOLEAN,
        text="inject native sidecars, which end after the pod's main containers: for Kubernetes 1.29 and later",
    )
    flag(
        "--metrics-bind-address",
        default=f"{flags.ANYWHERE}:8080",
        type=flags.bind_address,
        metavar="HOST:PORT",
        text="where /metrics is served",
    )
    flag(
        "--metrics-auth",
        default="none",
        choices=METRICS_AUTH,
        text="serve metrics and status page to all by HTTP, or by TLS to whom the API server lets get their paths",
    )
    flag(
        "--status-page",
        default="false",
        **flags.BOOLEAN,
        text="serve /status beside /metrics: semaphores, holders and waiters, to read only",
    )
    flag(
        "--health-probe-bind-address",
        default=f"{flags.ANYWHERE}:8081",
        type=flags.bind_address,
        metavar="HOST:PORT",
        text="where /healthz and /readyz are served",
    )
    flag(
        "--release-gates",
        default="false",
        **flags.BOOLEAN,
        text="remove our scheduling gate from all pods that wait, say from how many, and end: for a removal",
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
        **flags.BOOLEAN,
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
        **flags.BOOLEAN,
        text="hold main containers back until the sidecar has confirmed the permit; needs native sidecars",
    )
    flag(
        "--confirm-port",
        default="9779",
        type=flags.fixed_port,
        metavar="PORT",
        text="the port by which a sidecar says that it has; pods with hostNetwork get one of their own",
    )
    flag(
        "--fence",
        default="false",
        **flags.BOOLEAN,
        text="what --confirm does, and stop main containers before a lease ends that cannot be renewed",
    )


def _command(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def parse(arguments: Sequence[str]) -> settings.Webhook | settings.Sidecar:
    """Read the command line and its environment variables.

    Raises:
        SystemExit: With 2 and one line on standard error where something is not accepted; with 0 after --help or
            --version.
    """
    given = vars(_parser(_command(arguments)).parse_args(arguments))
    return _sidecar(given) if given["command"] == "sidecar" else _webhook(given)


def _common(given: dict[str, Any]) -> settings.Common:
    queue, _ = given["queue_url"] or given["queue_redis_address"]
    return settings.Common(
        lock_mode=given["lock_mode"],
        redis_addresses=given["redis_addresses"],
        etcd_addresses=given["etcd_addresses"],
        queue=queue,
        log_level=given["log_level"],
        log_format=given["log_format"],
    )


def _sidecar(given: dict[str, Any]) -> settings.Sidecar:
    namespace, key = given["semaphore"]
    if given["fence"] and not given["confirm_port"]:
        _parser(None).error("--fence needs --confirm-port: by that port the kubelet stops the pod's work")
    return settings.Sidecar(
        common=_common(given),
        namespace=namespace,
        key=key,
        permit=given["permit"],
        pod=os.environ.get("POD_NAME") or os.environ.get("HOSTNAME", ""),
        termination_grace_period_seconds=given["termination_grace_period_seconds"],
        release_on=given["release_on"],
        end_with_pod=given["end_with_pod"],
        confirm_port=given["confirm_port"],
        fence=given["fence"],
        api=settings.PermitApi(given["permit_url"][0], given["permit_authorities"], given["permit_token_file"])
        if given["permit_url"]
        else None,
    )


def _webhook(given: dict[str, Any]) -> settings.Webhook:
    handed_on = given["sidecar_queue_url"] or given["queue_url"]
    _, address = given["queue_redis_address"]
    variant = os.environ.get("VARIANT", "")
    if variant and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", variant):
        _parser(None).error(f"environment variable VARIANT: {variant!r} is not accepted: use 1 to 20 of a-z 0-9 -")
    given["confirm"] |= given["fence"]
    if given["confirm"] and not given["enable_sidecar_containers"]:
        named = "--fence" if given["fence"] else "--confirm"
        _parser(None).error(
            f"{named} needs --enable-sidecar-containers: only native sidecars hold main containers back"
        )
    if given["sidecar_mode"] == "api" and (given["sidecar_queue_url"] or given["sidecar_secret"]):
        named = "--sidecar-queue-url" if given["sidecar_queue_url"] else "--sidecar-secret"
        _parser(None).error(f"{named} is of no use with --sidecar-mode=api: such sidecars are told of no store")
    given["permit_url"] = given["permit_url"][1] if given["permit_url"] else ""
    if given["metrics_auth"] == "kubernetes" and given["metrics_bind_address"] == given["health_probe_bind_address"]:
        _parser(None).error("--metrics-auth=kubernetes needs another --health-probe-bind-address: probes have no token")
    return settings.Webhook(
        common=_common(given),
        queue_flag=f"--queue-url={handed_on[1]}" if handed_on else f"--queue-redis-address={address}",
        variant=variant,
        **{name: given[name] for name in settings.Webhook._fields if name in given},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if _command(arguments) in CONSOLE:
        return _by_hand(arguments)
    parsed = parse(arguments)
    if isinstance(parsed, settings.Sidecar):
        from at_least_semaphore_pod_hook import sidecar  # noqa: PLC0415

        return sidecar.run(parsed)
    from at_least_semaphore_pod_hook.server import run  # noqa: PLC0415

    return run.main(parsed)


def _by_hand(arguments: Sequence[str]) -> int:
    from at_least_semaphore_pod_hook import commands  # noqa: PLC0415
    from at_least_semaphore_pod_hook.console import beside  # noqa: PLC0415
    from at_least_semaphore_pod_hook.errors import InvalidInputError  # noqa: PLC0415

    given = vars(_parser(_command(arguments)).parse_args(arguments))
    webhook: settings.Webhook | None = None
    if given["like_webhook"]:
        try:
            arguments = ["webhook", *beside.webhook_arguments(given["like_webhook"])]
            webhook = _webhook(vars(_parser("webhook").parse_args(arguments)))
        except InvalidInputError as error:
            _parser(None).error(str(error))
    if given["command"] == "doctor":
        return commands.run(commands.read_doctor(given, webhook or _webhook(given)))
    return commands.run(commands.read(given, webhook))
