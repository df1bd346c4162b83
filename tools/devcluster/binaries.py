"""Find the cluster's programs on this machine, or build them from their Go modules into the project's cache."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devcluster.errors import DevClusterError
from devcluster.process import Process, log_tail

Report = Callable[[str], object]
Version = tuple[int, int, int]

_PROGRESS_SECONDS = 10.0
_POLL_SECONDS = 0.25
_STAGING = re.compile(r"^\s*(k8s\.io/[a-z0-9-]+) v0\.0\.0$", re.MULTILINE)
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Product:
    """A Go module, and how its programs are built.

    `seconds` is what each took cold on two cores; `oldest` is the version below which an installed one is not used.
    """

    module: str
    version: str
    packages: Mapping[str, str]
    seconds: Mapping[str, int]
    stamps: tuple[str, ...] = ()
    staged: bool = False
    godebug: str | None = None
    oldest: Version = (0, 0, 0)
    version_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# One entry a module: to add a program is to add its module, version and package path here.
PRODUCTS = (
    Product(
        module="k8s.io/kubernetes",
        version="v1.34.4",
        packages={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"),
                *("kubelet", "kubectl"),
            )
        },
        seconds={
            "kube-apiserver": 220,
            "kube-controller-manager": 80,
            "kube-scheduler": 5,
            "kube-proxy": 10,
            "kubelet": 20,
            "kubectl": 15,
        },
        # Some clients refuse a server that doesn't tell its version.
        stamps=("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
        staged=True,
        godebug="default=go1.24",
        oldest=(1, 30, 0),
        version_args={"kubectl": ("version", "--client")},
    ),
    Product(
        module="go.etcd.io/etcd/server/v3",
        version="v3.6.16",
        packages={"etcd": "go.etcd.io/etcd/server/v3"},
        seconds={"etcd": 25},
        oldest=(3, 4, 0),
    ),
    Product(
        module="github.com/coredns/coredns",
        version="v1.12.4",
        packages={"coredns": "github.com/coredns/coredns"},
        seconds={"coredns": 125},
        version_args={"coredns": ("-version",)},
    ),
    Product(
        module="github.com/tsenart/vegeta/v12",
        version="v12.13.0",
        packages={"vegeta": "github.com/tsenart/vegeta/v12"},
        seconds={"vegeta": 15},
        version_args={"vegeta": ("-version",)},
    ),
    Product(
        module="helm.sh/helm/v3",
        version="v3.19.5",
        packages={"helm": "helm.sh/helm/v3/cmd/helm"},
        seconds={"helm": 150},
        # Else it calls itself v3.19, which is no version of its charts' constraints.
        stamps=("helm.sh/helm/v3/internal/version.version",),
        oldest=(3, 14, 0),
        version_args={"helm": ("version", "--short")},
    ),
    Product(
        module="github.com/prometheus/prometheus",
        version="v0.307.3",
        packages={name: f"github.com/prometheus/prometheus/cmd/{name}" for name in ("promtool", "prometheus")},
        seconds={"promtool": 190, "prometheus": 60},
        oldest=(2, 50, 0),
    ),
)


def find_or_build(names: Iterable[str], report: Report = print) -> dict[str, Path]:
    """Return where each named program is, building what is neither installed nor cached.

    Searched in this order: the directory $KUBEBUILDER_ASSETS, PATH, the project's cache, a build with Go. `report`
    gets a line for what is skipped and about every 10 s of a build. DevClusterError for an unknown name, a missing
    Go or a failed build.
    """
    wanted = list(dict.fromkeys(names))
    found: dict[str, Path] = {}
    for name in wanted:
        product_of(name)
    for product in PRODUCTS:
        mine = [name for name in wanted if name in product.packages]
        if mine:
            found |= _installed(product, mine, report)
            missing = [name for name in mine if name not in found]
            found |= _cached_or_built(product, missing, report)
    return {name: found[name] for name in wanted}


def product_of(name: str) -> Product:
    """Return the product that a program belongs to; DevClusterError for a name that none has."""
    for product in PRODUCTS:
        if name in product.packages:
            return product
    known = ", ".join(sorted(name for product in PRODUCTS for name in product.packages))
    raise DevClusterError(f"{name} is not a program that can be found or built here; known are {known}")


def module_dir(module: str, version: str) -> Path:
    """Download a Go module (once; Go caches it) and return its read-only source directory.

    DevClusterError where Go is missing or the module can't be had.
    """
    return Path(_download(module, version)["Dir"])


def cache_directory(version: str) -> Path:
    """Return the cache's directory for the programs of one version (it need not exist)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "at-least-semaphore-pod-hook" / "bin" / version


def program_version(path: Path, arguments: tuple[str, ...] = ("--version",)) -> Version | None:
    """Ask a program for its version; None where it doesn't run or doesn't say."""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _installed(product: Product, names: list[str], report: Report) -> dict[str, Path]:
    found: dict[str, Path] = {}
    minors: dict[str, tuple[int, int]] = {}
    for name in names:
        for path in _places(name):
            version = program_version(path, product.version_args.get(name, ("--version",)))
            reason = _unfit(name, version)
            if reason is None and version is not None:
                found[name] = path
                minors[name] = version[:2]
                break
            report(f"{path} is not used: {reason}")
    # A controller manager, scheduler or kubelet newer than its API server is unsupported, and an installed API server
    # often comes alone: unless every server is there, of one minor version, all of them come from one build.
    servers = [name for name in names if product.staged and name != "kubectl"]
    if any(name in found for name in servers) and len({minors.get(name) for name in servers}) > 1:
        report("installed Kubernetes servers are not used: " + ", ".join(servers) + " must be of one minor version")
        found = {name: path for name, path in found.items() if name not in servers}
    return found


def _places(name: str) -> list[Path]:
    """Return where a program is installed, the place to prefer first."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    places = [shutil.which(name, path=assets) if assets else None, shutil.which(name)]
    return [Path(place) for place in dict.fromkeys(places) if place]


def _unfit(name: str, version: Version | None) -> str | None:
    """Say why a program of this version can't be used, or None where it can."""
    if version is None:
        return "it does not tell its version"
    said = ".".join(map(str, version))
    if name == "etcd" and (3, 5, 0) <= version <= (3, 5, 2):
        return f"etcd {said} corrupts its data when it is killed"
    oldest = product_of(name).oldest
    return f"{name} {said} is older than {oldest[0]}.{oldest[1]}" if version < oldest else None


def _cached_or_built(product: Product, names: list[str], report: Report) -> dict[str, Path]:
    directory = cache_directory(product.version)
    if all(_usable(directory / name) for name in names):
        return {name: directory / name for name in names}
    if shutil.which("go") is None:
        missing = ", ".join(name for name in names if not _usable(directory / name))
        raise DevClusterError(
            f"{missing} not found in $KUBEBUILDER_ASSETS, on PATH or in {directory}, and there is no Go to build with: "
            f"install Go 1.24 or newer, or put the programs on PATH"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / ".lock", report):
        missing_names = [name for name in names if not _usable(directory / name)]
        if missing_names:
            _build(product, missing_names, directory, report)
    return {name: directory / name for name in names}


def _usable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    started = said = time.monotonic()
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - said >= _PROGRESS_SECONDS:
                    said = time.monotonic()
                    report(f"waiting for another build into {path.parent}: {said - started:.0f} s")
                time.sleep(_POLL_SECONDS)
        yield


def _build(product: Product, names: list[str], directory: Path, report: Report) -> None:
    # In the cache's own file system, so that the finished programs can be renamed into place.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as scratch:
        work = Path(scratch)
        (work / "go.mod").write_text(_go_mod(product))
        output = work / "out"
        output.mkdir()
        flags = " ".join(["-s -w", *(f"-X {stamp}={product.version}" for stamp in product.stamps)])
        # A directory as output names each program after its package path, so a module's own root needs a file name.
        target = f"{output}/" if len(names) > 1 else str(output / names[0])
        packages = [product.packages[name] for name in names]
        argv = ["go", "build", "-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", target, *packages]
        _run_go(argv, work, _what(product, names), sum(product.seconds[name] for name in names), report)
        for name in names:
            (output / name).rename(directory / name)


def _what(product: Product, names: list[str]) -> str:
    return f"{', '.join(names)} {product.version}"


def _run_go(argv: list[str], work: Path, what: str, usual: int, report: Report) -> None:
    log = work / "build.log"
    started = said = time.monotonic()
    report(f"building {what} with Go (cold this takes about {usual} s on two cores)")
    child = Process("go build", argv, log, env=_go_environment(), cwd=work)
    child.start()
    try:
        while child.alive:
            if time.monotonic() - said >= _PROGRESS_SECONDS:
                said = time.monotonic()
                report(f"building {what}: {said - started:.0f} s of about {usual} s")
            time.sleep(_POLL_SECONDS)
    finally:
        child.kill()  # with its compilers, where we are interrupted
    if child.exit_code != 0:
        raise DevClusterError(f"building {what} failed:\n{log_tail(log, 30)}")
    report(f"built {what} in {time.monotonic() - started:.0f} s")


def _go_mod(product: Product) -> str:
    """Return the go.mod of a module of our own that can build the product's programs."""
    lines = ["module devcluster.invalid/build", "", "go 1.24.0", ""]
    if product.godebug:
        lines += [f"godebug {product.godebug}", ""]
    lines += [f"require {product.module} {product.version}", ""]
    if product.staged:
        # Kubernetes requires its own libraries at v0.0.0, which exist only in its repository; each is published as
        # v0.<minor>.<patch> too.
        required = Path(_download(product.module, product.version)["GoMod"]).read_text()
        published = "v0." + product.version.removeprefix("v1.")
        lines += [f"replace {name} => {name} {published}" for name in sorted(set(_STAGING.findall(required)))]
    return "\n".join(lines) + "\n"


def _go_environment() -> dict[str, str]:
    # No other toolchain is downloaded, no C compiler is needed, and no go.work around us is picked up.
    return os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOWORK": "off"}


def _download(module: str, version: str) -> dict[str, str]:
    if shutil.which("go") is None:
        raise DevClusterError(f"there is no Go to download the module {module} with: install Go 1.24 or newer")
    with tempfile.TemporaryDirectory() as nowhere:  # outside any module, whose go.mod would be heeded
        argv = ["go", "mod", "download", "-json", f"{module}@{version}"]
        done = subprocess.run(argv, cwd=nowhere, env=_go_environment(), capture_output=True, text=True, check=False)
    try:
        answer: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        answer = {"Error": done.stderr.strip()}
    if done.returncode != 0 or "Error" in answer:
        raise DevClusterError(f"the Go module {module} {version} can't be downloaded: {answer.get('Error')}")
    return answer
