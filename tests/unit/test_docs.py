"""The documents say what the code does: flags, annotations, metrics, messages, targets and links."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from at_least_semaphore_pod_hook import cli, flags, kubectl_plugin
from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from at_least_semaphore_pod_hook.server import (  # each adds to the registry
    certificate_metrics,  # noqa: F401
    metrics,
    semaphore_metrics,  # noqa: F401
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/helm/*/*.md")], key=str)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
COMMANDS = ("webhook", "sidecar")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")


class Flag(NamedTuple):
    names: tuple[str, ...]
    variable: str
    default: str
    of: str


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(flags.ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def documented_flags() -> set[Flag]:
    _, _, rest = README.read_text().partition("| Flag | Environment variable | Default | Of |")
    flags = set()
    for row in rest.partition("\n\n")[0].splitlines()[2:]:
        names, variable, default, of, _ = cells(row)
        flags.add(Flag(tuple(CODE.findall(names)), variable.strip("`"), default.strip("`"), of))
    return flags


def offered_flags(command: str) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return what --help says of each flag: its names, with its variable and its default."""
    text = subcommand_help(command).partition("\noptions:\n")[2]
    found = {}
    for entry in re.split(r"\n  (?=-)", f"\n{text}")[1:]:
        line = " ".join(entry.split())
        if line.startswith("-h, "):
            continue
        match = re.fullmatch(r".*?(?: \(([^() ]*)\))? \[([A-Z_]+)\]", line)
        assert match, line
        names = tuple(re.findall(r"(?<![\w-])--[A-Za-z][A-Za-z-]*", line))
        found[names] = (match[2], match[1] or "")
    return found


def subcommand_help(command: str) -> str:
    actions = cli._parser(command)._subparsers
    assert actions
    (choices,) = (action.choices for action in actions._group_actions)
    assert isinstance(choices, dict)
    text: str = choices[command].format_help()
    return text


def test_the_flags_in_the_readme_are_those_of_help() -> None:
    offered = {command: offered_flags(command) for command in COMMANDS}
    flags = set()
    for names, (variable, default) in {(names, rest) for found in offered.values() for names, rest in found.items()}:
        of = [command for command in COMMANDS if offered[command].get(names) == (variable, default)]
        flags.add(Flag(names, variable, default, "both" if len(of) > 1 else of[0]))
    assert len(flags) > 10
    assert documented_flags() == flags


def test_every_annotation_is_in_the_readme() -> None:
    tree = ast.parse(Path(pod_annotations.__file__).read_text())
    names = {
        pod_annotations.annotation_prefix() + statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        and re.fullmatch(r"[a-z-]+", statement.value.value)
    }
    assert len(names) >= 4
    documented = {cells(row)[0].strip("`") for row in README.read_text().splitlines() if row.startswith("| `at-least-")}
    assert documented == names


def test_the_metrics_in_operations_are_those_that_are_registered() -> None:
    registered = set()
    for family in metrics.REGISTRY.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        registered.add((name, family.type))
    text = (ROOT / "docs/operations.md").read_text()
    documented = {
        tuple(cell.strip("`") for cell in cells(row)[:2])
        for row in re.findall(rf"^\| `{metrics.PREFIX}.*", text, re.MULTILINE)
    }
    assert registered
    assert documented == registered


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text()
    code = "\n".join([*FENCE.findall(text), *CODE.findall(FENCE.sub("", text))])
    named = set(re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code))
    assert named <= targets


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_resolve(name: str) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert ROOT in [target, *target.parents], link
        assert not anchor or anchor in anchors(target), link


def source_messages() -> set[str]:
    """Return every text of the source, with … in place of what it is filled in with."""
    messages = set()
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                messages.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.add(re.sub(r"%[rs]", "…", node.value))
    return messages


def test_every_message_in_troubleshooting_is_in_the_source() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    documented = re.findall(r"^(?:### |\| )`([^`]+)`", text, re.MULTILINE)
    assert len(documented) > 50
    messages = source_messages()
    missing = [wanted for wanted in documented if not any(wanted in message for message in messages)]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_wrapped(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def long_flags(help_text: str) -> set[str]:
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_text, re.MULTILINE)) - {"--help"}


@pytest.mark.parametrize(
    ("offered", "heading"),
    [
        (lambda: subcommand_help("status") + subcommand_help("release"), "| Flag | Of | Meaning |"),
        (kubectl_plugin._parser().format_help, "| Flag of the plugin | Meaning |"),
    ],
)
def test_the_flags_of_what_is_run_by_hand_are_in_operations(offered: Callable[[], str], heading: str) -> None:
    _, _, rest = (ROOT / "docs/operations.md").read_text().partition(f"{heading}\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    documented = {name for row in rows for name in CODE.findall(cells(row)[0]) if name.startswith("--")}
    assert documented == long_flags(offered())
