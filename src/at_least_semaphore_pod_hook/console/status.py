"""The subcommand `status`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from at_least_semaphore_pod_hook.console.reaching import reach
from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.overview import tables
from at_least_semaphore_pod_hook.overview.reading import Reader, Scope

if TYPE_CHECKING:
    from typing import TextIO

    from at_least_semaphore_pod_hook.console.options import Status
    from at_least_semaphore_pod_hook.overview.document import Overview

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
COSTLY = 5.0
"""A watch waits at least so many times as long as a reading takes, so that it does not keep a large cluster busy."""


async def run(settings: Status, out: TextIO = sys.stdout) -> int:
    """Show semaphores, once or until interrupted. Returns the exit code.

    Raises:
        InvalidInputError: The kubeconfig is none.
        StoreUnavailableError: The store does not answer. A watch says so, and goes on.
    """
    async with reach(settings.access, "status") as (store, kube, prefix):
        reader = Reader(store, prefix, lambda: kube)
        while True:
            began = time.monotonic()
            try:
                overview = await reader.read(Scope(settings.namespace, settings.key), named=settings.named)
            except UnavailableError as error:
                # A watch goes on: what is away comes back.
                if not settings.watch:
                    raise
                sys.stderr.write(f"{error}\n")
            else:
                code = _show(overview, settings, out)
                if not settings.watch:
                    return code
            await asyncio.sleep(max(settings.interval, COSTLY * (time.monotonic() - began)))


def _show(overview: Overview, settings: Status, out: TextIO) -> int:
    text = encoded(overview, settings.output, lines=settings.watch)
    missing = ""
    if not overview.semaphores:
        missing = f"there is no semaphore {settings.namespace}/{settings.key}" if settings.key else "no semaphores"
    if not text:
        text = tables.render(
            overview,
            wide=settings.output == "wide",
            detailed=bool(settings.key),
            colour=colourful(settings.colour, out),
        )
        if settings.watch:
            text = _redrawn(text or f"{missing}\n", overview, out)
        elif missing:
            sys.stderr.write(f"{missing}\n")
        if overview.api_server:
            sys.stderr.write(f"waiters and nodes are not known: {overview.api_server}\n")
    out.write(text)
    out.flush()
    return 1 if missing and settings.key else 0


def encoded(overview: Overview, output: str, *, lines: bool) -> str:
    """Return the document as JSON (with `lines` on one line) or YAML; an empty text for the other formats."""
    if output == "json":
        body = msgspec.json.encode(overview)
        return (body if lines else msgspec.json.format(body, indent=2)).decode() + "\n"
    if output == "yaml":
        return "---\n" * lines + msgspec.yaml.encode(overview).decode()
    return ""


def colourful(wanted: str, out: TextIO) -> bool:
    """Say whether to use colours: as asked, else on a terminal, unless NO_COLOR (https://no-color.org) is set."""
    if wanted != "auto":
        return wanted == "always"
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _redrawn(text: str, overview: Overview, out: TextIO) -> str:
    """Put a reading in the place of the one before; where nothing can be redrawn, below it."""
    head = f"{overview.at:%Y-%m-%d %H:%M:%SZ}\n"
    return f"{CLEAR}{head}\n{text}" if out.isatty() else f"{head}{text}\n"
