"""Namespaces of its own for a command: its network, mounts and processes are gone when it ends, however it ends.

What the kernel does not take along, cgroups and files, is removed by the parent, which stays outside.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from devcluster.node import network
from devcluster.polling import until
from devcluster.session import StoppedError

ROOM = "DEVCLUSTER_NODE_ROOM"

_CGROUPS = Path("/sys/fs/cgroup")
_PROGRAMS = ("unshare", "ip", "iptables", "containerd", "ctr", "runc")
# Where containerd, runc, CNI plugins and the kubelet write whatever they are told.
_COVERED = ("/run", "/var/lib", "/var/log")
_END_SECONDS = 30.0


def missing() -> str | None:
    """Say why no node can run on this machine; None where one can."""
    if os.geteuid() != 0:
        return "a node needs root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not (network.PLUGINS / "bridge").exists():
        absent.append(f"the plugin bridge in {network.PLUGINS}")
    if absent:
        return f"a node needs {', '.join(absent)}"
    return None if (_CGROUPS / "memory").exists() else f"a node needs cgroup v1, and {_CGROUPS} has none"


def room() -> Path | None:
    """Return the directory of the isolated command that this process belongs to; None outside."""
    name = os.environ.get(ROOM)
    return Path(name) if name else None


def cgroup_name(directory: Path) -> str:
    """Return the name of the cgroup below which all pods of a room are."""
    return f"devcluster-{directory.name}"


def run(argv: Sequence[str], directory: Path) -> int:
    """Run a command isolated, with `directory` as its room, and return its exit code; nothing of it is left.

    On SIGINT, which a terminal sends to the command as well, and on SIGTERM it has 30 seconds to end. StoppedError
    goes on after that.
    """
    unshare = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
    ]
    inner = [sys.executable, "-m", "devcluster.node.isolation", str(directory), *argv]
    with _cgroups(cgroup_name(directory)):
        child = subprocess.Popen([*unshare, *inner], env=os.environ | {ROOM: str(directory)})
        try:
            return child.wait()
        except StoppedError:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
            raise
        finally:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _cgroups(name: str) -> Iterator[None]:
    """Have a cgroup of this name in each hierarchy, and remove it with all below it in the end."""
    places = [place / name for place in _hierarchies()]
    for place in places:
        place.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one, and then no process can enter
            if (place / setting).exists():
                (place / setting).write_text((place.parent / setting).read_text())
    try:
        yield
    finally:
        for place in places:
            until(functools.partial(_removed, place), f"{place} can be removed", _END_SECONDS)


def _hierarchies() -> list[Path]:
    return sorted(place for place in _CGROUPS.iterdir() if (place / "cgroup.procs").exists() and not place.is_symlink())


def _removed(place: Path) -> bool:
    for directory, _, _ in os.walk(place, topdown=False):
        with contextlib.suppress(OSError):  # the kernel is still ending what ran in it
            Path(directory).rmdir()
    return not place.exists()


def _inside(directory: Path, argv: Sequence[str]) -> int:
    """Be the first process of the new namespaces: set them up, run the command, and reap whatever ends."""
    for place in _COVERED:
        cover = directory / "covered" / place.strip("/").replace("/", "-")
        cover.mkdir(parents=True)
        network.run("mount", "--bind", str(cover), place)
    network.run("ip", "link", "set", "lo", "up")
    child = subprocess.Popen(argv)

    def forward(number: int, _frame: object) -> None:
        # A terminal has sent SIGINT to the command already.
        if number == signal.SIGTERM:
            child.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = _inside(Path(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
