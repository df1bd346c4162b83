"""`make dev-local`: the project's own control plane and store, and the webhook restarted on each saved source file."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import BaseFilter, Change, watch

from devcluster.console import Console
from devcluster.errors import DevClusterError
from devcluster.local import SOURCE, LocalCluster
from devcluster.session import StoppedError, ignore_signals, scratch, until_signalled
from devcluster.webhook import WebhookProcess

_QUIET_MS = 50  # editors write a file in several steps; a save is over when this long nothing more comes
_TICK_MS = 250  # how often the webhook's new log lines are shown, and its end noticed
_DRAIN_SECONDS = 30.0  # longer than the webhook takes to answer what it was asked


class _Sources(BaseFilter):
    """Lets through the files that a webhook consists of."""

    def __call__(self, change: Change, path: str) -> bool:
        """Say whether a change is worth a restart."""
        return path.endswith((".py", ".lua")) and super().__call__(change, path)


class _Tail:
    """Shows what is added to a log file."""

    def __init__(self, log: Path, console: Console) -> None:
        self._log = log
        self._console = console
        self._shown = 0

    def show(self) -> None:
        """Print the lines that have come to an end since the last call."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(self._shown)
            whole, newline, _ = log.read().rpartition(b"\n")
            self._shown += len(whole) + len(newline)
            for line in whole.decode(errors="replace").splitlines():
                self._console.line(self._console.style(f"webhook | {line}", "dim"))


class Reloader:
    """Keeps a webhook running with the newest sources that can be run.

    With sources that Python can't read it goes on as it is; one that ends by itself is started at the next save.
    `check_stop` raises where a signal came.
    """

    def __init__(self, source: Path, console: Console, check_stop: Callable[[], None]) -> None:
        self._source = source
        self._console = console
        self._check_stop = check_stop
        self._broken: set[Path] = set()
        self._up = True
        self._changes = watch(
            source,
            watch_filter=_Sources(),
            step=_QUIET_MS,
            rust_timeout=_TICK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        )

    def begin(self) -> None:
        """Watch from now on: what is saved while the webhook starts must not be missed."""
        next(self._changes, None)  # a generator does nothing before it is first asked
        self._check_stop()

    def run(self, webhook: WebhookProcess) -> None:
        """Restart the webhook for each save, until a signal comes (StoppedError)."""
        self._webhook = webhook
        self._tail = _Tail(webhook.process.log, self._console)
        for changes in self._changes:
            self._tail.show()
            if changes:
                self._saved({Path(path) for _, path in changes})
            elif self._up and not webhook.process.alive:
                self._up = False
                code = webhook.process.exit_code
                self._console.say(f"The webhook ended with {code}. It is started at the next save.")
        self._check_stop()  # watchfiles takes it for a Ctrl-C, and just ends

    def _saved(self, paths: set[Path]) -> None:
        names = ", ".join(sorted(str(path.relative_to(self._source)) for path in paths))
        self._console.line(self._console.style(f"saved: {names}", "bold"))
        # A file that could not be read before is still part of what would be started.
        errors = syntax_errors(self._broken | paths)
        self._broken = set(errors)
        if errors:
            for error in errors.values():
                self._console.line(self._console.style(f"syntax error: {error}", "red"))
            self._console.say("Not restarted: waiting for the next save.")
            return
        self._webhook.process.terminate(_DRAIN_SECONDS)
        self._tail.show()
        try:
            self._webhook.start()
        except DevClusterError as error:
            self._webhook.process.kill()
            self._up = False
            self._tail.show()
            self._console.line(self._console.style(str(error).partition("\n")[0].rstrip(":"), "red"))
            self._console.say("The webhook is down: waiting for the next save.")
            return
        self._up = True
        self._tail.show()
        self._console.line(self._console.style("restarted", "green"))


def syntax_errors(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what is wrong with each Python file that can't be compiled; files that are gone are none."""
    errors: dict[Path, str] = {}
    for path in paths:
        if path.suffix == ".py":
            try:
                compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
            except FileNotFoundError:
                continue
            except SyntaxError as error:
                errors[path] = f"{path}:{error.lineno}: {error.msg}"
            except ValueError as error:  # a null byte
                errors[path] = f"{path}: {error}"
    return errors


class DevLocal:
    """What `make dev-local` does, step by step; what it starts is put on the stack `parts`."""

    def __init__(self, console: Console, directory: Path, source: Path, parts: contextlib.ExitStack) -> None:
        self._console = console
        self._directory = directory
        self._source = source
        self._parts = parts

    def start(self) -> LocalCluster:
        """Start everything, and create the examples."""
        with self._console.step("Find the programs, or build them"):
            cluster = LocalCluster(self._directory, source=self._source, report=self._console.say)
        with self._console.step("Start store and control plane"):
            self._parts.enter_context(cluster.store)
            self._parts.enter_context(cluster.control_plane)
        with self._console.step("Start the webhook and register it"):
            self._parts.enter_context(cluster.webhook)
            cluster.register()
            self._parts.enter_context(cluster.runner)
        with self._console.step("Create the examples"):
            cluster.create_examples_namespace()
            namespace = cluster.apply_examples()
            self._console.say(f"deploy/examples is in the namespace {namespace}.")
        return cluster

    def endpoints(self, cluster: LocalCluster) -> None:
        """Print where everything is."""
        webhook = cluster.webhook
        kubectl = cluster.control_plane.binaries["kubectl"]
        self._console.line()
        self._console.line(f"export KUBECONFIG={cluster.control_plane.kubeconfig}")
        rows = [
            ("kubectl", str(kubectl)),
            ("API server", cluster.control_plane.url),
            ("webhook", webhook.url),
            ("metrics", f"http://127.0.0.1:{webhook.metrics_port}/metrics"),
            ("probes", f"http://127.0.0.1:{webhook.probe_port}/healthz and /readyz"),
            (f"store ({cluster.store.kind})", f"redis://{cluster.store.address}"),
            ("logs", str(self._directory)),
        ]
        self._console.table(("WHAT", "WHERE"), rows)
        self._console.line()
        self._console.line(f"Save a file in {self._source}, and the webhook restarts. Ctrl-C ends everything.")


def main() -> int:
    """Run until SIGINT or SIGTERM and return the exit code: being told to end is how this is meant to end."""
    parser = argparse.ArgumentParser(prog="dev_local", description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE, help="the directory of the package to run and to watch")
    source = parser.parse_args().source.resolve()
    console = Console(steps=4)
    directory = Path()
    up = False
    try:
        with until_signalled() as check_stop, scratch("semaphore-dev-") as directory, contextlib.ExitStack() as parts:
            try:
                reloader = Reloader(source, console, check_stop)
                reloader.begin()
                dev = DevLocal(console, directory, source, parts)
                cluster = dev.start()
                dev.endpoints(cluster)
                up = True
                reloader.run(cluster.webhook)
            finally:
                ignore_signals()
    except StoppedError as stopped:
        console.line(f"\n{stopped}: all of it has ended and is removed")
        return 0 if up else stopped.exit_code
    except Exception as error:
        sys.stderr.write(f"\ndev-local: {error or type(error).__name__}\ndev-local: the logs are in {directory}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
