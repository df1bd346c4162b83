"""Links that are troubled, and an API server that misbehaves."""

from __future__ import annotations

import itertools
import random
from typing import Any, ClassVar

from tests.chaos.fault import Fault
from tests.chaos.proxy import NONE, Link, Trouble, Way
from tests.chaos.redis_groups import Cluster, Sentinel
from tests.chaos.scene import Scene
from tests.chaos.standin import Misbehaviour, StandIn

LOST_SHARE = 0.5
"""How often what a link has held is lost, and does not arrive late."""


class OfLink(Fault):
    """Trouble on links of one sort."""

    sort = ""

    def inject(self, scene: Scene) -> None:
        self.links = _links(scene, self.sort, self.rng)
        for link in self.links:
            self.harm(link)

    def harm(self, link: Link) -> None:
        raise NotImplementedError

    def heal(self, scene: Scene) -> None:
        for link in self.links:
            link.trouble(NONE)


def _links(scene: Scene, sort: str, rng: random.Random) -> list[Link]:
    if sort in {"member", "server"}:
        # The way of everybody to one of the store's servers.
        topology = scene.topology
        port = topology.struck(rng) if isinstance(topology, Sentinel | Cluster) else rng.choice(topology.ports)
        return scene.ways(port)
    if sort == "peers":
        assert isinstance(scene.topology, Sentinel | Cluster)
        return [scene.topology.peers[scene.topology.leading(rng).port]]
    if sort == "sidecars":
        return scene.sidecars
    replicas = scene.replicas if rng.random() < 0.3 else [rng.choice(scene.replicas)]
    if sort == "store":
        return list(itertools.chain.from_iterable(replica.stores for replica in replicas))
    if sort == "api":
        return [replica.api for replica in replicas]
    return list(itertools.chain.from_iterable(replica.locks for replica in replicas))


class LinkHeld(OfLink):
    """A black hole: nothing passes, and nothing is refused."""

    seconds = (0.5, 4.0)

    def harm(self, link: Link) -> None:
        link.trouble(Trouble(held=frozenset(Way)))

    def heal(self, scene: Scene) -> None:
        # What was on its way arrives late after all, or is lost with its connection.
        if self.rng.random() < LOST_SHARE:
            for link in self.links:
                link.reset()
        super().heal(scene)


class LinkHalfOpen(LinkHeld):
    """One direction is dead."""

    def harm(self, link: Link) -> None:
        link.trouble(Trouble(held=frozenset({self.rng.choice(list(Way))})))


class LinkSlow(OfLink):
    """Everything is late, some of it by more than the rest."""

    seconds = (1.0, 3.0)

    def harm(self, link: Link) -> None:
        link.trouble(Trouble(delay=self.rng.choice([0.02, 0.1, 0.3]), jitter=self.rng.choice([0.0, 0.1, 0.4])))


class LinkReset(OfLink):
    """Connections end with a reset."""

    def inject(self, scene: Scene) -> None:
        super().inject(scene)
        for _ in range(self.rng.randint(1, 15)):
            scene.sleep(self.rng.random() * 0.15)
            for link in self.links:
                link.reset()

    def harm(self, link: Link) -> None:
        # So late that most of what a reset finds is under way.
        link.trouble(Trouble(delay=self.rng.choice([0.0, 0.02, 0.05])))


class LinkRefused(OfLink):
    """Connections are refused."""

    seconds = (0.5, 2.0)

    def harm(self, link: Link) -> None:
        link.trouble(Trouble(refused=True))


class RepliesLost(OfLink):
    """What is asked is done, and the answer is lost with the connection."""

    def harm(self, link: Link) -> None:
        link.trouble(Trouble(replies_lost=True))


class OfApi(Fault):
    """The API server misbehaves."""

    seconds = (1.0, 2.5)
    wrong: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def standin(scene: Scene) -> StandIn:
        assert scene.cluster.standin is not None
        return scene.cluster.standin

    def inject(self, scene: Scene) -> None:
        self.standin(scene).misbehaviour = Misbehaviour(**self.wrong)

    def heal(self, scene: Scene) -> None:
        self.standin(scene).misbehaviour = Misbehaviour()


class ApiForgetting(OfApi):
    """Pods are admitted and never stored."""

    name = "api: pods never stored"
    wrong: ClassVar[dict[str, Any]] = {"forgetting": 0.5}


class ApiDeaf(OfApi):
    """A gap in the watch, which a list has to close."""

    name = "api: watch gap"
    silences = ("controller",)
    wrong: ClassVar[dict[str, Any]] = {"deaf": True}

    def heal(self, scene: Scene) -> None:
        super().heal(scene)
        scene.loop.run(self.standin(scene).forget_versions())


class ApiGone(OfApi):
    """Watches end with 410, again and again."""

    name = "api: 410"

    def inject(self, scene: Scene) -> None:
        for _ in range(5):
            scene.loop.run(self.standin(scene).forget_versions())
            scene.sleep(0.15)


class ApiRepeating(OfApi):
    """Deletions are told twice, the second time late."""

    name = "api: late DELETED"
    wrong: ClassVar[dict[str, Any]] = {"repeating": True}


class ApiFailing(OfApi):
    """Requests fail with 500, half of them after they were carried out."""

    name = "api: 500"
    wrong: ClassVar[dict[str, Any]] = {"failing": 0.4}


class ApiSlow(OfApi):
    """Answers are late, and watches as well."""

    name = "api: slow"
    wrong: ClassVar[dict[str, Any]] = {"slow": 1.0, "lag": 0.3}
