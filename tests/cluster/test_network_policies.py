"""The shipped NetworkPolicies let everybody reach what he needs, and nothing else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from devcluster.binaries import find_or_build
from tests.cluster.charts import EXTERNAL, rendered
from tests.cluster.gating import LABEL
from tests.cluster.manifests import NAMESPACE, OVERLAYS, PROJECT, objects
from tests.cluster.policies import Place, Policies, places

if TYPE_CHECKING:
    from tests.cluster.manifests import Object

pytestmark = pytest.mark.cluster

TENANT = "team-a"
API_SERVER = Place("API server", ports=(("api", 6443),))
SIDECAR = Place("sidecar", TENANT, ((LABEL, "database"),))
SCRAPER = Place("scraper", "monitoring")
STRANGERS = (SCRAPER, Place("stranger", TENANT), Place("stranger at home", NAMESPACE))
SERVES_ALL, PERMITS, METRICS, HEALTH = 9443, 9444, 8080, 8081
"""Who asks the webhook is no pod, so everybody may; probes come from the node, which no policy keeps out."""
API = 6443


def expected(pods: list[Place], store: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Return what all ways of installation need, besides the ways to the store."""
    # Who has a policy that says what he may reach, and that does not let him reach just anything.
    confined = {"sidecar", *(pod.name for pod in pods if pod.namespace == NAMESPACE)} - {"release-gates"}
    free = {place.name for place in (API_SERVER, *STRANGERS, *pods)} - confined
    needed = {(name, "webhook", SERVES_ALL) for name in free}
    needed |= {(name, "webhook", METRICS) for name in free - {API_SERVER.name}}
    # To the API server from whom no policy confines, and from the webhook.
    return needed | store | {(name, API_SERVER.name, API) for name in {*free, "webhook"} - {API_SERVER.name}}


def flows(found: list[Object]) -> tuple[set[tuple[str, str, int]], list[Place]]:
    pods = list(places(found, NAMESPACE))
    served = {(pod.name.partition("-")[0], port) for pod in pods for _, port in pod.ports}
    known = {("webhook", port) for port in (SERVES_ALL, PERMITS, METRICS, HEALTH)}
    known |= {("redis", 6379), ("valkey", 6379), ("etcd", 2379), ("etcd", 2380), ("etcd", 2381)}
    assert served <= known, "a port is served that nobody has thought of"
    return Policies(found, NAMESPACE).flows([API_SERVER, SIDECAR, *STRANGERS, *pods]), pods


def tenant(asked: str) -> list[Object]:
    """Return what a tenant applies in his namespace."""
    kubectl = find_or_build(["kubectl"])["kubectl"]
    argv = [str(kubectl), "kustomize", str(PROJECT / "deploy/kustomize/tenant" / asked)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    for each in found:
        each["metadata"]["namespace"] = TENANT
    return found


REDIS = {
    ("sidecar", "redis-0", 6379),
    *(("webhook", f"redis-{number}", 6379) for number in range(3)),
}
ETCD = {
    *((who, f"etcd-{number}", 2379) for who in ("webhook", "sidecar") for number in range(3)),
    *((f"etcd-{one}", f"etcd-{other}", 2380) for one in range(3) for other in range(3) if one != other),
}
VALKEY = {("webhook", "valkey-0", 6379), ("sidecar", "valkey-0", 6379)}


def by_the_webhook(store: set[tuple[str, str, int]], *pods: Place) -> set[tuple[str, str, int]]:
    """Return the ways to the store where sidecars renew at the webhook, and those to there."""
    # Everybody may: a sidecar with its node's network has an address that is no pod's.
    everybody = {place.name for place in (API_SERVER, SIDECAR, *STRANGERS)}
    everybody |= {pod.name for pod in pods} & {"release-gates"}
    return {way for way in store if way[0] != "sidecar"} | {(name, "webhook", PERMITS) for name in everybody}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize(overlay: str) -> None:
    asked = overlay if overlay in {"etcd", "sidecar-api"} else "redis"
    seen, pods = flows([*objects(overlay), *tenant(asked)])
    store = ETCD if overlay == "etcd" else REDIS
    assert seen == expected(pods, by_the_webhook(store, *pods) if overlay == "sidecar-api" else store)


def test_chart() -> None:
    seen, pods = flows(rendered(f"networkPolicy.tenantNamespaces={{{TENANT}}}"))
    assert seen == expected(pods, by_the_webhook(VALKEY, *pods))


def test_chart_with_sidecars_that_ask_the_store() -> None:
    seen, pods = flows(rendered("sidecar.mode=direct", f"networkPolicy.tenantNamespaces={{{TENANT}}}"))
    assert seen == expected(pods, VALKEY)


def test_chart_with_a_store_of_ones_own() -> None:
    own = Place("store", "databases", ports=(("redis", 6379), ("other", 5432)))
    values = (*EXTERNAL, "sidecar.mode=direct", f"networkPolicy.tenantNamespaces={{{TENANT}}}")
    pods = [*places(found := rendered(*values), NAMESPACE), own]
    seen = Policies(found, NAMESPACE).flows([SIDECAR, *pods])
    assert {flow for flow in seen if flow[1] == "store" and flow[0] in {"webhook", "sidecar"}} == {
        ("webhook", "store", 6379),
        ("sidecar", "store", 6379),
    }


def test_a_sidecar_of_a_namespace_without_policies_reaches_the_store() -> None:
    seen, _ = flows(objects("redis"))
    assert ("sidecar", "redis-0", 6379) in seen
    assert ("stranger", "redis-0", 6379) not in seen


def test_a_variants_sidecars_reach_its_store() -> None:
    other = SIDECAR._replace(labels=((f"dev.{LABEL}", "database"),))
    found = rendered("variant=dev", "networkPolicy.enabled=true", "sidecar.mode=direct")
    seen = Policies(found, NAMESPACE).flows([other, *places(found, NAMESPACE)])
    assert ("sidecar", "valkey-0", 6379) in seen
    assert ("sidecar", "webhook", HEALTH) not in seen
