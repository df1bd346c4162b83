"""What is shipped for a cluster, held against a real API server, the real programs and the command line."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from devcluster.binaries import find_or_build, module_dir, program_version
from devcluster.errors import DevClusterError
from devcluster.process import Process, free_port
from tests.cluster.manifests import (
    EXAMPLES,
    EXAMPLES_NAMESPACE,
    NAMESPACE,
    OVERLAYS,
    PREFIX,
    PROJECT,
    Object,
    flags,
    named,
    objects,
    pod_templates,
    render,
    webhook_container,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from devcluster.controlplane import ControlPlane

CERT_MANAGER = ("github.com/cert-manager/cert-manager", "v1.21.2")
PROGRAM = [sys.executable, "-m", "at_least_semaphore_pod_hook"]
CONFIGURATION = "MutatingWebhookConfiguration"
ETCD_WITH_PROBES = (3, 5, 11)

pytestmark = pytest.mark.cluster


def eventually(probe: Callable[[], bool], what: Callable[[], str], timeout: float = 30.0) -> None:
    """Poll until `probe` says yes; fail with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not probe():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster that knows cert-manager's kinds; our webhook is not left registered in it."""
    crds = module_dir(*CERT_MANAGER) / "deploy/crds"
    for group in ("certificates", "issuers"):
        control_plane.kubectl("apply", "--server-side", "-f", str(crds / f"cert-manager.io_{group}.yaml"))
        # Not by `kubectl wait`, which fails as long as there is no condition at all.
        eventually(lambda: serves(control_plane, group), lambda: f"{group} are served")  # noqa: B023
    yield control_plane
    control_plane.kubectl("delete", CONFIGURATION, NAMESPACE, "--ignore-not-found")
    control_plane.kubectl("delete", "namespace", NAMESPACE, EXAMPLES_NAMESPACE, "--ignore-not-found", "--wait=false")


def serves(control_plane: ControlPlane, group: str) -> bool:
    """Say whether a kind of cert-manager's can be used."""
    return control_plane.kubectl("get", f"{group}.cert-manager.io", "--all-namespaces", check=False).returncode == 0


def apply(cluster: ControlPlane, text: str) -> None:
    """Apply as a user would: no unknown field, and no warning, be it for Pod Security or a deprecated field."""
    done = cluster.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", input=text)
    assert not done.stderr, done.stderr


def pods(cluster: ControlPlane, namespace: str) -> Counter[str]:
    """Count the pods of a namespace by the workload that they are of."""
    found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")
    return Counter(str(pod["metadata"]["generateName"]).rstrip("-") for pod in found["items"])


def expect_pods(cluster: ControlPlane, namespace: str, wanted: Mapping[str, int]) -> None:
    """Wait until controllers made these pods. A Deployment's are its ReplicaSet's, which has a hash in its name."""

    def there() -> bool:
        found: Counter[str] = Counter()
        for maker, count in pods(cluster, namespace).items():
            found[next((name for name in wanted if maker == name or re.match(f"{name}-[0-9a-z]+$", maker)), maker)] += (
                count
            )
        return found == Counter(wanted)

    def found() -> str:
        events = cluster.kubectl("get", "events", "-n", namespace, "--field-selector=type=Warning").stdout
        return f"{dict(wanted)} pods in {namespace}, but {dict(pods(cluster, namespace))}: {events}"

    eventually(there, found)


class TestOnTheAPIServer:
    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_overlay_is_applied_and_its_pods_pass_restricted(self, cluster: ControlPlane, overlay: str) -> None:
        apply(cluster, namespaces(overlay))
        cluster.kubectl("delete", "deployments,statefulsets", "--all", "-n", NAMESPACE)
        expect_pods(cluster, NAMESPACE, {})

        apply(cluster, render(overlay))

        workloads = [each for each in objects(overlay) if each["kind"] in {"Deployment", "StatefulSet"}]
        assert len(workloads) >= 2
        # Their controllers make the pods, in a namespace that enforces the level: that is the proof.
        expect_pods(cluster, NAMESPACE, {each["metadata"]["name"]: each["spec"]["replicas"] for each in workloads})
        namespace = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    def test_examples_are_applied_and_their_pods_pass_restricted(self, cluster: ControlPlane) -> None:
        # Without the webhook they are pods like others; what is theirs to pass is Pod Security.
        cluster.kubectl("delete", CONFIGURATION, NAMESPACE, "--ignore-not-found")

        # A CronJob that starts at the full minute would be a matter of luck.
        apply(cluster, yaml.safe_dump_all(each for each in objects(EXAMPLES) if each["kind"] != "CronJob"))

        expect_pods(cluster, EXAMPLES_NAMESPACE, {"reader": 2, "writer": 2, "import": 6})
        apply(cluster, render(EXAMPLES))
        (template,) = (t for name, t in pod_templates(objects(EXAMPLES)) if name.startswith("CronJob"))
        create_pod(cluster, EXAMPLES_NAMESPACE, "cron", template)

    @pytest.mark.parametrize("name", [*OVERLAYS, EXAMPLES])
    def test_every_pod_needs_its_security_context(self, cluster: ControlPlane, name: str) -> None:
        # The control: the same pods without it are refused, so that passing means something.
        cluster.kubectl("delete", CONFIGURATION, NAMESPACE, "--ignore-not-found")
        apply(cluster, namespaces(name))
        namespace = EXAMPLES_NAMESPACE if name == EXAMPLES else NAMESPACE
        for workload, template in pod_templates(objects(name)):
            naked = copy.deepcopy(template)
            container = naked["spec"]["containers"][0]
            del container["securityContext"]
            container.pop("volumeMounts", None)  # a claim's volume is the StatefulSet's to add
            with pytest.raises(DevClusterError, match="violates PodSecurity") as refused:
                create_pod(cluster, namespace, "naked", naked)
            assert "allowPrivilegeEscalation" in str(refused.value), workload


def namespaces(name: str) -> str:
    return yaml.safe_dump_all(o for o in objects(name) if o["kind"] in {"Namespace", "ServiceAccount"})


def create_pod(cluster: ControlPlane, namespace: str, name: str, template: Object, *, dry_run: bool = True) -> None:
    """Create a pod of a template; a dry run passes all of admission, and leaves nothing."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}) | {"name": name}}
    pod["spec"] = template["spec"]
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods{'?dryRun=All' if dry_run else ''}", pod)


SPEC: Object = {"containers": [{"name": "main", "image": "none"}]}
OPTED_IN: Object = {f"{PREFIX}at-least-semaphore-pod": "true"}


def asked(cluster: ControlPlane, namespace: str, annotations: Object | None) -> bool:
    """Say whether the webhook is asked about a pod: nobody answers there, so such a pod can't be created."""
    metadata = {} if annotations is None else {"annotations": annotations}
    try:
        create_pod(cluster, namespace, "asked", {"metadata": metadata, "spec": SPEC})
    except DevClusterError as error:
        # Not that it does not support dry runs: it is asked about these too.
        if re.search(r"failed calling webhook \W*mutate\.at-least-semaphore-pod-hook\.", str(error)):
            return True
        raise
    return False


@pytest.fixture(scope="class")
def registered(cluster: ControlPlane) -> Iterator[None]:
    """The configuration is registered as it is shipped, but for an address where nobody listens."""
    configuration = named("redis", CONFIGURATION, NAMESPACE)
    for webhook in configuration["webhooks"]:
        webhook["clientConfig"] = {"url": f"https://127.0.0.1:{free_port()}/mutate"}
    cluster.kubectl("delete", CONFIGURATION, NAMESPACE, "--ignore-not-found")
    apply(cluster, yaml.safe_dump(configuration))
    eventually(
        lambda: asked(cluster, "default", OPTED_IN), lambda: "the API server asks the webhook that was just registered"
    )
    yield
    cluster.kubectl("delete", CONFIGURATION, NAMESPACE)


@pytest.mark.usefixtures("registered")
class TestWhatTheWebhookIsAskedAbout:
    @pytest.mark.parametrize("value", ["true", "false", "", "yes please"])
    def test_pods_with_the_annotation_whatever_it_says(self, cluster: ControlPlane, value: str) -> None:
        assert asked(cluster, "default", {f"{PREFIX}at-least-semaphore-pod": value})

    @pytest.mark.parametrize(
        "annotations",
        [
            None,
            {},
            {"team": "blue"},
            {f"{PREFIX}key": "resource", f"{PREFIX}length": "3"},
            {f"foo.{PREFIX}at-least-semaphore-pod": "true"},
        ],
    )
    def test_not_others(self, cluster: ControlPlane, annotations: Object | None) -> None:
        assert not asked(cluster, "default", annotations)

    def test_not_in_the_clusters_own_namespace(self, cluster: ControlPlane) -> None:
        assert not asked(cluster, "kube-system", OPTED_IN)

    def test_not_in_our_own_namespace(self, cluster: ControlPlane) -> None:
        apply(cluster, namespaces("redis"))
        cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}")
        (template,) = (t for name, t in pod_templates(objects("redis")) if name.startswith("Deployment"))
        opted_in = copy.deepcopy(template)
        opted_in["metadata"].setdefault("annotations", {}).update(OPTED_IN)
        create_pod(cluster, NAMESPACE, "ours", opted_in)

    def test_not_about_changes(self, cluster: ControlPlane) -> None:
        create_pod(cluster, "default", "changed", {"spec": SPEC}, dry_run=False)
        cluster.kubectl("annotate", "pod", "changed", f"{PREFIX}at-least-semaphore-pod=true")
        cluster.kubectl("delete", "pod", "changed", "--wait=false")

    def test_not_about_ephemeral_containers(self, cluster: ControlPlane) -> None:
        # They take no permit, and join a pod that has passed us, or none of ours.
        create_pod(cluster, "default", "debugged", {"spec": SPEC}, dry_run=False)
        cluster.kubectl("annotate", "pod", "debugged", f"{PREFIX}at-least-semaphore-pod=true")
        patch = {"spec": {"ephemeralContainers": [{"name": "debugger", "image": "none"}]}}
        path = "/api/v1/namespaces/default/pods/debugged/ephemeralcontainers"
        added = cluster.request("PATCH", path, patch, "application/strategic-merge-patch+json")
        assert [each["name"] for each in added["spec"]["ephemeralContainers"]] == ["debugger"]
        cluster.kubectl("delete", "pod", "debugged", "--wait=false")


class TestTheWholeHangsTogether:
    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_flags_are_known_and_their_values_accepted(self, overlay: str) -> None:
        container = webhook_container(overlay)
        subcommand, *args = container["args"]
        assert subcommand == "webhook"
        text = subprocess.run([*PROGRAM, "webhook", "--help"], capture_output=True, text=True, check=True).stdout
        for flag in flags(args):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{flag} is not a flag of the webhook"
        joined = re.sub(r"\s+", "", text)
        for variable in container["env"]:
            assert variable["name"] in joined, f"{variable['name']} is not read by the webhook"
        # In this order the values are checked before help is given.
        done = subprocess.run([*PROGRAM, subcommand, *args, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_addresses_are_those_of_the_stores(self, overlay: str) -> None:
        given = flags(webhook_container(overlay)["args"])
        stores = {
            f"{each['metadata']['name']}-{index}.{each['spec']['serviceName']}.{NAMESPACE}.svc": each
            for each in objects(overlay)
            if each["kind"] == "StatefulSet"
            for index in range(each["spec"]["replicas"])
        }
        addresses = {
            address
            for flag in ("--queue-redis-address", "--queue-url", "--redis-addresses", "--etcd-addresses")
            for address in given.get(flag, "").removeprefix("etcd://").split(",")
            if address
        }
        assert {address.partition(":")[0] for address in addresses} == set(stores)
        for address in addresses:
            host, _, port = address.partition(":")
            service = named(overlay, "Service", stores[host]["spec"]["serviceName"])
            assert int(port) in {each["port"] for each in service["spec"]["ports"]}
        if overlay == "etcd":
            assert (given["--lock-mode"], given["--queue-url"]) == ("etcd", f"etcd://{given['--etcd-addresses']}")
        else:
            assert given["--queue-redis-address"].startswith("at-least-semaphore-pod-redis-0.")
            assert "--lock-mode" not in given

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_sidecars_run_the_webhooks_image(self, overlay: str) -> None:
        sidecar = named(overlay, "ConfigMap", "at-least-semaphore-pod-sidecar")
        assert sidecar["data"]["image"] == webhook_container(overlay)["image"]

    def test_version_is_the_projects(self) -> None:
        done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
        assert webhook_container("redis")["image"] == f"{NAMESPACE}:{done.stdout.split()[-1]}"

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_selectors_find_what_they_are_meant_for(self, overlay: str) -> None:
        templates = [template for _, template in pod_templates(objects(overlay))]

        def matched(selector: Object) -> list[Object]:
            labels = selector.get("matchLabels", selector).items()
            return [template for template in templates if labels <= template["metadata"]["labels"].items()]

        for each in objects(overlay):
            spec = each.get("spec", {})
            if each["kind"] == "Service":
                (template,) = matched(spec["selector"])
                ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
                assert {port["targetPort"] for port in spec["ports"]} <= ports
            elif each["kind"] == "PodDisruptionBudget":
                assert len(matched(spec["selector"])) == 1

    def test_without_a_certificate_manager_the_webhook_is_told_its_names(self) -> None:
        overlay = "self-managed-certificates"
        assert not [each for each in objects(overlay) if "cert-manager" in yaml.safe_dump(each)]
        given = flags(webhook_container(overlay)["args"])
        secret = given["--certificate-secret"]
        (role,) = (each for each in objects(overlay) if each["kind"] == "Role" and secret == each["metadata"]["name"])
        assert role["rules"][1]["resourceNames"] == [secret]
        # Service and configuration have the names that are the flags' defaults.
        assert named(overlay, "Service", NAMESPACE)
        assert named(overlay, CONFIGURATION, NAMESPACE)
        assert "volumes" not in named(overlay, "Deployment", NAMESPACE)["spec"]["template"]["spec"]

    @pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each != "self-managed-certificates"])
    def test_the_certificate_is_the_services_and_is_mounted(self, overlay: str) -> None:
        certificate = named(overlay, "Certificate", NAMESPACE)["spec"]
        configuration = named(overlay, CONFIGURATION, NAMESPACE)
        (webhook,) = configuration["webhooks"]
        service = webhook["clientConfig"]["service"]
        assert f"{service['name']}.{service['namespace']}.svc" in certificate["dnsNames"]
        assert configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == f"{NAMESPACE}/{NAMESPACE}"
        pod = named(overlay, "Deployment", NAMESPACE)["spec"]["template"]["spec"]
        (volume,) = pod["volumes"]
        assert volume["secret"]["secretName"] == certificate["secretName"]
        (mount,) = webhook_container(overlay)["volumeMounts"]
        text = subprocess.run([*PROGRAM, "webhook", "--help"], capture_output=True, text=True, check=True).stdout
        assert mount["mountPath"] in re.sub(r"\s+", "", text), "not where the webhook looks for it by default"

    def test_annotations_of_the_examples_are_complete(self) -> None:
        wanted = {f"{PREFIX}{name}" for name in ("at-least-semaphore-pod", "key", "length", "expiration")}
        templates = list(pod_templates(objects(EXAMPLES)))
        assert len(templates) == 4
        for workload, template in templates:
            annotations = template["metadata"]["annotations"]
            assert set(annotations) - {f"{PREFIX}when-full"} == wanted, workload
            assert annotations.get(f"{PREFIX}when-full", "gate") == "gate", workload
        shared = [t["metadata"]["annotations"] for name, t in templates if name.startswith("Deployment")]
        assert shared[0] == shared[1]


class TestTheStoresStart:
    """Real servers, with the very configuration that is shipped."""

    def test_redis_with_its_configuration(self, tmp_path: Path) -> None:
        redis = shutil.which("redis-server")
        if redis is None:
            pytest.skip("redis-server is not on PATH: its shipped configuration is not tried out")
        shipped = (PROJECT / "deploy/kustomize/components/redis/redis.conf").read_text()
        config = tmp_path / "redis.conf"
        config.write_text(shipped.replace("dir /data\n", f"dir {tmp_path}\n"))
        port = free_port()
        argv = [redis, str(config), "--port", str(port), "--bind", "127.0.0.1"]

        def ask(question: str) -> str:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(f"{question}\r\n".encode())
                return connection.recv(4096).decode()

        def ready() -> bool:
            try:
                return ask("PING") == "+PONG\r\n"
            except OSError:
                return False

        with Process("redis", argv, tmp_path / "redis.log") as server:
            server.wait_until(ready, 10)
            for name, value in (("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")):
                assert f"\r\n{value}\r\n" in ask(f"CONFIG GET {name}")

    def test_etcd_as_a_cluster_of_three(self, tmp_path: Path) -> None:
        etcd = find_or_build(["etcd"])["etcd"]
        has_probes = (program_version(etcd) or (0, 0, 0)) >= ETCD_WITH_PROBES
        spec = named("etcd", "StatefulSet", "at-least-semaphore-pod-etcd")["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        domain = next(each["value"] for each in container["env"] if each["name"] == "DOMAIN")
        # Loopback has addresses to spare: each member gets one of its own, and keeps the ports as they are.
        network = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        members = [f"{spec['serviceName']}-{index}" for index in range(spec["replicas"])]
        hosts = {member: f"{network}.{index + 10}" for index, member in enumerate(members)}

        def started(member: str) -> Process:
            line = "\0".join([str(etcd), *container["command"][1:]])
            line = line.replace("$(POD_NAME)", member).replace("$(DOMAIN)", domain)
            line = line.replace("//0.0.0.0:", f"//{hosts[member]}:").replace("/var/lib/etcd", str(tmp_path / member))
            for name, host in hosts.items():
                line = line.replace(f"{name}.{domain}", host)
            (tmp_path / member).mkdir()
            process = Process(member, line.split("\0"), tmp_path / f"{member}.log", env={})
            process.start()
            return process

        def probed(member: str, probe: str) -> bool:
            path = container[probe]["httpGet"]["path"] if has_probes else "/health"
            try:
                with urllib.request.urlopen(f"http://{hosts[member]}:2381{path}", timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        def call(member: str, method: str, body: Object) -> Any:
            data = json.dumps(body).encode()
            with urllib.request.urlopen(f"http://{hosts[member]}:2379/v3/{method}", data, timeout=5) as answer:
                return json.load(answer)

        processes: dict[str, Process] = {}
        try:
            processes = {member: started(member) for member in members}
            for member, process in processes.items():
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    process.wait_until(functools.partial(probed, member, probe), 30)
            call(members[0], "kv/put", {"key": "a2V5", "value": "dmFsdWU="})
            assert call(members[2], "kv/range", {"key": "a2V5"})["kvs"][0]["value"] == "dmFsdWU="
        finally:
            for process in processes.values():
                process.kill()
