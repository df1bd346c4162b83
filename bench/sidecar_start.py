"""How long a sidecar takes from the start of its process until its first renewal was sent, beside Python alone.

Both are started in turns, with bytecode as in the image, so that a drift of the machine's speed meets both alike.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

from admissions import PYTHON, compile_as_image

SCRIPT = b"EVALSHA"
PATIENCE_SECONDS = 10.0
TARGET_MS = 150


def bare() -> float:
    """Return the milliseconds that Python takes to start and to end."""
    began = time.perf_counter()
    subprocess.run([*PYTHON, "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1000


def first_renewal(listener: socket.socket) -> float:
    """Return the milliseconds from a sidecar's start until its renewal has come in at its store's port."""
    host, port = listener.getsockname()
    command = [*PYTHON, "-m", "at_least_semaphore_pod_hook", "sidecar", f"--queue-redis-address={host}:{port}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AT_LEAST_SEMAPHORE_")}
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "default/key", "0123456789abcdef"], stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE_SECONDS)
                sent = b""
                while SCRIPT not in sent:
                    piece = connection.recv(65_536)
                    if not piece:
                        raise ConnectionError("the sidecar has sent no renewal")
                    sent += piece
                return (time.perf_counter() - began) * 1000
        finally:
            process.kill()


def measure(count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of so many starts of Python alone, and of a sidecar until its first renewal."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        first_renewal(listener)  # what is read from the disk for the first time is not counted
        pairs = [(bare(), first_renewal(listener)) for _ in range(count)]
    return [python for python, _ in pairs], [sidecar for _, sidecar in pairs]


def main() -> int:
    """Print both, and say whether the sidecar keeps to its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="how often each is started; medians are shown")
    given = parser.parse_args()
    compile_as_image()
    python, sidecar = (statistics.median(taken) for taken in measure(given.count))
    print(
        f"median of {given.count}: python -c pass {python:.0f} ms; sidecar's first renewal sent after {sidecar:.0f} ms"
    )
    print(f"target: under {TARGET_MS} ms: {'met' if sidecar < TARGET_MS else 'MISSED'}")
    return int(sidecar >= TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
