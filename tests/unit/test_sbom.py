"""The bill of materials: valid, complete, and the same each time."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import sbom

if TYPE_CHECKING:
    from pathlib import Path

LOCK = """\
a==1 \\
    --hash=sha256:{0} \\
    --hash=sha256:{1}
b==2 ; sys_platform == 'win32' \\
    --hash=sha256:{0}
c==3 ; python_full_version < '3.11.3' \\
    --hash=sha256:{0}
"""


def test_what_is_for_other_systems_is_left_out() -> None:
    assert sbom.in_image(LOCK, "3.11.14").splitlines() == ["a==1 --hash=sha256:{0} --hash=sha256:{1}"]
    assert [line.split()[0] for line in sbom.in_image(LOCK, "3.11.2").splitlines()] == ["a==1", "c==3"]


def test_it_is_valid_complete_and_reproducible(tmp_path: Path) -> None:
    sbom.write(tmp_path / "sbom.json")
    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert not {"serialNumber", "timestamp"} & {*document, *document["metadata"]}
    assert document["metadata"]["component"]["name"] == "at-least-semaphore-pod-hook"
    listed = {f"{each['name']}=={each['version']}" for each in document["components"]}
    lock = (sbom.ROOT / "requirements.lock").read_text()
    assert listed <= set(re.findall(r"^[a-z0-9-]+==\S+", lock, re.MULTILINE))
    assert len(listed) == len(sbom.in_image(lock, sbom.PYTHON).splitlines()) > 20
    assert all(each["purl"].startswith("pkg:pypi/") for each in document["components"])
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
