from __future__ import annotations

import os
import subprocess
import sys

import pytest

from at_least_semaphore_pod_hook import __version__, cli, settings
from at_least_semaphore_pod_hook.addresses import Address, StoreUrl

SIDECAR = ["sidecar", "default/resource-name", "0123456789abcdef"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AT_LEAST_SEMAPHORE_") or name in {"VARIANT", "POD_NAME", "HOSTNAME"}:
            monkeypatch.delenv(name)


def webhook(*flags: str) -> settings.Webhook:
    parsed = cli.parse(["webhook", *flags])
    assert isinstance(parsed, settings.Webhook)
    return parsed


def sidecar(*flags: str) -> settings.Sidecar:
    parsed = cli.parse([*SIDECAR, *flags])
    assert isinstance(parsed, settings.Sidecar)
    return parsed


def test_the_defaults() -> None:
    parsed = webhook()
    local = Address("127.0.0.1", 6379)
    assert parsed.common == settings.Common(
        "redlock",
        (local,),
        (Address("127.0.0.1", 2379),),
        StoreUrl("redis", (local,), local),
        log_level="info",
        log_format="json",
    )
    assert (parsed.host, parsed.port) == ("0.0.0.0", 9443)
    assert parsed.cert_dir == "/var/k8s-webhook-server/serving-certs"
    assert parsed.metrics_bind_address == Address("0.0.0.0", 8080)
    assert parsed.health_probe_bind_address == Address("0.0.0.0", 8081)
    assert parsed.enable_sidecar_containers is False
    assert parsed.sidecar_image_pull_policy == "IfNotPresent"
    assert sidecar().termination_grace_period_seconds == 10
    assert (sidecar().namespace, sidecar().key, sidecar().permit) == ("default", "resource-name", "0123456789abcdef")


def test_list_flags_take_commas_and_repetition() -> None:
    parsed = webhook("--redis-addresses", "a:1,b:2", "--redis-addresses=c:3", "--etcd-addresses", "https://u:p@d:4,e:5")
    assert [str(address) for address in parsed.common.redis_addresses] == ["a:1", "b:2", "c:3"]
    assert parsed.common.etcd_addresses == (Address("d", 4, True, "u", "p"), Address("e", 5))


@pytest.mark.parametrize("flag", ["--certDir", "--cert-dir"])
def test_the_certificate_directory_has_two_names(flag: str) -> None:
    assert webhook(flag, "/certs").cert_dir == "/certs"


def test_native_sidecars_are_a_switch_that_takes_a_value() -> None:
    assert webhook("--enable-sidecar-containers").enable_sidecar_containers is True
    assert webhook("--enable-sidecar-containers=true").enable_sidecar_containers is True
    assert webhook("--enable-sidecar-containers=false").enable_sidecar_containers is False


def test_a_sidecar_gives_back_on_sigterm_and_outlasts_its_pod_unless_told_otherwise() -> None:
    assert (sidecar().release_on, sidecar().end_with_pod) == ("sigterm", False)
    assert sidecar("--release-on=exit").release_on == "exit"
    assert sidecar("--end-with-pod").end_with_pod is True
    assert sidecar("--end-with-pod=true").end_with_pod is True
    assert sidecar("--end-with-pod=false").end_with_pod is False


def test_confirm_and_fence_are_off_unless_asked_for() -> None:
    assert (webhook().confirm, webhook().confirm_port, webhook().fence) == (False, 9779, False)
    assert (sidecar().confirm_port, sidecar().fence) == (0, False)


def test_a_fence_implies_confirm() -> None:
    parsed = webhook("--fence", "--enable-sidecar-containers", "--confirm-port=7")
    assert (parsed.confirm, parsed.confirm_port, parsed.fence) == (True, 7, True)
    assert webhook("--confirm", "--enable-sidecar-containers").fence is False
    assert sidecar("--confirm-port=7", "--fence=true").fence is True


def test_confirm_and_fence_have_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CONFIRM": "true", "CONFIRM_PORT": "8", "ENABLE_SIDECAR_CONTAINERS": "true"}.items():
        monkeypatch.setenv(f"AT_LEAST_SEMAPHORE_{name}", value)
    assert (webhook().confirm, webhook().confirm_port, webhook().fence) == (True, 8, False)
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_FENCE", "true")
    assert webhook().fence is True


def test_the_environment_sets_defaults_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_LOCK_MODE", "etcd")
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_REDIS_ADDRESSES", "a:1,b:2")
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_CERT_DIR", "/certs")
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_PORT", "1234")
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_ENABLE_SIDECAR_CONTAINERS", "true")
    monkeypatch.setenv("VARIANT", "foo")
    parsed = webhook("--port=4321")
    assert parsed.common.lock_mode == "etcd"
    assert len(parsed.common.redis_addresses) == 2
    assert (parsed.cert_dir, parsed.port, parsed.enable_sidecar_containers) == ("/certs", 4321, True)
    assert parsed.variant == "foo"
    assert [str(address) for address in webhook("--redis-addresses=c:3").common.redis_addresses] == ["c:3"]


def test_the_queue_address_is_handed_on_as_given() -> None:
    url = "rediss://user:p%40ss@host:7000/2"
    parsed = webhook("--queue-redis-address", url)
    assert parsed.common.queue.server == Address("host", 7000, True, "user", "p@ss", 2)
    assert parsed.queue_flag == f"--queue-redis-address={url}"
    assert "p@ss" not in str(parsed.common.queue)


def test_the_url_of_the_store_comes_before_the_address() -> None:
    url = "redis+sentinel://a,b:1/service"
    parsed = webhook("--queue-redis-address=c:2", "--queue-url", url)
    assert (parsed.common.queue.kind, parsed.common.queue.service) == ("sentinel", "service")
    assert parsed.queue_flag == f"--queue-url={url}"


def test_sidecars_can_be_told_another_url() -> None:
    url = "redis+cluster://sidecar@a,b:1?password-file=/var/run/at-least-semaphore-pod-hook/password"
    for store in ("--queue-redis-address=c:2", "--queue-url=unix:///run/redis.sock"):
        parsed = webhook(store, "--sidecar-queue-url", url, "--sidecar-secret=store")
        assert parsed.queue_flag == f"--queue-url={url}"
        assert parsed.common.queue.kind == "redis"
        assert parsed.sidecar_secret == "store"


def test_sidecars_renew_in_the_store_unless_they_are_told_where_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook().sidecar_mode == "direct"
    assert sidecar().api is None
    monkeypatch.setenv("AT_LEAST_SEMAPHORE_PERMIT_AUTHORITIES", "PEM")
    api = sidecar("--permit-url=https://hook.ns.svc?server-name=other").api
    assert api
    assert (str(api.address), api.address.server_name, api.authorities) == ("hook.ns.svc:9444", "other", "PEM")
    assert api.token_file == "/var/run/at-least-semaphore-pod-hook/token"


def test_the_sidecar_knows_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "web-0")
    assert sidecar().pod == "web-0"
    monkeypatch.setenv("POD_NAME", "web-1")
    assert sidecar().pod == "web-1"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "webhook,sidecar"),
        (["serve"], "serve"),
        (["webhook", "--nonsense"], "--nonsense"),
        (["webhook", "--lock-mode=zookeeper"], "redlock"),
        (["webhook", "--sidecar-secret=a/b"], "use the name of a S"),
        (["webhook", "--sidecar-queue-url=a:1"], "has no scheme"),
        (["webhook", "--port=70000"], "0 to 65535"),
        (["webhook", "--port=x"], "--port"),
        (["webhook", "--redis-addresses=host"], "host:port"),
        (["webhook", "--redis-addresses=a:1,,b:2"], "--redis-addresses"),
        (["webhook", "--redis-addresses=http://a:1"], "redis://"),
        (["webhook", "--etcd-addresses=redis://a:1"], "https://"),
        (["webhook", "--queue-redis-address=redis://:secret@host:1/x"], "database number"),
        (["webhook", "--queue-url=http://:secret@host"], "redis+sentinel://"),
        (["webhook", "--enable-sidecar-containers=yes"], "true or false"),
        (["webhook", "--sidecar-image=a b"], "name:tag"),
        (["webhook", "--sidecar-memory-limit=lots"], "32Mi"),
        (["webhook", "--metrics-bind-address=x"], "host:port"),
        (["webhook", "--log-level=loud"], "warning"),
        (["webhook", "--por=1"], "--por"),
        (["webhook", "--confirm"], "--confirm needs --enable-sidecar-containers"),
        (["webhook", "--fence"], "--fence needs --enable-sidecar-containers"),
        (["webhook", "--confirm", "--enable-sidecar-containers", "--confirm-port=0"], "from 1 to 65535"),
        (["webhook", "--sidecar-mode=proxy"], "'direct', 'api'"),
        (["webhook", "--sidecar-mode=api", "--sidecar-secret=store"], "--sidecar-secret is of no use"),
        (["webhook", "--sidecar-mode=api", "--sidecar-queue-url=redis://a"], "--sidecar-queue-url is of no use"),
        *(
            ([*SIDECAR, f"--permit-url={url}"], "use https://host:port")
            for url in ("host:1", "https://me:secret@host:1", "https://host:1/2", "https://host?ca-file=f")
        ),
        ([*SIDECAR, "--permit-url=http://host:1"], "https://"),
        ([*SIDECAR, "--confirm-port=65536"], "from 0 to 65535"),
        ([*SIDECAR, "--fence"], "--fence needs --confirm-port"),
        (["sidecar"], "<namespace>/<key>"),
        (["sidecar", "nokey", "0123"], "<namespace>/<key>"),
        (["sidecar", "ns/key"], "permit"),
        (["sidecar", "ns/key", "a b"], "permit"),
        ([*SIDECAR, "--termination-grace-period-seconds=soon"], "86400"),
        ([*SIDECAR, "--release-on=sigkill"], "sigterm"),
        ([*SIDECAR, "--end-with-pod=yes"], "true or false"),
        ([*SIDECAR, "--termination-grace-period-seconds=-1"], "--termination-grace-period-seconds"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert "secret" not in error.replace("--sidecar-secret", "")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("AT_LEAST_SEMAPHORE_LOCK_MODE", "paxos", "redlock"),
        ("AT_LEAST_SEMAPHORE_PORT", "x", "variable AT_LEAST_SEMAPHORE_PORT"),
        ("AT_LEAST_SEMAPHORE_REDIS_ADDRESSES", "x", "variable AT_LEAST_SEMAPHORE_REDIS_ADDRESSES"),
        ("VARIANT", "Foo!", "VARIANT"),
    ],
)
def test_a_wrong_variable_is_one_line_too(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["webhook"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert value in error


@pytest.mark.parametrize("arguments", [["--help"], ["webhook", "--help"], ["sidecar", "--help"]])
def test_help_names_every_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    expected = {
        "--help": ["webhook", "sidecar", "--version"],
        "webhook": ["--lock-mode", "--certDir", "--sidecar-image", "AT_LEAST_SEMAPHORE_CERT_DIR", "--kubeconfig"],
        "sidecar": ["--termination-grace-period-seconds", "--queue-redis-address", "<namespace>/<key>"],
    }[arguments[0]]
    assert all(name in text for name in expected)


def test_the_module_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "at_least_semaphore_pod_hook", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"at-least-semaphore-pod-hook {__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["webhook", "--help"], [*SIDECAR[:1], "--help"]])
def test_quick_answers_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom at_least_semaphore_pod_hook.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'asyncio', 'redis', 'ssl', 'uvicorn', 'msgspec', 'logging', 'typing', 'urllib.parse'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
