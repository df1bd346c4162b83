"""Writes the tables of the reference from the code: `make reference`.

A document has a table between `<!-- generated: NAME -->` and `<!-- /generated -->`; the rest of it is written by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from at_least_semaphore_pod_hook import cli, flags
from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.controller.events import EVENTS
from at_least_semaphore_pod_hook.server import (  # each adds to the registry
    certificate_metrics,  # noqa: F401
    identities,  # noqa: F401
    metrics,
    permits,  # noqa: F401
    semaphore_metrics,  # noqa: F401
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy/helm/at-least-semaphore-pod-hook"
DOCUMENTS = (
    *(ROOT / "docs/reference" / f"{name}.md" for name in ("annotations", "flags", "metrics", "events")),
    CHART / "README.md",
)
"""The documents with generated tables."""

_BLOCK = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_METAVARS = {"FILE": "a file", "DIRECTORY": "a directory"}
_SEE = {
    "--queue-url": "stores.md#urls",
    "--redis-addresses": "stores.md#urls",
    "--etcd-addresses": "stores.md#urls",
    "--sidecar-queue-url": "stores.md#urls",
    "--sidecar-secret": "stores.md#urls",
    "--sidecar-mode": "sidecar-api.md",
    "--permit-url": "sidecar-api.md",
    "--permit-authorities": "sidecar-api.md",
    "--lock-mode": "operations.md#high-availability",
    "--certificate-secret": "certificates.md#self-managed",
    "--certificate-settle-seconds": "certificates.md#self-managed",
    "--client-ca-file": "security.md#only-the-api-server",
    "--client-names": "security.md#only-the-api-server",
    "--metrics-auth": "monitoring.md#who-may-read-them",
    "--status-page": "status.md#status-page",
    "--metrics-bind-address": "monitoring.md#metrics",
    "--health-probe-bind-address": "monitoring.md#probes",
    "--release-gates": "operations.md#upgrade-and-removal",
    "--when-full": "concepts.md#when-no-permit-is-free",
    "--wake-owners": "concepts.md#the-controller",
    "--confirm": "concepts.md#confirmed-before-work-starts",
    "--fence": "concepts.md#stopped-before-a-successor-starts",
    "--release-on": "concepts.md#when-the-permit-goes-back",
    "--end-with-pod": "concepts.md#ordinary-sidecars",
    "--sidecar-image": "operations.md#image",
    "when-full": "concepts.md#when-no-permit-is-free",
    "release-on": "concepts.md#when-the-permit-goes-back",
    "length": "concepts.md#resize",
    "expiration": "concepts.md#lease-and-expiration",
    "fencing-token": "concepts.md#fencing-token",
}
"""Where there is more about a flag or an annotation."""


class Flag(NamedTuple):
    """A flag as the command line offers it."""

    names: tuple[str, ...]
    variable: str
    default: str
    accepted: str
    meaning: str


def subcommand(command: str) -> argparse.ArgumentParser:
    """Return the parser of a subcommand of the program."""
    subparsers = cli._parser(command)._subparsers  # noqa: SLF001 - argparse has no other way to them
    choices: Any = subparsers and subparsers._group_actions[0].choices  # noqa: SLF001
    found: argparse.ArgumentParser = choices[command]
    return found


def offered(command: str) -> list[Flag]:
    """Return the flags of a subcommand that have an environment variable, whatever is set in ours."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(flags.ENVIRONMENT_PREFIX)}
    try:
        actions = subcommand(command)._actions  # noqa: SLF001 - there is no other way to them
    finally:
        os.environ.update(kept)
    found = []
    for action in actions:
        described = re.fullmatch(r"(.*?)(?: \(([^()]*)\))? \[([A-Z_]+)\]", action.help or "", re.DOTALL)
        if action.option_strings and described:
            names = tuple(action.option_strings)
            found.append(Flag(names, described[3], described[2] or "", _accepted(action), described[1]))
    return found


def _accepted(action: argparse.Action) -> str:
    """Say what a flag takes, as its own message says it when that is not what it is given."""
    if action.choices:
        return _alternatives(map(str, action.choices))
    if not callable(action.type):
        return _METAVARS.get(str(action.metavar), "text")
    try:
        action.type("\0")
    except argparse.ArgumentTypeError as error:
        return re.sub(r"^use (one of )?", "", str(error).partition(" is not accepted: ")[2])
    raise ValueError(f"{action.option_strings[0]} accepts anything: give it no type")


def _alternatives(choices: Iterable[str]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def cell(text: str) -> str:
    """Return a text as a cell of a table: URLs, flags and placeholders as code."""
    coded = re.sub(r'(?<!`)(--[a-zA-Z-]+|[a-z+\[\]]+://[^\s,;]*|<[a-z]+>|"[a-z]+"|/[a-z]{5,}\b)(?!`)', r"`\1`", text)
    return coded.replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _more(name: str) -> str:
    return f" ([more](../{_SEE[name]}))" if name in _SEE else ""


def _flags(found: Iterable[Flag]) -> str:
    return table(
        ("Flag, environment variable", "Default", "Accepted", "Meaning"),
        (
            (
                f"{', '.join(f'`{name}`' for name in flag.names)}<br>`{flag.variable}`",
                flag.default and f"`{flag.default}`",
                cell(flag.accepted),
                cell(flag.meaning) + _more(flag.names[0]),
            )
            for flag in found
        ),
    )


def _flags_of_both() -> str:
    sidecar = offered("sidecar")
    return _flags(flag for flag in offered("webhook") if flag in sidecar)


def _flags_of_the_webhook() -> str:
    sidecar = offered("sidecar")
    return _flags(flag for flag in offered("webhook") if flag not in sidecar)


def _flags_of_the_sidecar() -> str:
    webhook = offered("webhook")
    return _flags(flag for flag in offered("sidecar") if flag not in webhook)


def _annotations_read() -> str:
    return table(
        ("Annotation", "Accepted", "Default", "Meaning"),
        (
            (
                f"`{pod_annotations.DOMAIN}/{one.name}`",
                cell(one.accepted),
                cell(one.default),
                cell(one.meaning) + _more(one.name),
            )
            for one in pod_annotations.READ
        ),
    )


def _annotations_written() -> str:
    return table(
        ("Name", "Where", "Meaning"),
        (
            (f"`{pod_annotations.DOMAIN}/{one.name}`", one.where, cell(one.meaning) + _more(one.name))
            for one in pod_annotations.WRITTEN
        ),
    )


def _metrics() -> str:
    rows = []
    for collector in {*metrics.REGISTRY._collector_to_names}:  # noqa: SLF001 - families without samples tell no labels
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
            name = family.name + ("_total" if family.type == "counter" else "")
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append((f"`{name}`", family.type, shown, cell(family.documentation)))
    return table(("Metric", "Type", "Labels", "Meaning"), sorted(rows))


def _events() -> str:
    return table(
        ("Reason", "Type", "On", "What it means", "What to do"),
        (
            (
                f"`{event.reason}`",
                "Warning" if event.warning else "Normal",
                event.on,
                cell(event.meaning),
                cell(event.advice),
            )
            for event in EVENTS
        ),
    )


def leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Return each of the chart's values by its path, with its schema.

    An object that the schema does not spell out is one value.
    """
    for name, value in values.items():
        known = schema["properties"][name]
        if value and "properties" in known:
            yield from leaves(value, known, f"{path}{name}.")
        else:
            yield path + name, value, known


def _chart_values() -> str:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    return table(
        ("Value", "Default", "Accepted", "Meaning"),
        (
            (f"`{path}`", f"`{json.dumps(default)}`", _of_schema(known), cell(known["description"]))
            for path, default, known in leaves(values, schema)
        ),
    )


def _of_schema(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return _alternatives(schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(_of_schema(each) for each in schema.get("anyOf") or schema["oneOf"])
    kind = schema["type"]
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "integer":
        return f"{schema['minimum']} to {schema['maximum']}" if "maximum" in schema else f"from {schema['minimum']}"
    return {"string": "text", "array": "list", "object": "mapping"}[kind]


BLOCKS: dict[str, Callable[[], str]] = {
    "flags of both": _flags_of_both,
    "flags of the webhook": _flags_of_the_webhook,
    "flags of the sidecar": _flags_of_the_sidecar,
    "annotations read": _annotations_read,
    "names written": _annotations_written,
    "metrics": _metrics,
    "events": _events,
    "chart values": _chart_values,
}


def generated(document: str) -> str:
    """Return a document with its tables as the code has them now.

    Raises:
        KeyError: It names a table that there is not.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[3]}", document)


def main() -> None:
    """Write all tables anew."""
    for path in DOCUMENTS:
        before = path.read_text()
        after = generated(before)
        if after != before:
            path.write_text(after)
            print(f"reference: {path.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
