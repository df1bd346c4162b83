"""The software bill of materials of the image's Python packages, from the lock file (CycloneDX, JSON).

What the lock file has for other systems than the image's is left out. cyclonedx-py writes the document, and validates
it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import cast

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "dist" / "sbom.cdx.json"
SPECIFICATION = "1.6"
PYTHON = "3.11.14"
"""Of the image that `deploy/Dockerfile` builds on."""


def in_image(lock: str, python: str) -> str:
    """Return those entries of a lock file, with their hashes, that are installed on Linux.

    Args:
        lock: The file's text.
        python: The image's version of CPython, such as 3.11.14.
    """
    linux = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    environment = cast("dict[str, str]", default_environment()) | linux
    kept = []
    for entry in lock.replace("\\\n", " ").splitlines():
        named, *hashes = entry.split(" --hash=")
        if not named.strip():
            continue
        requirement = Requirement(named.strip())
        if requirement.marker is None or requirement.marker.evaluate(environment):
            kept.append(" --hash=".join((f"{requirement.name}{requirement.specifier}", *map(str.strip, hashes))))
    return "\n".join(kept) + "\n"


def write(target: Path, python: str = PYTHON) -> None:
    """Write the document; raises CalledProcessError where it is not valid."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A lock file does not say who needs whom, of which cyclonedx-py would warn.
    command = [sys.executable, "-W", "ignore::UserWarning:cyclonedx.model.bom", "-m", "cyclonedx_py"]
    command += ["requirements", "-", f"--pyproject={ROOT / 'pyproject.toml'}"]
    command += [f"--spec-version={SPECIFICATION}", "--output-reproducible", f"--output-file={target}"]
    entries = in_image((ROOT / "requirements.lock").read_text(), python)
    subprocess.run(command, input=entries, text=True, check=True)


def main() -> None:
    """Write the document where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=PYTHON, help=f"the image's version of Python ({PYTHON})")
    parser.add_argument("--output", type=Path, default=TARGET, help="where to write it (dist/sbom.cdx.json)")
    given = parser.parse_args()
    write(given.output, given.python)
    print(given.output)


if __name__ == "__main__":
    main()
