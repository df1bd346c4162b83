"""The documents say what the code does: flags, annotations, metrics, messages, targets and links."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

import drawings
import reference
from at_least_semaphore_pod_hook import flags, kubectl_plugin
from at_least_semaphore_pod_hook.admission import annotations as pod_annotations
from tests.documents import commands

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/helm/*/*.md")], key=str)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(flags.ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def test_every_annotation_is_in_the_reference() -> None:
    tree = ast.parse(Path(pod_annotations.__file__).read_text())
    names = {
        statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        and re.fullmatch(r"[a-z-]+", statement.value.value)
    }
    assert len(names) >= 4
    described = {read.name for read in pod_annotations.READ} | {written.name for written in pod_annotations.WRITTEN}
    assert described == names


@pytest.mark.parametrize("path", reference.DOCUMENTS, ids=lambda path: path.name)
def test_the_reference_is_what_make_reference_writes(path: Path) -> None:
    text = path.read_text()
    assert reference.generated(text) == text, "run make reference"


def test_every_table_of_the_reference_is_somewhere() -> None:
    text = "".join(path.read_text() for path in reference.DOCUMENTS)
    missing = [name for name in reference.BLOCKS if f"<!-- generated: {name} -->" not in text]
    assert not missing


def test_every_flag_with_a_variable_is_in_the_reference() -> None:
    for command in ("webhook", "sidecar"):
        named = set(re.findall(r"\[(AT_LEAST_SEMAPHORE_[A-Z_]+)\]", reference.subcommand(command).format_help()))
        assert {flag.variable for flag in reference.offered(command)} == named


def test_variables_of_our_own_do_not_change_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_PORT", "1")
    assert {flag.default for flag in reference.offered("webhook") if "--port" in flag.names} == {"9443"}


def test_what_there_is_more_about_is_a_flag_or_an_annotation() -> None:
    names = {name for command in ("webhook", "sidecar") for flag in reference.offered(command) for name in flag.names}
    names |= {read.name for read in pod_annotations.READ} | {written.name for written in pod_annotations.WRITTEN}
    assert set(reference._SEE) <= names


@pytest.mark.parametrize("name", drawings.PICTURES)
def test_the_drawings_are_what_make_drawings_draws(name: str) -> None:
    assert (ROOT / "docs/pictures" / name).read_text() == drawings.PICTURES[name]().svg(), "run make drawings"


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
    """Return every text of the source and of the admission policy, with … in place of what it is filled in with."""
    messages = set()
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                messages.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                messages.add(re.sub(r"%[rs]", "…", node.value))
    policies = yaml.safe_load_all((ROOT / "deploy/kustomize/base/admissionpolicy.yaml").read_text())
    return messages | {rule["message"] for each in policies for rule in each["spec"].get("validations", ())}


def test_every_message_in_troubleshooting_is_in_the_source() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    symptoms, _, _ = text.partition("\n## Refusals of a pod\n")
    documented = re.findall(r"^(?:### |\| )`([^`]+)`", text, re.MULTILINE)
    documented += re.findall(r"^ *- `([^`]+)`", symptoms, re.MULTILINE)
    assert len(documented) > 50
    messages = source_messages()
    missing = [wanted for wanted in documented if not any(wanted in message for message in messages)]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_are_named_exist(name: str) -> None:
    named = {code.rpartition("::")[2] for code in CODE.findall(FENCE.sub("", (ROOT / name).read_text()))}
    wanted = {each for each in named if re.fullmatch(r"test_\w+", each)}
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")) if wanted else ""
    assert wanted <= set(re.findall(r"def (test_\w+)\(", sources))
    files = {each for each in named if re.fullmatch(r"tests/[\w/.-]+", each)}
    assert not [each for each in files if not (ROOT / each).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_wrapped(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def long_flags(help_text: str) -> set[str]:
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_text, re.MULTILINE)) - {"--help"}


def doctor_help() -> str:
    """Return what doctor takes beside the webhook's flags."""
    own = long_flags(reference.subcommand("doctor").format_help()) - long_flags(
        reference.subcommand("webhook").format_help()
    )
    return "".join(f"  {name}\n" for name in sorted(own))


@pytest.mark.parametrize(
    ("offered", "heading"),
    [
        (
            lambda: reference.subcommand("status").format_help() + reference.subcommand("release").format_help(),
            "| Flag | Of | Meaning |",
        ),
        (
            doctor_help,
            "| Flag of doctor | Meaning |",
        ),
        (kubectl_plugin._parser().format_help, "| Flag of the plugin | Meaning |"),
    ],
)
def test_the_flags_of_what_is_run_by_hand_are_told(offered: Callable[[], str], heading: str) -> None:
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("status.md", "doctor.md"))
    _, _, rest = pages.partition(f"{heading}\n")
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    documented = {name for row in rows for name in CODE.findall(cells(row)[0]) if name.startswith("--")}
    assert documented == long_flags(offered())


def test_all_documents_install_the_chart_by_the_same_commands() -> None:
    wanted = commands("README.md", "## Install it into a cluster")
    assert len(wanted) <= 5
    assert [words[0] for words in wanted].count("helm") == 1
    assert commands("docs/operations.md", "## Install")[:2] == wanted[:2]
    chart = "deploy/helm/at-least-semaphore-pod-hook/README.md"
    assert commands(chart, "# at-least-semaphore-pod-hook: Helm chart") == wanted[:2]
