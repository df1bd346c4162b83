"""What the documents tell users to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(document: str, heading: str) -> list[list[str]]:
    """Return the commands in a section of a document, each as its words.

    `heading` is the section's, in full; of the document's own, it is what comes before the first section.
    """
    _, found, rest = f"\n{(ROOT / document).read_text()}".partition(f"\n{heading}\n")
    assert found, f"{document} has no section {heading!r}"
    level = max(2, heading.index(" "))
    section = re.split(rf"^#{{2,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    lines = "\n".join(_SHELL.findall(section)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
