"""What makes the product do what load alone makes it do rarely: by the call, as crash points name it."""

from __future__ import annotations

import base64
import contextlib
import random
import secrets
from collections.abc import Callable

from at_least_semaphore_pod_hook import etcd_permits
from devcluster.errors import DevClusterError
from tests.chaos.groups import Etcd
from tests.chaos.process_faults import SidecarsStopped, some_sidecars
from tests.chaos.proxy import NONE, Trouble, Way
from tests.chaos.scene import Scene
from tests.chaos.standin import StandIn
from tests.chaos.topology import Single

UNANSWERED_SECONDS = 1.3
"""Longer than some admissions wait."""
SILENT_SECONDS = 3.2
"""After its last renewal a sidecar that is stopped for so long has mostly used up half of its lease, and never all."""
EXPIRATION_SECONDS = 8

Provocation = Callable[[Scene, random.Random], None]


def _standin(scene: Scene) -> StandIn:
    assert scene.cluster.standin is not None
    return scene.cluster.standin


def drop_leases(scene: Scene, holders: str) -> None:
    """Delete the controllers' leases whose holders this text names, as who knows that these have ended may do."""
    standin = _standin(scene)

    async def drop() -> None:
        for where, lease in list(standin.leases.items()):
            if (holder := lease["spec"].get("holderIdentity")) and holder in holders:
                del standin.leases[where]

    scene.loop.run(drop())


def _remove(scene: Scene, pod: tuple[str, str]) -> None:
    """Delete a pod by force, where there is one."""
    objects = _standin(scene).objects

    async def remove() -> None:
        if found := objects.pods.get(pod):
            objects.remove(found)

    scene.loop.run(remove())


def new_epoch(scene: Scene, _rng: random.Random) -> None:
    """Have every semaphore rebuilt, though nothing is lost: Redis starts anew, etcd looks like an older copy."""
    if isinstance(scene.topology, Single):
        scene.topology.kill()
        scene.topology.revive()
    elif isinstance(scene.topology, Etcd):
        key, value = (base64.b64encode(text.encode()).decode() for text in (etcd_permits.EPOCH, secrets.token_hex(8)))
        scene.topology.post("/v3/kv/put", {"key": key, "value": value})


def unanswered(scene: Scene, rng: random.Random) -> None:
    """Leave a webhook without the store's answers, so that admissions run out of time and are undone."""
    links = rng.choice(scene.replicas).stores
    for link in links:
        link.trouble(Trouble(held=frozenset(Way)))
    scene.sleep(UNANSWERED_SECONDS)
    for link in links:
        link.trouble(NONE)


def silent_sidecars(scene: Scene, rng: random.Random) -> None:
    """Stop sidecars, so that the controller renews for their pods where the node is ready."""
    stopped = SidecarsStopped(rng)
    stopped.inject(scene)
    scene.sleep(SILENT_SECONDS)
    stopped.heal(scene)


def leaderless(scene: Scene, _rng: random.Random) -> None:
    """Kill the webhook whose controller works."""
    if leader := scene.leader():
        leader.process.process.kill()


def gone_unseen(scene: Scene, rng: random.Random) -> None:
    """Have pods end that nobody watches, without a chance to give their permits back."""
    leaderless(scene, rng)
    for where in some_sidecars(scene, rng, 3):
        with contextlib.suppress(DevClusterError):  # it has ended by itself
            scene.runner.kill_sidecar(*where)
            _remove(scene, where)


def watch_gap(scene: Scene, _rng: random.Random) -> None:
    """End the watches with 410."""
    scene.loop.run(_standin(scene).break_watches())


def reset_sidecars(scene: Scene, _rng: random.Random) -> None:
    """End the sidecars' connections."""
    for link in scene.sidecars:
        link.reset()


PROVOCATIONS: dict[str, Provocation] = {
    "webhook:store.adopt": new_epoch,
    "webhook:service.resize": new_epoch,
    "webhook:service.undo": unanswered,
    "webhook:kube.node_ready": silent_sidecars,
    "webhook:kube.create_lease": leaderless,
    "webhook:kube.get_pod": gone_unseen,
    "webhook:kube.list_pods": watch_gap,
    "webhook:kube.watch_pods": watch_gap,
    "sidecar:connection.close": reset_sidecars,
}
