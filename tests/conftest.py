"""What holds for all tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ATTACKS = Path(__file__).resolve().parents[1] / "docs/attacks.md"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the table of attacks names, so that they can be run by themselves."""
    named = set(re.findall(r"`(test_\w+)`", ATTACKS.read_text()))
    for item in items:
        if item.name.partition("[")[0] in named:
            item.add_marker(pytest.mark.security)
