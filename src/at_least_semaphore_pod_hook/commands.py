"""The command line of what people run by hand. Loaded for these subcommands alone."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook import flags
from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.console.options import DOCTOR_FORMATS, FORMATS, Access, Doctor, Release, Status
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from at_least_semaphore_pod_hook import settings

MIN_INTERVAL_SECONDS = 0.2
MAX_NAMED = 1_000_000
INTERRUPTED = 130


def scope(text: str) -> tuple[str, str]:
    """Read a namespace, or a namespace and a key."""
    if not re.fullmatch(r"[a-z0-9-]{1,63}(/[A-Za-z0-9._-]{1,63})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use <namespace> or <namespace>/<key>")
    namespace, _, key = text.partition("/")
    return namespace, key


def interval(text: str) -> float:
    """Read the seconds between two readings."""
    return flags.seconds(text, MIN_INTERVAL_SECONDS)


def count(text: str) -> int:
    """Read how many to name."""
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or int(text) > MAX_NAMED:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a number from 0 to {MAX_NAMED}")
    return int(text)


def process(text: str) -> str:
    """Read a process ID."""
    if text not in {"", "any"} and not re.fullmatch(r"[1-9]\d{0,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use a process ID, or no value")
    return text


def account(text: str) -> tuple[str, str] | None:
    """Read namespace and name of a service account; None for an empty text."""
    if text and not re.fullmatch(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: use <namespace>/<name>")
    namespace, _, name = text.partition("/")
    return (namespace, name) if text else None


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what a subcommand takes besides the flags of the store, or in the case of `doctor` of the webhook."""
    if command != "doctor":
        flags.add(
            parser,
            "--kubeconfig",
            default="",
            metavar="FILE",
            text="how to reach the API server from outside of the cluster",
        )
    flags.add(
        parser,
        "--like-webhook",
        default="",
        type=process,
        nargs="?",
        const="any",
        metavar="PID",
        text="take store, kubeconfig and variant from the webhook that runs in this container"
        if command != "doctor"
        else "take all flags from the webhook that runs in this container",
    )
    if command == "doctor":
        _add_doctor_flags(parser)
        return
    if command == "release":
        parser.add_argument("semaphore", type=flags.semaphore, metavar="<namespace>/<key>", help="the semaphore")
        parser.add_argument("permit", type=flags.permit, help="the permit that is given back")
        parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
        return
    parser.add_argument("scope", type=scope, nargs="?", default=("", ""), metavar="<namespace>[/<key>]", help="which")
    parser.add_argument("--output", "-o", default="table", choices=FORMATS, help="how it is shown (table)")
    parser.add_argument("--watch", "-w", action="store_true", help="show it over and over; as json, a line each time")
    parser.add_argument(
        "--interval", default=2.0, type=interval, metavar="SECONDS", help="between two readings of a watch (2)"
    )
    parser.add_argument(
        "--named",
        default=100,
        type=count,
        metavar="NUMBER",
        help="how many holders and waiters of each semaphore are named (100)",
    )
    parser.add_argument(
        "--color", default="auto", choices=("auto", "always", "never"), help="auto heeds NO_COLOR (auto)"
    )


def _add_doctor_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--namespace", "-n", default="", metavar="NAMESPACE", help="the webhook's; the one it runs in by default")
    add(
        "--service-account",
        default=None,
        type=account,
        metavar="NAMESPACE/NAME",
        help="whose rights are examined; those of whoever runs it by default",
    )
    add(
        "--webhook-address",
        default=None,
        type=flags.bind_address,
        metavar="HOST:PORT",
        help="where the webhook is looked for; --port of this machine by default",
    )
    add("--output", "-o", default="table", choices=DOCTOR_FORMATS, help="how it is shown (table)")
    add("--color", default="auto", choices=("auto", "always", "never"), help="auto heeds NO_COLOR (auto)")


def read_doctor(given: Mapping[str, Any], webhook: settings.Webhook) -> Doctor:
    """Make settings of what was given, and of the settings of the webhook that is examined."""
    if given["kubeconfig"]:
        webhook = webhook._replace(kubeconfig=given["kubeconfig"])
    # As it is in the webhook's own container.
    host = "127.0.0.1" if webhook.host == flags.ANYWHERE else webhook.host
    address = given["webhook_address"] or Address(host, webhook.port)
    return Doctor(
        webhook, given["namespace"], given["service_account"], address, given["output"], colour=given["color"]
    )


def read(given: Mapping[str, Any], webhook: settings.Webhook | None) -> Status | Release:
    """Make settings of what was given.

    Args:
        given: The flags' values.
        webhook: The settings of the webhook that the store is taken from, where one is.
    """
    if webhook:
        access = Access(webhook.common.queue, given["kubeconfig"] or webhook.kubeconfig, webhook.variant)
    else:
        queue, _ = given["queue_url"] or given["queue_redis_address"]
        access = Access(queue, given["kubeconfig"], os.environ.get("VARIANT", ""))
    if given["command"] == "release":
        namespace, key = given["semaphore"]
        return Release(access, namespace, key, given["permit"], given["yes"])
    namespace, key = given["scope"]
    return Status(
        access,
        namespace,
        key,
        given["output"],
        given["watch"],
        given["interval"],
        given["named"],
        given["color"],
    )


def run(parsed: Status | Release | Doctor) -> int:
    """Run a subcommand and return its exit code."""
    from at_least_semaphore_pod_hook.server import logs  # noqa: PLC0415 - not for --help

    # What a webhook says of its store at its start is of no interest here, where it would be said each time.
    logs.set_up("error", "json")
    logging.getLogger("at_least_semaphore_pod_hook.console").setLevel(logging.INFO)
    try:
        return asyncio.run(_started(parsed))
    except InvalidInputError as error:
        return _failed(str(error), 2)
    except UnavailableError as error:
        return _failed(str(error), 1)
    except BrokenPipeError:
        # Whoever read has had enough, as `head` has. What is left to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def _started(parsed: Status | Release | Doctor) -> Coroutine[Any, Any, int]:
    if isinstance(parsed, Release):
        from at_least_semaphore_pod_hook.console import release  # noqa: PLC0415

        return release.run(parsed)
    if isinstance(parsed, Doctor):
        from at_least_semaphore_pod_hook.console.doctor import run as doctor  # noqa: PLC0415

        return doctor.run(parsed)
    from at_least_semaphore_pod_hook.console import status  # noqa: PLC0415

    return status.run(parsed)


def _failed(reason: str, code: int) -> int:
    sys.stderr.write(f"at-least-semaphore-pod-hook: {reason}\n")
    return code
