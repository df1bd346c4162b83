"""The container image, built for real and looked into."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import tomllib
import warnings
from typing import TYPE_CHECKING

import pytest

import sbom
from devimage import PROJECT, SECRET_CERTIFICATES, Container, ImageError, Images, missing, pip_access

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What is added to the base: mostly bytecode and the compiled parts of uvloop.
MAX_BYTES = 90_000_000
PROGRAM = "at-least-semaphore-pod-hook"


@pytest.fixture(scope="module")
def images() -> Images:
    reason = missing()
    if reason is not None:
        warnings.warn(f"THE CONTAINER IMAGE IS NOT TESTED: {reason}", pytest.PytestWarning, stacklevel=1)
        pytest.skip(f"THE CONTAINER IMAGE IS NOT TESTED: {reason}")
    return Images()


@pytest.fixture(scope="module")
def image(images: Images) -> str:
    return images.build("test")


@pytest.fixture(scope="module")
def container(images: Images, image: str) -> Iterator[Container]:
    with images.container(image) as container:
        yield container


@pytest.mark.image
class TestTheImage:
    def test_it_answers_with_its_version(self, container: Container) -> None:
        assert container.run(PROGRAM, "--version").split()[-1] == importlib.metadata.version(PROGRAM)

    def test_every_dependency_loads(self, container: Container) -> None:
        modules = "aiohttp, hiredis, httptools, lightkube, msgspec, prometheus_client, redis, uvloop"
        container.run("/app/bin/python", "-c", f"import {modules}")
        assert "--redis-addresses" in container.run(PROGRAM, "webhook", "--help")
        assert "--termination-grace-period-seconds" in container.run(PROGRAM, "sidecar", "--help")

    def test_it_is_not_root(self, images: Images, image: str, container: Container) -> None:
        config = images.config(image)
        assert config["User"] == "65532:65532"
        assert config["Entrypoint"] == [PROGRAM]
        assert set(config["ExposedPorts"]) == {"9443/tcp", "8080/tcp", "8081/tcp"}
        uid = "import os; print(os.getuid(), os.getgid())"
        assert container.run("/app/bin/python", "-c", uid).split() == ["65532", "65532"]

    def test_it_is_small(self, container: Container) -> None:
        files = [path for path in (container.root / "app").rglob("*") if path.is_file() and not path.is_symlink()]
        assert sum(path.stat().st_size for path in files) < MAX_BYTES

    def test_it_cannot_change_itself_and_need_not(self, container: Container) -> None:
        assert container.run("find", "/app", "-writable", "-not", "-type", "l") == ""
        sources = {path for path in (container.root / "app/lib").rglob("*.py") if b"\0" not in path.read_bytes()}
        compiled = set((container.root / "app/bytecode/app/lib").rglob("*.opt-2.pyc"))
        assert len(compiled) >= len(sources) > 100
        # Unchecked: the second word of such a file is 1.
        assert {path.read_bytes()[4:8] for path in compiled} == {b"\1\0\0\0"}

    def test_nothing_of_the_build_is_left(self, container: Container) -> None:
        installed = {path.name.partition("-")[0] for path in (container.root / "app").rglob("*.dist-info")}
        assert not installed & {"pip", "hatchling", "pytest", "watchfiles"}
        assert not list((container.root / "run").rglob("pip.conf"))
        assert not (container.root / "build").exists()
        assert not (container.root / "src").exists()

    def test_what_is_installed_is_what_is_locked(self, container: Container) -> None:
        locked = re.findall(r"^([a-z0-9-]+)==(\S+)", (PROJECT / "requirements.lock").read_text(), re.MULTILINE)
        listing = "from importlib.metadata import distributions as d; [print(x.name, x.version) for x in d()]"
        installed = dict(line.split() for line in container.run("/app/bin/python", "-c", listing).splitlines())
        versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed.items()}
        assert versions.pop(PROGRAM) == importlib.metadata.version(PROGRAM)
        assert versions.items() <= dict(locked).items()

    def test_the_bill_of_materials_lists_what_is_installed(self, container: Container, tmp_path: Path) -> None:
        listing = "from importlib.metadata import distributions as d; import platform; "
        listing += "print(platform.python_version()); [print(x.name, x.version) for x in d()]"
        python, *installed = container.run("/app/bin/python", "-c", listing).splitlines()
        sbom.write(tmp_path / "sbom.json", python)
        document = json.loads((tmp_path / "sbom.json").read_text())
        listed = {(each["name"], each["version"]) for each in document["components"]}
        listed.add((PROGRAM, importlib.metadata.version(PROGRAM)))
        normal = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in map(str.split, installed)}
        assert {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in listed} == normal


@pytest.mark.image
def test_two_builds_of_a_commit_are_the_same_bit_for_bit(images: Images, image: str) -> None:
    # Nothing is cached between builds. Both stand on one base: Debian's packages are put together anew only where that
    # is missing, and a base made on another day may differ.
    again = images.build("test-again")
    assert images.layers(again) == images.layers(image)
    assert images.digest(again) == images.digest(image)


@pytest.mark.image
def test_the_dev_target_runs_what_is_synced_into_it(images: Images) -> None:
    with images.container(images.build("test-dev", target="dev")) as container:
        package = container.root / "src/at_least_semaphore_pod_hook"
        # As the file sync does it: with tar, as the container's own user.
        container.run("tar", "--version")
        container.run("sh", "-c", f"echo '__version__ = \"synced\"' > /src/{package.name}/__init__.py")
        assert container.run(PROGRAM, "--version").split()[-1] == "synced"
        container.run("watchfiles", "--version")


@pytest.mark.image
def test_a_failed_build_says_why(images: Images) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        images.build("test-failed", target="nowhere")


class TestReachingPackages:
    """How a machine's pip is set up reaches the build; what pip would do with packages does not."""

    @pytest.fixture(autouse=True)
    def nothing_of_this_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr("devimage._SYSTEM_PIP_CONFIG", tmp_path / "no-pip.conf")

    def read(self, path: Path) -> dict[str, str]:
        parser = configparser.RawConfigParser()
        parser.read(path)
        return dict(parser["global"])

    def test_from_the_environment(self, tmp_path: Path) -> None:
        certificates = tmp_path / "certificates.crt"
        certificates.touch()
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        environment = {
            "PIP_INDEX_URL": "https://user:secret%40@packages.invalid/simple",
            "PIP_CERT": str(certificates),
            "PIP_FIND_LINKS": f"{wheels} {tmp_path / 'absent'} https://links.invalid",
            "PIP_DEFAULT_TIMEOUT": "180",
            "PIP_TARGET": "/somewhere",
            "PIP_REQUIRE_VIRTUALENV": "1",
        }

        secrets, volumes = pip_access(environment, tmp_path)

        assert secrets["ca-certificates"] == certificates
        assert volumes == [wheels]
        settings = self.read(secrets["pip-conf"])
        assert settings.pop("find-links").split() == [str(wheels), "https://links.invalid"]
        assert settings == {
            "index-url": environment["PIP_INDEX_URL"],
            "default-timeout": "180",
            "cert": SECRET_CERTIFICATES,
        }
        assert secrets["pip-conf"].stat().st_mode & 0o777 == 0o600

    def test_from_configuration_files_which_the_environment_overrides(self, tmp_path: Path) -> None:
        own = tmp_path / "own.conf"
        own.write_text("[global]\nindex-url = https://file.invalid/simple\nproxy = http://proxy.invalid:3128\n")
        environment = {"PIP_CONFIG_FILE": str(own), "PIP_PROXY": "http://other.invalid:3128"}

        secrets, _ = pip_access(environment, tmp_path)

        assert self.read(secrets["pip-conf"]) == {
            "index-url": "https://file.invalid/simple",
            "proxy": "http://other.invalid:3128",
        }

    def test_where_nothing_is_set(self, tmp_path: Path) -> None:
        secrets, volumes = pip_access({"SSL_CERT_FILE": str(tmp_path / "absent")}, tmp_path)
        assert self.read(secrets["pip-conf"]) == {}
        assert "ca-certificates" not in secrets
        assert volumes == []


def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (missing() or "")


def test_the_locks_are_the_projects() -> None:
    """The images' own locks say the same as the project's files that they follow from."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    build = (PROJECT / "deploy/requirements-build.lock").read_text()
    assert all(f"{requirement} \\" in build for requirement in project["build-system"]["requires"])
    development = (PROJECT / "requirements-dev.lock").read_text()
    reload = (PROJECT / "deploy/requirements-reload.lock").read_text()
    assert re.findall(r"^watchfiles==\S+", reload, re.MULTILINE) == re.findall(
        r"^watchfiles==\S+", development, re.MULTILINE
    )
