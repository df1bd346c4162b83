"""`kubectl semaphore`: status, release and doctor, run in the webhook's Deployment: the user needs no way to the store.

It does by kubectl what a user can: kubectl knows the clusters, and all the ways to authenticate.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook import flags
from at_least_semaphore_pod_hook.console.options import DOCTOR_FORMATS, FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "at-least-semaphore-pod-hook"
CONTAINER = "webhook"
COMMANDS = ("status", "release", "doctor")
INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="kubectl semaphore",
        usage="%(prog)s [status] [[NAMESPACE/]KEY] [flags]\n       %(prog)s release [NAMESPACE/]KEY PERMIT [flags]"
        "\n       %(prog)s doctor [flags]",
        description="Show semaphores, give permits back by hand, and examine the installation.",
        formatter_class=flags.Formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="status | release | doctor", help=argparse.SUPPRESS)
    add("--namespace", "-n", default="", metavar="NAMESPACE", help="the semaphores'; the context's by default")
    add("--all-namespaces", "-A", action="store_true", help="show those of all namespaces")
    add("--output", "-o", default="table", choices=FORMATS, help="how it is shown (table)")
    add("--watch", "-w", action="store_true", help="show it over and over; as json, a line each time")
    add("--interval", default="", metavar="SECONDS", help="between two readings of a watch (2)")
    add("--named", default="", metavar="NUMBER", help="how many holders and waiters of each are named (100)")
    add("--color", default="auto", choices=("auto", "always", "never"), help="auto heeds NO_COLOR (auto)")
    add("--yes", "-y", action="store_true", help="release without asking")
    add("--context", default="", metavar="NAME", help="of the kubeconfig")
    add("--kubeconfig", default="", metavar="FILE", help="for kubectl")
    add("--hook-namespace", default=PROGRAM, metavar="NAMESPACE", help=f"the webhook's ({PROGRAM})")
    add("--deployment", default=PROGRAM, metavar="NAME", help=f"the webhook's ({PROGRAM})")
    return parser


def remote(given: argparse.Namespace, namespace: str, *, colour: bool) -> list[str]:
    """Return the command line that is run in the webhook's container.

    Args:
        given: What the user gave; `words` begins with the subcommand.
        namespace: For a key that names none; empty for all namespaces.
        colour: Whether the output goes to a terminal that takes colours.

    Raises:
        ValueError: There are too few words, or too many; the message says what is accepted.
    """
    command, *names = given.words
    own = [PROGRAM, command, "--like-webhook=any"]
    if command == "doctor":
        if names or given.output not in DOCTOR_FORMATS:
            what = repr(names[0]) if names else f"--output {given.output}"
            raise ValueError(
                f"{what} is not accepted: doctor takes no semaphore, and shows {', '.join(DOCTOR_FORMATS)}"
            )
        return [*own, f"--output={given.output}", f"--color={'always' if colour else 'never'}"]
    if command == "release":
        if len(names) != 2:  # noqa: PLR2004 - a semaphore and a permit
            raise ValueError("release takes a semaphore and a permit: release [NAMESPACE/]KEY PERMIT")
        return [*own, *(["--yes"] if given.yes else []), "--", _full(names[0], namespace), names[1]]
    if len(names) > 1:
        raise ValueError(f"{names[1]!r} is not accepted: status takes one semaphore at most")
    own += [f"--output={given.output}", f"--color={'always' if colour else 'never'}"]
    own += [f"--interval={given.interval}"] if given.interval else []
    own += [f"--named={given.named}"] if given.named else []
    own += ["--watch"] if given.watch else []
    scope = _full(names[0], namespace) if names else namespace
    return [*own, "--", scope] if scope else own


def _full(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plugin and return its exit code."""
    parser = _parser()
    given = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    if not given.words or given.words[0] not in COMMANDS:
        given.words.insert(0, "status")
    kubectl = ["kubectl"]
    kubectl += [f"--kubeconfig={given.kubeconfig}"] if given.kubeconfig else []
    kubectl += [f"--context={given.context}"] if given.context else []
    namespace = "" if given.all_namespaces else given.namespace or _default_namespace(kubectl)
    if given.all_namespaces and (given.words[0] != "status" or any("/" not in name for name in given.words[1:])):
        parser.error("--all-namespaces is for status without a key")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    colour = given.color == "always" or (given.color == "auto" and sys.stdout.isatty() and not plain)
    try:
        command = remote(given, namespace, colour=colour)
    except ValueError as error:
        parser.error(str(error))
    where = [f"--namespace={given.hook_namespace}"]
    if reason := _missing(kubectl, where, given.deployment, given.hook_namespace):
        sys.stderr.write(f"kubectl semaphore: {reason}\n")
        return 1
    inside = ["exec", *_streams(given), f"deployment/{given.deployment}", f"--container={CONTAINER}"]
    try:
        return subprocess.run([*kubectl, *where, *inside, "--", *command], check=False).returncode
    except KeyboardInterrupt:
        return INTERRUPTED


def _streams(given: argparse.Namespace) -> list[str]:
    """Return what of our terminal goes to the container: a watch wants to redraw, a release to be answered."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if given.words[0] == "release":
        return ["-it"] if terminal else ["-i"]
    return ["-it"] if terminal and given.watch else []


def _default_namespace(kubectl: Sequence[str]) -> str:
    shown = _kubectl(kubectl, "config", "view", "--minify", "--output=jsonpath={..namespace}")
    return shown.stdout.strip() or "default"


def _missing(kubectl: Sequence[str], where: Sequence[str], deployment: str, namespace: str) -> str:
    """Return why nothing can be run in a Deployment, or an empty string."""
    asked = _kubectl(kubectl, *where, "get", f"deployment/{deployment}", "--output=name")
    if not asked.returncode:
        return ""
    if re.search(r"\(NotFound\)", asked.stderr):
        return (
            f"there is no Deployment {deployment} in namespace {namespace}: "
            "name the webhook's with --hook-namespace and --deployment"
        )
    return asked.stderr.strip() or f"kubectl ended with {asked.returncode}"


def _kubectl(kubectl: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([*kubectl, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess([], 127, "", "kubectl is not on PATH")


if __name__ == "__main__":
    sys.exit(main())
