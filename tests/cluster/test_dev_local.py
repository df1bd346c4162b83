"""`make dev-local`, run as a user runs it: sources are edited, broken and mended under a webhook that admits pods."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devcluster.binaries import find_or_build
from devcluster.process import Process
from tests.cluster.leftovers import assert_nothing_left
from tests.cluster.manifests import EXAMPLES_NAMESPACE, PREFIX, PROJECT, Object

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60  # each thing takes one or two; others may be at work on the machine
SIDECAR = "at-least-semaphore-pod-sidecar"

pytestmark = pytest.mark.cluster


class DevLocal:
    """A dev-local on a copy of the sources, and what it has printed."""

    def __init__(self, room: Path) -> None:
        self.room = room / "room"
        self.room.mkdir()
        self.package = room / "src" / "at_least_semaphore_pod_hook"
        shutil.copytree(PROJECT / "src" / self.package.name, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        argv = [sys.executable, str(PROJECT / "tools" / "dev_local.py"), f"--source={room / 'src'}"]
        env = os.environ | {"TMPDIR": str(self.room), "PYTHONPATH": str(PROJECT / "tools")}
        self.process = Process("dev-local", argv, room / "log", env=env)
        self.kubeconfig = ""
        self._read = 0

    def expect(self, *patterns: str) -> str:
        """Wait for lines that match, in any order, after what was expected before; return the first one's group."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            text = self.process.log.read_text()
            matches = [re.compile(pattern, re.MULTILINE).search(text, self._read) for pattern in patterns]
            found[:] = [match for match in matches if match]
            return len(found) == len(patterns)

        self.process.wait_until(there, SECONDS, f"printing {patterns!r}")
        self._read = max(match.end() for match in found)
        return found[0][found[0].re.groups and 1]

    def save(self, name: str, old: str, new: str) -> None:
        """Change a source file as an editor does: all of it at once."""
        path = self.package / name
        text = path.read_text()
        assert old in text
        path.with_suffix(".tmp").write_text(text.replace(old, new))
        path.with_suffix(".tmp").replace(path)

    def admit(self, name: str) -> None:
        """Create a pod that takes a permit, and see that it got one."""
        wishes = {"at-least-semaphore-pod": "true", "key": name, "length": "1", "expiration": "60"}
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": {PREFIX + wish: value for wish, value in wishes.items()}},
            "spec": {"containers": [{"name": "work", "image": "none"}]},
        }
        created = json.loads(self.kubectl("create", "-f", "-", "-o", "json", text=json.dumps(pod)))
        assert [one["name"] for one in created["spec"]["initContainers"]] == [SIDECAR]

    def kubectl(self, *arguments: str, text: str = "") -> str:
        argv = [str(find_or_build(["kubectl"])["kubectl"]), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevLocal]:
    dev = DevLocal(tmp_path_factory.mktemp("dev-local"))
    with dev.process:
        dev.kubeconfig = dev.expect(r"^export KUBECONFIG=(\S+)$")
        dev.expect("Ctrl-C ends everything")
        yield dev
    assert dev.process.exit_code == 0, dev.process.log.read_text()
    assert_nothing_left(dev.room)


def test_a_saved_file_restarts_the_webhook_with_the_new_code(dev: DevLocal) -> None:
    dev.admit("before")
    saved = time.monotonic()
    dev.save("__init__.py", '__version__ = "', '__version__ = "9.')
    dev.expect(r"^saved: at_least_semaphore_pod_hook/__init__\.py$")
    dev.expect(r"webhook stopped$")
    dev.expect(r"^restarted$", r"webhook serves version=9\.")
    print(f"restarted within {time.monotonic() - saved:.1f} s")
    dev.admit("after")


def test_a_file_that_python_cannot_read_waits_for_the_next_save(dev: DevLocal) -> None:
    dev.save("errors.py", "class ", "klass ")
    dev.expect(r"^syntax error: \S+errors\.py:\d+: invalid syntax$")
    dev.expect(r"Not restarted: waiting for the next save")
    dev.admit("meanwhile")
    # Another file is fine, but would be started together with the broken one.
    dev.save("__init__.py", '__version__ = "9.', '__version__ = "8.')
    dev.expect(r"^syntax error: \S+errors\.py")
    dev.admit("still")
    dev.save("errors.py", "klass ", "class ")
    dev.expect(r"^restarted$", r"webhook serves version=8\.")
    dev.admit("mended")


def test_a_webhook_that_does_not_start_is_started_at_the_next_save(dev: DevLocal) -> None:
    dev.save("__init__.py", "__version__ =", "import no_such_module\n__version__ =")
    dev.expect(r"No module named 'no_such_module'$")
    dev.expect(r"^webhook ended with 1 before it was ready$")
    dev.expect(r"The webhook is down: waiting for the next save")
    dev.save("__init__.py", "import no_such_module\n", "")
    dev.expect(r"^restarted$")
    dev.admit("again")


def test_its_endpoints_answer(dev: DevLocal) -> None:
    text = dev.process.log.read_text()
    for label, path in (("metrics", "/metrics"), ("probes", "/healthz"), ("probes", "/readyz")):
        (base,) = re.findall(rf"^ +{label} +(http://127\.0\.0\.1:\d+)/", text, re.MULTILINE)
        with urllib.request.urlopen(base + path, timeout=5) as answer:  # noqa: S310 - http, as matched
            assert answer.status == 200


def test_the_pods_of_its_jobs_end_as_their_command_would(dev: DevLocal) -> None:
    job = json.loads(dev.kubectl("get", "job", "import", f"--namespace={EXAMPLES_NAMESPACE}", "-o", "json"))
    assert job["spec"]["template"]["metadata"]["annotations"]["devcluster/run-seconds"] == "20"
