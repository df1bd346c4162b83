"""The workflows that run on others' machines have few rights, and run nothing that could change under them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
ALLOWED = {("contents", "read")}
"""What a job may be granted."""


def read(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    return workflow


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def test_there_are_workflows() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: str(path.name))
class TestWorkflow:
    def test_it_has_no_rights_but_those_that_a_job_names(self, path: Path) -> None:
        workflow = read(path)
        assert workflow["permissions"] == {}
        for job in workflow["jobs"].values():
            assert job["permissions"].items() <= ALLOWED

    def test_actions_are_pinned_by_commit_with_their_version_beside_it(self, path: Path) -> None:
        workflow = read(path)
        used = [step["uses"] for step in steps(workflow) if "uses" in step]
        used += [job["uses"] for job in workflow["jobs"].values() if "uses" in job]
        for action in used:
            assert PINNED.fullmatch(action), action
            assert re.search(rf"{re.escape(action)} # v\d+\.\d+\.\d+$", path.read_text(), re.MULTILINE), action

    def test_it_keeps_no_token_in_the_working_tree(self, path: Path) -> None:
        for step in steps(read(path)):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False

    def test_nothing_that_a_stranger_writes_becomes_a_command(self, path: Path) -> None:
        text = path.read_text()
        assert "pull_request_target" not in text
        assert "workflow_run" not in text
        for step in steps(read(path)):
            assert "${{" not in step.get("run", ""), step

    def test_it_runs_what_is_run_everywhere(self, path: Path) -> None:
        if path.name == "ci.yml":
            assert [step["run"] for step in steps(read(path)) if "run" in step] == [".ci/run"]
        for job in read(path)["jobs"].values():
            assert job["timeout-minutes"] <= 180
