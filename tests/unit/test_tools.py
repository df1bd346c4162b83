"""What the tools of the terminal do without a cluster."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dev_local import syntax_errors
from devcluster import process
from devcluster.console import Console, StepError
from devcluster.session import scratch

PROJECT = Path(__file__).resolve().parents[2]
FALLBACK = ["sh", "-c", "echo fallback"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_colour_on_a_terminal_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\033" in Console(stream=Terminal()).style("text", "bold")) is coloured
    assert Console(stream=io.StringIO()).style("text", "bold") == "text"


def test_a_failed_step_is_named() -> None:
    console = Console(2, io.StringIO())
    with console.step("First"):
        pass
    with pytest.raises(StepError, match=r"^step 2, 'Second', failed: out of luck$"), console.step("Second"):
        raise ValueError("out of luck")


def test_a_directory_is_gone_and_its_logs_stay_after_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("devcluster.session.ignore_signals", lambda: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with scratch("room-") as room:
        (room / "data").write_text("")
    assert list(tmp_path.iterdir()) == []

    def fail() -> None:
        with scratch("room-") as room:
            for name in ("keys/tls.key", "server/server.log"):
                (room / name).parent.mkdir()
                (room / name).write_text("")
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        fail()
    (room,) = tmp_path.iterdir()
    assert [path.relative_to(room) for path in room.rglob("*")] == [Path("server"), Path("server/server.log")]


def test_syntax_errors_are_found(tmp_path: Path) -> None:
    texts = {"good.py": "x = 1\n", "bad.py": "x = 1\nx ==\n", "null.py": "x\0", "script.lua": "not python"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = syntax_errors([tmp_path / name for name in [*texts, "gone.py"]])
    assert {path.name for path in found} == {"bad.py", "null.py"}
    assert found[tmp_path / "bad.py"] == f"{tmp_path / 'bad.py'}:2: invalid syntax"


def dev(programs: Path, scripts: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run tools/dev where only these programs are on PATH."""
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (programs / "sh").symlink_to("/bin/sh")
    argv = ["/bin/sh", str(PROJECT / "tools" / "dev"), *FALLBACK]
    env = {"PATH": str(programs)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({}, "skaffold is not on PATH, and kubectl is not on PATH"),
        ({"kubectl": "exit 0"}, "dev: skaffold is not on PATH: "),
        ({"skaffold": "exit 9", "kubectl": "exit 1"}, "dev: kubectl cluster-info reaches no cluster: "),
    ],
)
def test_dev_falls_back_where_something_is_missing(tmp_path: Path, scripts: dict[str, str], said: str) -> None:
    done = dev(tmp_path, scripts)
    assert (done.returncode, done.stdout) == (0, "fallback\n")
    assert said in done.stderr


def test_dev_says_how_to_install_cert_manager(tmp_path: Path) -> None:
    done = dev(tmp_path, {"skaffold": "exit 9", "kubectl": '[ "$1" = cluster-info ]'})
    assert (done.returncode, done.stdout) == (1, "")
    assert "kubectl apply -f https://github.com/cert-manager/" in done.stderr


def test_dev_runs_skaffold(tmp_path: Path) -> None:
    done = dev(tmp_path, {"skaffold": 'echo "skaffold $*"', "kubectl": "exit 0"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "skaffold dev --port-forward\n", "")


SIDE_BY_SIDE = str(Path(__file__).parents[2] / "tools" / "side_by_side.py")


def test_commands_side_by_side_are_told_apart_and_the_one_that_failed_is_repeated() -> None:
    ran = subprocess.run(
        [sys.executable, SIDE_BY_SIDE, "a=echo one; exit 3", "b=echo two"], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 1
    lines = ran.stdout.splitlines()
    assert {"a | one", "b | two"} < set(lines)
    assert lines[lines.index("--- a failed; its last lines:") + 1 :] == ["a | one"]


def test_commands_side_by_side_are_interrupted_with_all_that_they_started(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("import time\nprint('runs', flush=True)\ntime.sleep(60)\n")
    command = f"a=true && {sys.executable} {script} && true"
    with subprocess.Popen([sys.executable, SIDE_BY_SIDE, command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a | runs\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130


def test_a_port_is_given_out_once_while_its_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from devcluster.process import free_port; print(free_port(), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        choices = itertools.chain([theirs, theirs], range(11_000, 30_000))
        monkeypatch.setattr(process, "_CHOICE", SimpleNamespace(randrange=lambda *_: next(choices)))
        assert process.free_port() != theirs
        other.communicate()
    monkeypatch.setattr(process, "_CHOICE", SimpleNamespace(randrange=lambda *_: theirs))
    assert process.free_port() == theirs
