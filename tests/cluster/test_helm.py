"""The Helm chart: what is rendered of it, beside the kustomize base."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.binaries import find_or_build
from tests.cluster.charts import CHART, EXTERNAL, helm, is_hook, one, rendered, settings, template, webhook_of
from tests.cluster.manifests import NAMESPACE, PROJECT, Object, flags

pytestmark = pytest.mark.cluster

ALL_MONITORING = tuple(f"monitoring.{name}.enabled=true" for name in ("serviceMonitor", "prometheusRule", "dashboard"))
OWN_CERTIFICATE = ("certificates.mode=secret", "certificates.secretName=own")
VALUE_SETS = {
    "default": (),
    "cert-manager": ("certificates.mode=cert-manager", *EXTERNAL),
    "issuer": ("certificates.mode=cert-manager", "certificates.issuerRef.name=ours"),
    "secret": (*OWN_CERTIFICATE, "certificates.caBundle=-----BEGIN CERTIFICATE-----"),
    "secrets-of-the-store": (
        "store.mode=external",
        "store.external.queueUrlSecret.name=store",
        "store.external.queueUrlSecret.key=url",
        "store.external.redisAddressesSecret.name=store",
        "store.external.redisAddressesSecret.key=addresses",
        "store.external.filesSecret=files",
        "store.external.sidecarSecret=sidecars",
    ),
    "etcd": (
        "store.mode=external",
        "store.lockMode=etcd",
        "store.external.queueUrl=etcd://etcd.store.svc:2379",
        "store.external.etcdAddresses={http://etcd.store.svc:2379}",
    ),
    "much": (
        *ALL_MONITORING,
        "whenFull=gate",
        "fence=true",
        "replicas=3",
        "priorityClassName=system-cluster-critical",
        "imagePullSecrets[0].name=pull",
        "tolerations[0].operator=Exists",
        "nodeSelector.zone=a",
        "podAnnotations.a=b",
        "podLabels.a=b",
        "annotations.a=b",
        "webhook.annotations.a=b",
        "webhook.namespaceSelector[0].key=semaphores",
        "webhook.namespaceSelector[0].operator=Exists",
        "store.bundled.persistence.storageClassName=fast",
        "store.bundled.persistence.retain=true",
        "podDisruptionBudget.maxUnavailable=50%",
        "extraArgs={--confirm-port=9780}",
    ),
    "direct": ("sidecar.mode=direct",),
    "little": (
        "podDisruptionBudget.enabled=false",
        "networkPolicy.enabled=false",
        "admissionPolicy.enabled=false",
        "releaseGates.enabled=false",
        "store.bundled.persistence.enabled=false",
        "variant=dev",
    ),
}


@functools.cache
def help_text() -> str:
    argv = [sys.executable, "-m", "at_least_semaphore_pod_hook", "webhook", "--help"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", str(CHART), *settings(ALL_MONITORING))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_what_is_rendered_is_whole(name: str) -> None:
    found = rendered(*VALUE_SETS[name])
    identities = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(identities)) == len(identities)
    container = webhook_of(found)
    env = {each["name"]: each.get("value", "") for each in container.get("env", ())}
    for variable in env:
        assert variable in re.sub(r"\s+", "", help_text()) or variable in {
            "VARIANT",
            "STORE_PASSWORD",
            "STORE_SIDECAR_PASSWORD",
        }
    # In this order the values are checked before help is given.
    argv = [sys.executable, "-m", "at_least_semaphore_pod_hook", *container["args"], "--help"]
    accepted = {name: value.replace("$(", "").replace(")", "") for name, value in env.items() if value}
    done = subprocess.run(argv, env=accepted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    deployment = one(found, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= labels
    assert one(found, "Service")["spec"]["selector"].items() <= labels


def test_values_reach_what_they_are_for() -> None:
    found = rendered(*VALUE_SETS["much"])
    pod = one(found, "Deployment")["spec"]["template"]
    assert (pod["metadata"]["labels"]["a"], pod["metadata"]["annotations"]["a"]) == ("b", "b")
    assert pod["spec"]["priorityClassName"] == "system-cluster-critical"
    assert pod["spec"]["nodeSelector"] == {"zone": "a"}
    given = flags(webhook_of(found)["args"])
    assert (given["--when-full"], given["--fence"], given["--confirm-port"]) == ("gate", "true", "9780")
    (webhook,) = one(found, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["namespaceSelector"]["matchExpressions"][1] == {"key": "semaphores", "operator": "Exists"}
    store = one(found, "StatefulSet", f"{NAMESPACE}-valkey")["spec"]
    assert store["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert store["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    little = rendered(*VALUE_SETS["little"])
    left_out = {"PodDisruptionBudget", "NetworkPolicy", "ValidatingAdmissionPolicy", "Job"}
    assert {each["kind"] for each in little} & left_out == set()
    (webhook,) = one(little, "MutatingWebhookConfiguration")["webhooks"]
    assert "'dev.at-least-semaphore-pod-hook.kaidotio.github.io/" in webhook["matchConditions"][0]["expression"]
    assert one(little, "Lease", "dev-at-least-semaphore-pod-hook")
    (secret,) = one(rendered(*VALUE_SETS["secret"]), "MutatingWebhookConfiguration")["webhooks"]
    assert secret["clientConfig"]["caBundle"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("replicas=0",), "at '/replicas': minimum: got 0, want 1"),
        (("replcas=3",), "additional properties 'replcas' not allowed"),
        (("whenFull=wait",), "at '/whenFull': value must be one of 'deny', 'gate'"),
        (("certificates.mode=none",), "at '/certificates/mode': value must be one of 'self-managed', 'cert-manager'"),
        (("store.external.queueUrl=http://a",), "at '/store/external/queueUrl'"),
        (("store.mode=external",), "name the store by store.external.queueUrl or store.external.queueUrlSecret"),
        (EXTERNAL[:2], "name the servers by store.external.redisAddresses or"),
        ((*EXTERNAL, "store.lockMode=etcd"), "name the members by store.external.etcdAddresses or"),
        (("store.lockMode=etcd",), "store.lockMode etcd takes store.mode external"),
        ((*EXTERNAL, "store.external.queueUrlSecret.name=a"), "exclude each other"),
        (("fence=true", "nativeSidecars=false"), "confirm and fence need nativeSidecars"),
        (("certificates.mode=secret",), "name the Secret with tls.crt and tls.key by certificates.secretName"),
    ],
)
def test_values_that_cannot_work_are_refused(values: tuple[str, ...], said: str) -> None:
    done = template(*values)
    assert done.returncode != 0
    assert said in done.stderr


OWN_LABELS = {f"app.kubernetes.io/{name}" for name in ("instance", "managed-by", "version", "part-of")} | {
    "helm.sh/chart"
}


def neutral(value: Any) -> Any:
    """Leave away what each of the two adds of its own: labels by which Helm and kustomize mark what is theirs."""
    if isinstance(value, dict):
        left = {name: neutral(each) for name, each in value.items() if name not in OWN_LABELS and each != {}}
        return {name: each for name, each in left.items() if each != {}}
    return [neutral(each) for each in value] if isinstance(value, list) else value


def shared(found: list[Object]) -> dict[tuple[str, str], Object]:
    """Return what both ways of installation have, as far as it says the same thing by the same means."""
    result = {}
    for each in copy.deepcopy(found):
        kind, name = each["kind"], each["metadata"]["name"]
        # The namespace is Helm's user's, and Helm names the sidecars' image without a ConfigMap.
        if is_hook(each) or kind in {"Namespace", "ConfigMap"}:
            continue
        each["metadata"].pop("namespace", None)
        if kind == "Deployment":
            container = each["spec"]["template"]["spec"]["containers"][0]
            container["args"] = container["env"] = []
            container["image"] = container["image"].partition(":")[0]
        # By name alone, which all have, and which not all are labelled with.
        if kind not in {"Deployment", "StatefulSet"}:
            each["metadata"].pop("labels", None)
        result[kind, name] = neutral(each)
    return result


@pytest.mark.parametrize(("mode", "components"), [("direct", ()), ("api", ("sidecar-api",))])
def test_it_is_the_kustomize_base_where_they_overlap(mode: str, components: tuple[str, ...], tmp_path: Path) -> None:
    kubectl, kustomize = find_or_build(["kubectl"])["kubectl"], PROJECT / "deploy/kustomize"
    base = os.path.relpath(kustomize / "base", tmp_path)
    added = [os.path.relpath(kustomize / "components" / name, tmp_path) for name in components]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base], "components": added}))
    done = subprocess.run([str(kubectl), "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    wanted = shared([each for each in yaml.safe_load_all(done.stdout) if each])
    values = ("certificates.mode=cert-manager", *EXTERNAL, "store.external.ports=null", f"sidecar.mode={mode}")
    chart = shared(rendered(*values))
    # A component adds rules by a role of its own.
    own_role = wanted.pop(("ClusterRole", f"{NAMESPACE}-sidecars"), {"rules": []})
    wanted.pop(("ClusterRoleBinding", f"{NAMESPACE}-sidecars"), None)
    wanted["ClusterRole", NAMESPACE]["rules"] += own_role["rules"]
    assert chart.keys() == wanted.keys()
    for identity, each in wanted.items():
        assert chart[identity] == each, identity


def test_in_api_mode_sidecars_are_told_of_no_store() -> None:
    for values in ((), VALUE_SETS["secrets-of-the-store"]):
        found = rendered(*values)
        given = flags(webhook_of(found)["args"])
        variables = {each["name"] for each in webhook_of(found).get("env", ())}
        assert given["--sidecar-mode"] == "api"
        assert not {"--sidecar-queue-url", "--sidecar-secret"} & set(given)
        assert not {"AT_LEAST_SEMAPHORE_SIDECAR_QUEUE_URL", "STORE_SIDECAR_PASSWORD"} & variables
    store = one(rendered(), "NetworkPolicy", f"{NAMESPACE}-valkey")["spec"]["ingress"]
    assert [set(source) for rule in store for source in rule["from"]] == [{"podSelector"}]


def test_flags_of_the_kustomize_base_are_among_the_charts() -> None:
    base = yaml.safe_load((PROJECT / "deploy/kustomize/base/deployment.yaml").read_text())
    wanted = flags(base["spec"]["template"]["spec"]["containers"][0]["args"])
    given = flags(webhook_of(rendered())["args"])
    assert {name: given[name] for name in wanted} == {name: value or "true" for name, value in wanted.items()}


def test_monitoring_is_what_is_shipped() -> None:
    found = rendered(*ALL_MONITORING)
    shipped = PROJECT / "deploy/monitoring"
    assert one(found, "PrometheusRule")["spec"] == yaml.safe_load((shipped / "alerts.yaml").read_text())
    dashboard = one(found, "ConfigMap", f"{NAMESPACE}-dashboard")
    assert json.loads(dashboard["data"][f"{NAMESPACE}.json"]) == json.loads((shipped / "dashboard.json").read_text())
    selector = one(found, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [each["metadata"] for each in found if each["kind"] == "Service"]
    assert [each["name"] for each in services if selector.items() <= each["labels"].items()] == [f"{NAMESPACE}-metrics"]


def test_alerts_fire_on_what_they_are_for() -> None:
    promtool = str(find_or_build(["promtool"])["promtool"])
    for arguments in (["check", "rules", "--lint-fatal", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *arguments],
            cwd=PROJECT / "deploy/monitoring",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
