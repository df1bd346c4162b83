"""What doctor makes of what it has seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from at_least_semaphore_pod_hook import cli, settings
from at_least_semaphore_pod_hook.console.doctor import certificate, registration, rights, servers, versions
from at_least_semaphore_pod_hook.console.doctor.findings import Level, error, exit_code, ok, render, warning
from at_least_semaphore_pod_hook.console.doctor.registration import ClientConfig, Registered, Requirement, Rule, Service
from at_least_semaphore_pod_hook.console.doctor.servers import Data, Seen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding

PREFIX = "at-least-semaphore-pod-hook.kaidotio.github.io/"
DAY = 86_400
SERVICE = Service("hook", "hook-system")


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: finding.level.value for finding in findings}


def test_findings_are_shown_as_table_json_or_yaml_and_errors_make_the_exit_code() -> None:
    found = [ok("a", "fine"), warning("b", "so so", "mind it"), error("c", "bad\x1b", "mend it")]
    assert [exit_code(found[:count]) for count in (0, 1, 2, 3)] == [0, 0, 0, 1]
    assert render(found, "table", colour=False).splitlines() == [
        "LEVEL     CHECK   SEEN    TO DO",
        "ok        a       fine    -",
        "warning   b       so so   mind it",
        "error     c       bad?    mend it",
    ]
    assert "\x1b[31merror" in render(found, "table", colour=True)
    expected = {"check": "b", "level": "warning", "seen": "so so", "todo": "mind it"}
    assert json.loads(render(found, "json", colour=False))["findings"][1] == expected
    assert yaml.safe_load(render(found, "yaml", colour=False))["findings"][1] == expected


SERVED = certificate.Served("a:1", "", ("hook.ns.svc",), begin=0, end=100 * DAY)


@pytest.mark.parametrize(
    ("served", "now", "found"),
    [
        (SERVED, 0, {}),
        (SERVED, 94 * DAY, {"certificate": "warning"}),
        (SERVED, 100 * DAY, {"certificate": "error"}),
        (SERVED._replace(begin=DAY), 0, {"certificate": "error"}),
        (SERVED._replace(names=("other",)), 0, {"certificate's names": "error"}),
        (SERVED._replace(names=()), 0, {"certificate's names": "error"}),
        (SERVED._replace(distrust="self-signed"), 0, {"certificate trusted": "error"}),
        (SERVED._replace(answers_strangers=True), 0, {"webhook's callers": "warning"}),
        (certificate.Served("a:1", "no answer in time"), 0, {"certificate": "error"}),
    ],
)
def test_certificates(served: certificate.Served, now: float, found: dict[str, str]) -> None:
    judged = levels(certificate.judge(served, "hook.ns.svc", now, managed=True, bundle_known=True))
    assert {check: level for check, level in judged.items() if level != "ok"} == found


def test_a_bundle_that_is_not_known_is_no_verdict() -> None:
    judged = levels(certificate.judge(SERVED, "hook.ns.svc", 0, managed=False, bundle_known=False))
    assert judged["certificate trusted"] == "warning"


def registered() -> Registered:
    expression = (
        f"has(object.metadata.annotations) &&\n  '{PREFIX}at-least-semaphore-pod' in object.metadata.annotations"
    )
    return Registered(
        "mutate",
        ClientConfig(service=SERVICE),
        [Rule(["CREATE"], ["pods"])],
        match_conditions=[registration.MatchCondition("opted-in", expression)],
        namespace_selector=registration.Selector(
            [Requirement(registration.NAMESPACE_LABEL, "NotIn", ["kube-system", "hook-system"])]
        ),
        side_effects="NoneOnDryRun",
    )


def test_a_registration_as_shipped_is_ok_and_each_change_is_told() -> None:
    assert set(levels(registration.judge(registered(), PREFIX, "hook-system")).values()) == {"ok"}
    changes = {
        "failurePolicy": ("failure_policy", "Ignore"),
        "timeoutSeconds": ("timeout_seconds", 4),
        "sideEffects": ("side_effects", "Some"),
        "matchConditions": ("match_conditions", []),
        "namespaceSelector": ("namespace_selector", registration.Selector()),
        "registration": ("rules", [Rule(["CREATE"], ["deployments"])]),
    }
    for check, (field, value) in changes.items():
        changed = registered()
        setattr(changed, field, value)
        judged = levels(registration.judge(changed, PREFIX, "hook-system"))
        wanted = "error" if check == "registration" else "warning"
        assert {check: level for check, level in judged.items() if level != "ok"} == {check: wanted}


def test_the_name_that_the_api_server_asks_for() -> None:
    assert registration.caller_name(registered()) == "hook.hook-system.svc"
    for url, name in (("https://a.b:1/mutate", "a.b"), ("https://a/mutate", "a"), ("https://[::1]:2/m", "::1")):
        assert registration.caller_name(Registered("m", ClientConfig(url=url))) == name


@pytest.mark.parametrize(
    ("behind", "level"),
    [
        (registration.Behind("", True, (443,), ("a", "b"), 0), Level.OK),
        (registration.Behind("", True, (443,), ("a",), 1), Level.WARNING),
        (registration.Behind("", True, (443,), (), 2), Level.ERROR),
        (registration.Behind("", True, (8443,), ("a", "b"), 0), Level.ERROR),
        (registration.Behind(exists=False), Level.ERROR),
        (registration.Behind("403"), Level.WARNING),
    ],
)
def test_who_is_behind_the_service(behind: registration.Behind, level: Level) -> None:
    assert [finding.level for finding in registration.judge_behind(SERVICE, behind)] == [level]


def webhook(*flags: str) -> settings.Webhook:
    parsed = cli.parse(["webhook", *flags])
    assert isinstance(parsed, settings.Webhook)
    return parsed


def test_rights_that_are_missing_matter_as_much_as_what_does_not_work_without_them() -> None:
    wanted = rights.needed(webhook(), "ns")
    everything = dict.fromkeys(wanted, True)
    nothing_more = dict.fromkeys(rights.excessive("ns"), False)
    assert set(levels(rights.judge("me", wanted, everything, nothing_more)).values()) == {"ok"}
    lost = [
        finding
        for right in wanted
        for finding in rights.judge("me", wanted, everything | {right: False}, nothing_more)
        if finding.level is not Level.OK
    ]
    assert len(lost) == len(wanted)
    assert {finding.level for finding in lost if "pods in all namespaces: no pod can wait" in finding.seen} == {
        Level.WARNING
    }
    assert {finding.level for finding in lost if "leases" in finding.seen} == {Level.ERROR}
    gating = rights.needed(webhook("--when-full=gate"), "ns")
    assert gating[rights.Right("patch", "", "pods")] == ""
    unwoken = rights.needed(webhook("--wake-owners=false"), "ns")
    assert not [right for right in unwoken if right.resource == "jobs"]
    managed = rights.needed(webhook("--certificate-secret=s"), "ns")
    assert rights.Right("patch", "", "secrets", "ns", "s") in managed


def test_rights_beyond_need_are_named_and_everything_is_one_word() -> None:
    wide = dict.fromkeys(rights.excessive("ns"), True)
    _, said = rights.judge("me", {}, {}, wide | {rights.EVERYTHING: False})
    assert "create pods/exec in all namespaces" in said.seen
    assert "list secrets in ns" in said.seen
    _, said = rights.judge("me", {}, {}, wide)
    assert (said.level, said.seen) == (Level.WARNING, "me may do everything")


@pytest.mark.parametrize(
    ("text", "native", "level"),
    [
        ("v1.34.4", True, Level.OK),
        ("v1.29.1-eks-1", True, Level.WARNING),
        ("v1.28.0", True, Level.ERROR),
        ("v1.28.0", False, Level.WARNING),
        ("", False, Level.WARNING),
    ],
)
def test_api_servers(text: str, native: bool, level: Level) -> None:
    assert versions.judge_api_server(text, native=native).level is level


def test_images_are_one() -> None:
    assert list(versions.judge_images("a:1", {})) == []
    assert levels(versions.judge_images("a:1", {"x": "a:1", "y": "a:1"})) == {"images": "ok"}
    assert levels(versions.judge_images("a:1", {"x": "a:1", "y": "a:2"})) == {"images": "warning"}


def test_data() -> None:
    assert levels(servers.judge_data("s", Data(version=1))) == {"store": "ok", "store's data": "ok"}
    assert levels(servers.judge_data("s", Data(version=0, refused="OOM"))) == {"store": "error", "store's data": "ok"}
    assert levels(servers.judge_data("s", Data("no answer"))) == {"store": "error"}


SOUND = {b"aof_enabled": b"1", b"maxmemory": b"100", b"used_memory": b"10", b"maxmemory_policy": b"noeviction"}


def said(seen: Seen, *, fails_over: bool = False, wait_replicas: int = 0) -> list[tuple[str, str]]:
    judged = servers.judge_store([seen], fails_over=fails_over, wait_replicas=wait_replicas)
    return [(finding.level.value, finding.seen) for finding in judged if finding.level is not Level.OK]


def test_servers_of_the_store() -> None:
    sound = Seen("a:1", "", "Redis 7", 0.0, open=False, tls=True, info=SOUND)
    assert said(sound) == []
    assert said(sound._replace(tls=None)) == []
    assert [level for level, _ in said(sound._replace(open=True, tls=False))] == ["warning", "warning"]
    assert said(sound._replace(ahead=-2.0)) == [("warning", "Redis 7, its clock 2.0 s behind ours")]
    evicting = SOUND | {b"maxmemory_policy": b"allkeys-lru"}
    assert [level for level, _ in said(sound._replace(info=evicting))] == ["error"]
    assert [level for level, _ in said(sound._replace(info=evicting | {b"maxmemory": b"0"}))] == ["warning"]
    assert said(sound._replace(info=SOUND | {b"used_memory": b"95"})) == [("warning", "95 % of maxmemory is used")]
    assert (
        len(said(sound._replace(info=SOUND | {b"aof_enabled": b"0", b"connected_slaves": b"0"}), fails_over=True)) == 3
    )
    assert said(Seen("a:1", "no answer in time")) == [("error", "no answer in time")]
    etcd = Seen("a:1", "", "etcd 3.5", alarms=("NOSPACE",))
    assert said(etcd) == [("error", "NOSPACE")]


def test_servers_of_the_lock() -> None:
    up = [Seen(f"{number}:1", "", "Redis 7", 0.0, open=False, tls=True) for number in range(3)]
    down = [each._replace(trouble="no answer in time") for each in up]
    assert set(levels(servers.judge_lock("redlock", up)).values()) == {"ok"}
    assert levels(servers.judge_lock("redlock", [*up[:2], down[2]]))["lock (redlock)"] == "ok"
    assert levels(servers.judge_lock("redlock", [*up[:1], *down[1:]]))["lock (redlock)"] == "error"
    assert levels(servers.judge_lock("etcd", [*up[:1], *down[1:]]))["lock (etcd)"] == "ok"
    apart = [
        *up[:2],
        up[2]._replace(ahead=0.9),
        up[2]._replace(ahead=-0.9, address="4:1"),
        up[0]._replace(address="5:1"),
    ]
    assert levels(servers.judge_lock("redlock", apart))["lock (redlock) clocks"] == "warning"
