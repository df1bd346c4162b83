"""A hook of MkDocs: brings documents from outside of docs/ into the site, and points links at where they are there.

In the repository a link names a file by its path, so that it works where files are read. The same link leads to the
page in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCUMENTS = "docs/"
BROUGHT_IN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "LICENSE": "license.txt",
    "deploy/helm/at-least-semaphore-pod-hook/README.md": "reference/chart.md",
}
"""Paths in the repository, and where they are in the site."""

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not below docs/."""
    root = Path(config.docs_dir).parent
    for path, page in BROUGHT_IN.items():
        files.append(File.generated(config, page, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Point a page's links at pages."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, page: str) -> str:
    """Return a page's text with the links that leave docs/, or that come from outside of it, as the site needs them.

    Args:
        markdown: The text, with links by paths in the repository.
        page: Where it is in the site.
    """
    origin = next((path for path, there in BROUGHT_IN.items() if there == page), DOCUMENTS + page)
    start, parts = 0, []
    for fence in _FENCE.finditer(markdown):
        parts += [_in_prose(markdown[start : fence.start()], origin, page), fence[0]]
        start = fence.end()
    return "".join([*parts, _in_prose(markdown[start:], origin, page)])


def _in_prose(text: str, origin: str, page: str) -> str:
    def there(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[1]))
        target = BROUGHT_IN.get(path, path.removeprefix(DOCUMENTS) if path.startswith(DOCUMENTS) else "")
        # What the site does not have is left as it is, for MkDocs to refuse.
        return posixpath.relpath(target, posixpath.dirname(page) or ".") if target else link[1]

    return _LINK.sub(there, text)
