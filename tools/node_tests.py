"""Run the tests of `tests/node` on real nodes: build what they run, isolate them, and leave nothing behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from devcluster.binaries import find_or_build
from devcluster.errors import DevClusterError
from devcluster.node import images, isolation
from devcluster.node.cluster import PROGRAMS
from devcluster.session import StoppedError, scratch, until_signalled
from devimage import ImageError
from devimage import missing as image_missing

_PROJECT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments on the tests, and return the exit code; 0 where no node can run here."""
    reason = isolation.missing() or image_missing()
    if reason is not None:
        print(f"test-node: THE PRODUCT IS NOT TESTED ON REAL NODES: {reason}", flush=True)
        return 0
    try:
        with until_signalled(), scratch("als-node-") as directory:
            _run(directory, arguments or ["tests/node"])
    except StoppedError as stopped:
        return stopped.exit_code
    except (DevClusterError, ImageError) as error:
        print(f"test-node: {error}", file=sys.stderr)
        return 1
    return 0


def _run(directory: Path, arguments: list[str]) -> None:
    started = time.monotonic()
    find_or_build([*PROGRAMS, "kube-apiserver", "kube-controller-manager", "kubectl", "etcd", "helm"])
    images.prepare(directory / "images")
    print(f"test-node: programs and images took {time.monotonic() - started:.0f} s", flush=True)
    pytest = [sys.executable, "-m", "pytest", f"--rootdir={_PROJECT}", "-p", "no:cacheprovider"]
    code = isolation.run([*pytest, f"--basetemp={directory / 'tests'}", *arguments], directory)
    print(f"test-node: {time.monotonic() - started:.0f} s in all", flush=True)
    if code:
        raise DevClusterError(f"pytest ended with {code}; logs are kept in {directory}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
