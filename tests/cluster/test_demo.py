"""`make demo`, run as a user runs it: its story, its failures, and that nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devcluster.binaries import find_or_build
from devcluster.process import Process
from tests.cluster.leftovers import assert_nothing_left, processes_of
from tests.cluster.manifests import EXAMPLES_NAMESPACE, PROJECT

ARGV = [sys.executable, str(PROJECT / "tools" / "demo.py")]
SEMAPHORE = f"semaphore {EXAMPLES_NAMESPACE}/license: 3 permits"
SECONDS = 90  # it takes five; others may be at work on the machine
POD = r"^ +((?:reader|writer)-\S+) +(reader|writer) +yes +running$"
WAITING = r"^ +\(not created\) +(reader|writer) +no +waiting$"

pytestmark = pytest.mark.cluster


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Return the directory that the demo makes its own in."""
    room = tmp_path / "room"
    room.mkdir()
    return room


def environment(room: Path, **more: str) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(room), "PYTHONPATH": str(PROJECT / "tools")} | more


def run(room: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ARGV, env=environment(room, **more), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def part(text: str, number: int) -> str:
    """Return what one step printed."""
    return re.split(r"^\[\d/8\] ", text, flags=re.MULTILINE)[number]


def test_it_tells_the_whole_story_and_leaves_nothing(room: Path) -> None:
    started = time.monotonic()
    done = run(room)
    print(f"the demo took {time.monotonic() - started:.1f} s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\033" not in done.stdout

    created = part(done.stdout, 5)
    assert len(re.findall(POD, created, re.MULTILINE)) == 3
    (waiting,) = re.findall(WAITING, created, re.MULTILINE)
    said = " ".join(created.replace("|", " ").split())
    assert f"no semaphore available: 3 of 3 permits of {EXAMPLES_NAMESPACE}/license are held by" in said
    assert f"{SEMAPHORE}, 3 held, 0 free" in created

    deleted = part(done.stdout, 6)
    assert "asked to stop, giving the permit back" in deleted
    assert "gave the permit back" in deleted

    admitted = part(done.stdout, 7)
    assert [name for _, name in re.findall(POD, admitted, re.MULTILINE)].count(waiting) == 2
    assert len(re.findall(POD, admitted, re.MULTILINE)) == 3
    assert not re.findall(WAITING, admitted, re.MULTILINE)
    assert f"{SEMAPHORE}, 3 held, 0 free" in admitted
    assert re.search(r"Hand-over when denied: \d+ ms", admitted)

    lined_up = part(done.stdout, 8)
    states = re.findall(r"^ +import-\S+ +(yes|no) +(\w+)$", lined_up, re.MULTILINE)
    assert [permit for permit, _ in states] == ["yes"] * 2 + ["no"] * 4
    assert len(re.findall(r"^ +import-\S+ +\d+ ms$", lined_up, re.MULTILINE)) == 4
    said = " ".join(lined_up.split())
    assert re.search(r"Hand-over in line: \d+ ms \(median\); the pods were let in in the order of their arrival", said)
    assert_nothing_left(room)


def test_a_program_that_does_not_run_is_named_and_its_log_kept(room: Path, tmp_path: Path) -> None:
    # An API server as it is on a machine of another kind: it tells its version, and that is all it does.
    assets = tmp_path / "assets"
    assets.mkdir()
    script = '#!/bin/sh\n[ "$1" = --version ] && exec echo Kubernetes v1.34.4\necho no such luck >&2\nexit 4\n'
    for name in ("kube-apiserver", "kube-controller-manager"):
        (assets / name).write_text(script)
        (assets / name).chmod(0o755)
    find_or_build(["etcd", "kubectl"])
    done = run(room, KUBEBUILDER_ASSETS=str(assets))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failed = "demo: step 3, 'Start a Kubernetes control plane', failed: kube-apiserver ended with 4"
    assert failed in done.stderr
    (kept,) = re.findall(r"^demo: the logs are in (\S+)$", done.stderr, re.MULTILINE)
    assert Path(kept).parent == room
    assert (Path(kept) / "control-plane" / "kube-apiserver.log").read_text() == "no such luck\n"
    assert {path.suffix for path in Path(kept).rglob("*") if path.is_file()} == {".log"}
    assert processes_of(room) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_signal_ends_all_of_it(room: Path, tmp_path: Path, number: signal.Signals, step: int) -> None:
    log = tmp_path / "log"
    with Process("demo", ARGV, log, env=environment(room)) as demo:
        demo.wait_until(lambda: f"[{step}/8]" in log.read_text(), SECONDS, f"at step {step}")
        time.sleep(0.2)
        demo.signal(number)
        deadline = time.monotonic() + 20
        while demo.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        assert demo.exit_code == 128 + number, log.read_text()
    assert f"stopped by {number.name}" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert_nothing_left(room)
