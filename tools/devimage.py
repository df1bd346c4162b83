"""Build and run the container image with buildah alone: no container engine, and no image that has to be pulled.

What takes the place of Docker's Python image is a Debian of the same Python, put together from Debian's packages and
kept in the project's cache. Needs root, and Debian's packages buildah and debootstrap.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROJECT = Path(__file__).resolve().parents[1]
SECRET_CERTIFICATES = "/run/secrets/ca-certificates.crt"  # noqa: S105 - where the Dockerfile mounts it

_SYSTEM_PIP_CONFIG = Path("/etc/pip.conf")
_NAME = "at-least-semaphore-pod-hook"
_SUITE = "bookworm"
_PACKAGES = "python3-minimal,libpython3-stdlib,ca-certificates"
_PIP = "pip==25.3"
_UNNEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)

# What says how packages are reached. pip has many more settings, which say what is done with them.
_PIP_SETTINGS = frozenset(
    {"default-timeout", "extra-index-url", "find-links", "index-url", "no-index", "proxy", "retries", "timeout"}
    | {"trusted-host"}
)
_CERTIFICATE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


class ImageError(Exception):
    """A program that builds or runs an image failed; the message ends with what it said."""


def commit_time() -> str:
    """Return when the commit was made that is built, in seconds since 1970; SOURCE_DATE_EPOCH takes precedence.

    0 for a source tree without its history.
    """
    argv = ["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"]
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    if shutil.which("git") is None:
        return "0"
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() or "0"


def missing() -> str | None:
    """Say why no image can be built on this machine; None where one can."""
    if os.geteuid() != 0:
        return "building an image without a container engine needs root"
    absent = [name for name in ("buildah", "debootstrap", "uv") if shutil.which(name) is None]
    return f"building an image needs {', '.join(absent)}, not found on PATH" if absent else None


class Images:
    """A store of images in the project's cache. `report` is told what takes long."""

    def __init__(self, directory: Path | None = None, report: Callable[[str], object] = print) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.directory = directory or cache / _NAME / "images"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._report = report

    def build(self, tag: str, *, target: str = "runtime") -> str:
        """Build a target of the Dockerfile from this source tree and return the image's full name."""
        image = f"localhost/{_NAME}:{tag}"
        with self._alone(), tempfile.TemporaryDirectory() as temporary:
            base, builder = self._bases()
            secrets, volumes = pip_access(os.environ, Path(temporary))
            self.buildah(
                *("bud", "--isolation=chroot", "--pull-never", "--quiet", f"--target={target}", f"--tag={image}"),
                *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
                *(f"--volume={path}:{path}:ro" for path in volumes),
                *(f"--build-arg=BASE_IMAGE={base}", f"--build-arg=BUILDER_IMAGE={builder}"),
                f"--timestamp={commit_time()}",
                *(f"--file={PROJECT / 'deploy/Dockerfile'}", str(PROJECT)),
            )
            self.buildah("rmi", "--prune")
        return image

    def made(self, name: str, recipe: str, fill: Callable[[Path], None] | None = None) -> str:
        """Build an image of a few lines of Dockerfile, once, and return its full name.

        `recipe` is the Dockerfile, in which BASE stands for the Debian that our own image stands on; what `fill` puts
        into a directory can be copied from there.
        """
        with self._alone(), tempfile.TemporaryDirectory() as temporary:
            base, _ = self._bases()
            text = recipe.replace("BASE", base)
            image = f"localhost/{_NAME}-{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            if image not in self._known():
                if fill:
                    fill(Path(temporary))
                (Path(temporary) / "Dockerfile").write_text(text)
                self.buildah("bud", "--isolation=chroot", "--pull-never", "--quiet", f"--tag={image}", temporary)
        return image

    def save(self, image: str, name: str, archive: Path) -> None:
        """Write an image to an archive as docker does, under the name that it shall have where it is read."""
        with self._alone():
            self.buildah("push", "--quiet", image, f"docker-archive:{archive}:{name}")

    def digest(self, image: str) -> str:
        """Return the digest of an image's configuration, which names every layer by its digest."""
        return str(json.loads(self.buildah("inspect", "--type=image", image))["FromImageID"])

    def layers(self, image: str) -> list[str]:
        """Return the digests of an image's layers, the base's first."""
        found: list[str] = json.loads(self.buildah("inspect", "--type=image", image))["OCIv1"]["rootfs"]["diff_ids"]
        return found

    def config(self, image: str) -> dict[str, Any]:
        """Return the image's configuration as OCI has it: User, Entrypoint, Env and so on."""
        config: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", image))["OCIv1"]["config"]
        return config

    @contextlib.contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """Make a container of an image, for as long as the context lasts."""
        name = self.buildah("from", "--pull-never", image).strip()
        try:
            yield Container(self, name, Path(self.buildah("mount", name).strip()))
        finally:
            self.buildah("rm", name)

    def buildah(self, *arguments: str) -> str:
        """Run buildah on this store and return what it printed; ImageError where it fails."""
        store = (f"--root={self.directory / 'storage'}", f"--runroot={self.directory / 'run'}", "--storage-driver=vfs")
        return _run("buildah", *store, *arguments)

    def _bases(self) -> tuple[str, str]:
        recipe = hashlib.sha256(repr((_SUITE, _PACKAGES, _PIP, _UNNEEDED)).encode()).hexdigest()[:12]
        base, builder = f"localhost/{_NAME}-base:{recipe}", f"localhost/{_NAME}-builder:{recipe}"
        if not {base, builder} <= self._known():
            self._report("building a base image from Debian's packages (about a minute, once)")
            with tempfile.TemporaryDirectory(dir=self.directory) as temporary:
                self._build_bases(Path(temporary), base, builder)
        return base, builder

    def _known(self) -> set[str]:
        return {name for image in json.loads(self.buildah("images", "--json")) for name in image.get("names") or ()}

    def _build_bases(self, directory: Path, base: str, builder: str) -> None:
        root = directory / "root"
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root))
        for path in _UNNEEDED:
            shutil.rmtree(root / path, ignore_errors=True)
        # Device nodes are the runtime's to make, and can't be made everywhere.
        shutil.rmtree(root / "dev")
        (root / "dev").mkdir()
        _run("uv", "pip", "install", "--quiet", "--python-version=3.11", f"--target={directory / 'pip'}", _PIP)
        (directory / "Dockerfile").write_text(
            "FROM scratch AS base\nCOPY root /\nFROM base\nCOPY pip /usr/lib/python3/dist-packages\n"
        )
        for target, tag in (("base", base), ("1", builder)):
            self.buildah("bud", "--isolation=chroot", "--quiet", f"--target={target}", f"--tag={tag}", str(directory))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Container:
    """A container of an image: `root` is where its files are."""

    def __init__(self, images: Images, name: str, root: Path) -> None:
        self.root = root
        self._images = images
        self._name = name

    def run(self, *command: str, user: str = "65532:65532") -> str:
        """Run a command in it and return what it printed; ImageError where it fails."""
        return self._images.buildah("run", "--isolation=chroot", f"--user={user}", self._name, "--", *command)


def pip_access(environment: Mapping[str, str], directory: Path) -> tuple[dict[str, Path], list[Path]]:
    """Gather how this machine's pip reaches packages, from its configuration files and `environment`.

    Returns the files that the Dockerfile takes as secrets, by id (written to `directory` where need be), and local
    directories of packages, which the build needs at the same path.
    """
    settings = _pip_files(environment)
    for name, value in environment.items():
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    certificates = [settings.get("cert", ""), *(environment.get(name, "") for name in _CERTIFICATE_VARIABLES)]
    settings = {name: value for name, value in settings.items() if name in _PIP_SETTINGS}
    secrets: dict[str, Path] = {}
    for certificate in map(Path, filter(None, certificates)):
        if certificate.is_file():
            secrets["ca-certificates"] = certificate
            settings["cert"] = SECRET_CERTIFICATES
            break
    places = settings.pop("find-links", "").split()
    directories = [Path(place) for place in places if Path(place).is_dir()]
    if links := [place for place in places if "://" in place or Path(place).is_dir()]:
        settings["find-links"] = "\n\t".join(links)
    secrets["pip-conf"] = directory / "pip.conf"
    secrets["pip-conf"].touch(mode=0o600)
    secrets["pip-conf"].write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(settings.items()))
    )
    return secrets, directories


def _pip_files(environment: Mapping[str, str]) -> dict[str, str]:
    home = Path.home()
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [_SYSTEM_PIP_CONFIG, home / ".pip/pip.conf", config / "pip/pip.conf"]
    if own := environment.get("PIP_CONFIG_FILE"):
        files.append(Path(own))
    parser = configparser.RawConfigParser()
    parser.read([path for path in files if path.is_file()])
    return dict(parser["global"]) if parser.has_section("global") else {}


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Tools print progress first and the reason last.
        said = re.sub(r"\n{2,}", "\n", f"{done.stdout}\n{done.stderr}".strip())
        raise ImageError(f"{argv[0]} failed with {done.returncode}: {said[-4000:]}")
    return done.stdout
