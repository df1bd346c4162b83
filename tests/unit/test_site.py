"""The documentation's site is built without a dead link or anchor, and takes nothing from anywhere else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import site_hook

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload"}


class Fetched(HTMLParser):
    """Collects what a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and FETCHED_LINKS & set((given.get("rel") or "").split()):
            self.addresses.append(given.get("href") or "")
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.addresses.append(given[FETCHED[tag]] or "")


def build(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Not --quiet: what is not logged is not counted as an error either.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = build(directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_dead_links_are_errors(tmp_path: Path) -> None:
    dead = ["concepts.md#no-such-anchor", "no-such-page.md", "../no-such-file", "../README.md#no-such-heading"]
    shutil.copytree(ROOT, tmp_path / "copy", ignore=_not_documents)
    page = tmp_path / "copy/docs/status.md"
    page.write_text(page.read_text() + "".join(f"\n[dead]({link})\n" for link in dead))
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "copy/mkdocs.yml"))
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "Doc file 'status.md' contains" in line]
    assert len(warnings) == len(dead), done.stderr


def _not_documents(directory: str, names: list[str]) -> set[str]:
    """Leave out what the site is not made of."""
    if Path(directory) == ROOT:
        wanted = {"docs", "deploy", "tools", "mkdocs.yml", "LICENSE"}
        return {name for name in names if name not in wanted and not name.endswith(".md")}
    return {name for name in names if name == "__pycache__"}


def test_the_site_has_a_page_for_each_document(site: Path) -> None:
    documents = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    documents |= {page for page in site_hook.BROUGHT_IN.values() if page.endswith(".md")}
    missing = [name for name in documents if not (site / name).with_suffix(".html").exists()]
    assert not missing


def test_a_page_loads_nothing_from_anywhere_else(site: Path) -> None:
    loaded = 0
    for page in site.rglob("*.html"):
        fetched = Fetched()
        fetched.feed(page.read_text())
        loaded += len(fetched.addresses)
        assert not [address for address in fetched.addresses if "//" in address], page
    assert loaded > 50
    assert not [style for style in site.rglob("*.css") if "url(http" in style.read_text()]


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("index.md", "docs/concepts.md#the-line", "concepts.md#the-line"),
        ("index.md", "CHANGELOG.md", "changelog.md"),
        ("security.md", "../SECURITY.md", "reporting.md"),
        ("recipes/index.md", "../../README.md#try-it", "../index.md#try-it"),
        ("reference/chart.md", "../../../docs/stores.md#urls", "../stores.md#urls"),
        ("index.md", "deploy/nowhere", "deploy/nowhere"),
        ("index.md", "https://kubernetes.io/docs", "https://kubernetes.io/docs"),
        ("index.md", "#try-it", "#try-it"),
    ],
)
def test_links_by_paths_in_the_repository_lead_to_pages(page: str, link: str, there: str) -> None:
    assert site_hook.relinked(f"a [b]({link}) c", page) == f"a [b]({there}) c"


def test_links_in_code_are_left_alone() -> None:
    text = "```text\n[b](docs/concepts.md)\n```\n"
    assert site_hook.relinked(text, "index.md") == text
