"""The command lines of status, release and kubectl's plugin, up to where the world begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from at_least_semaphore_pod_hook import cli, commands, flags, kubectl_plugin
from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.console.beside import webhook_arguments
from at_least_semaphore_pod_hook.console.options import Doctor, Release, Status
from at_least_semaphore_pod_hook.errors import InvalidInputError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(flags.ENVIRONMENT_PREFIX) or name == "VARIANT":
            monkeypatch.delenv(name)


def read(*arguments: str) -> Status | Release:
    return commands.read(vars(cli._parser(arguments[0]).parse_args(arguments)), None)


def test_status_shows_everything_a_namespace_or_one_semaphore() -> None:
    for given, scope in (((), ("", "")), (("team-a",), ("team-a", "")), (("team-a/x.Y",), ("team-a", "x.Y"))):
        parsed = read("status", "--watch", *given)
        assert isinstance(parsed, Status)
        assert (parsed.namespace, parsed.key, parsed.watch, parsed.output) == (*scope, True, "table")


def test_release_takes_a_semaphore_and_a_permit() -> None:
    parsed = read("release", "team-a/x", "0123", "--yes", "--queue-url=etcd://a")
    assert isinstance(parsed, Release)
    assert (parsed.namespace, parsed.key, parsed.permit, parsed.yes) == ("team-a", "x", "0123", True)
    assert parsed.access.queue.kind == "etcd"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["status", "a/b/c"], "'a/b/c' is not accepted: use <namespace> or <namespace>/<key>"),
        (["status", "--interval=0.1"], "--interval: '0.1' is not accepted: use seconds from 0.2"),
        (["status", "--named=-1"], "--named"),
        (["status", "--output=xml"], "xml"),
        (["status", "--like-webhook=x"], "--like-webhook: 'x' is not accepted: use a process ID, or no value"),
        (["status", "--redis-addresses=a"], "--redis-addresses"),
        (["release", "team-a", "p"], "use <namespace>/<key>"),
        (["release", "team-a/x"], "permit"),
        (["doctor", "--service-account=b"], "--service-account: 'b' is not accepted: use <namespace>/<name>"),
        (["doctor", "--output=wide"], "wide"),
    ],
)
def test_what_is_not_accepted_is_said(given: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--queue-url=memory://"],
            "memory:// is the webhook's own memory, seen by nobody else: use its --status-page",
        ),
        (["--kubeconfig=/nowhere"], "--kubeconfig: the API server's configuration: "),
    ],
)
def test_what_cannot_be_asked_is_said(given: list[str], said: str) -> None:
    command = [sys.executable, "-m", "at_least_semaphore_pod_hook", "status", *given]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert failed.stderr.startswith(f"at-least-semaphore-pod-hook: {said}")


def test_what_people_run_by_hand_is_not_loaded_for_a_sidecar_or_a_webhook() -> None:
    code = (
        "import sys; from at_least_semaphore_pod_hook import cli;"
        "cli.parse(['sidecar', 'a/b', 'c']); cli.parse(['webhook']);"
        "assert 'at_least_semaphore_pod_hook.settings' in sys.modules;"
        "print([name for name in sys.modules if 'commands' in name or 'console' in name or 'overview' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_webhook_without_its_page_does_not_load_it() -> None:
    code = (
        "import sys; import at_least_semaphore_pod_hook.server.run;"
        "print([name for name in sys.modules if 'overview' in name or 'status_page' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def processes(directory: Path, **lines: list[str]) -> Path:
    for name, line in lines.items():
        (directory / name.strip("p")).mkdir()
        (directory / name.strip("p") / "cmdline").write_bytes("".join(f"{part}\0" for part in line).encode())
    (directory / "meminfo").touch()
    return directory


def test_the_webhook_of_the_container_is_found_by_its_command_line(tmp_path: Path) -> None:
    program = "/app/bin/at-least-semaphore-pod-hook"
    found = processes(
        tmp_path,
        p1=["watchfiles", f"{program} webhook --port=1", "/src"],
        p30=["python", "-m", "at_least_semaphore_pod_hook", "webhook", "--port=3"],
        p7=["/app/bin/python", program, "webhook", "--queue-url=etcd://a", "--fence"],
        p9=["/app/bin/python", program, "status"],
    )
    assert webhook_arguments(processes=found) == ["--queue-url=etcd://a", "--fence"]
    assert webhook_arguments("30", found) == ["--port=3"]
    with pytest.raises(InvalidInputError, match="9 is no webhook: run this in the webhook's container"):
        webhook_arguments("9", found)


def test_doctor_takes_the_flags_of_the_webhook_and_looks_for_it_on_this_machine() -> None:
    parsed = doctor("--port=1", "--lock-mode=etcd", "--service-account=a/b", "-o", "yaml")
    assert (parsed.address, parsed.webhook.common.lock_mode) == (Address("127.0.0.1", 1), "etcd")
    assert (parsed.account, parsed.namespace, parsed.output) == (("a", "b"), "", "yaml")
    assert doctor("--host=10.0.0.1").address == Address("10.0.0.1", 9443)
    assert doctor("--webhook-address=a:2").address == Address("a", 2)
    assert doctor("--kubeconfig=k").webhook.kubeconfig == "k"


def doctor(*given: str) -> Doctor:
    parsed = vars(cli._parser("doctor").parse_args(["doctor", *given]))
    return commands.read_doctor(parsed, cli._webhook(parsed))


def test_where_there_is_no_webhook_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no webhook here"):
        webhook_arguments(processes=tmp_path)


def plugin(*given: str, namespace: str = "team-a", **options: Any) -> list[str]:
    parsed = kubectl_plugin._parser().parse_intermixed_args(given)
    return kubectl_plugin.remote(parsed, namespace, colour=options.get("colour", False))


def test_the_plugin_asks_for_a_namespace_a_key_or_everything() -> None:
    own = ["at-least-semaphore-pod-hook", "status", "--like-webhook=any", "--output=table", "--color=never"]
    assert plugin("status") == [*own, "--", "team-a"]
    assert plugin("status", "x") == [*own, "--", "team-a/x"]
    assert plugin("status", "b/x") == [*own, "--", "b/x"]
    assert plugin("status", namespace="") == own
    watch = [*own[:3], "--output=json", "--color=always", "--interval=1", "--named=7", "--watch", "--", "team-a"]
    assert plugin("status", "-w", "-o", "json", "--interval=1", "--named=7", colour=True) == watch


def test_the_plugin_releases() -> None:
    own = ["at-least-semaphore-pod-hook", "release", "--like-webhook=any"]
    assert plugin("release", "x", "p") == [*own, "--", "team-a/x", "p"]
    assert plugin("release", "--yes", "b/x", "p") == [*own, "--yes", "--", "b/x", "p"]
    for given in (["release", "x"], ["status", "x", "y"], ["doctor", "x"], ["doctor", "--output=wide"]):
        with pytest.raises(ValueError, match=r"release takes|at most|doctor takes no semaphore"):
            plugin(*given)


def test_the_plugin_examines() -> None:
    own = ["at-least-semaphore-pod-hook", "doctor", "--like-webhook=any"]
    assert plugin("doctor", "-o", "yaml") == [*own, "--output=yaml", "--color=never"]
