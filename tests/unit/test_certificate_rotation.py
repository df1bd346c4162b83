"""Rotation of a self-managed certificate: replicas in any order, held up, killed, and what others spoil."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.certificates import issue
from at_least_semaphore_pod_hook.certificates.decide import Contents, Pair, Seen, Step, decide, kept, serves
from at_least_semaphore_pod_hook.certificates.manager import Manager, Observed, Settings
from at_least_semaphore_pod_hook.certificates.objects import ConfigurationView, SecretView
from at_least_semaphore_pod_hook.server.certificates import new_context, take_up

DAY = 86_400.0
NOW = 1_000_000_000.0
SETTLE, TICK, LAG = 10.0, 2.0, 5.0
WANTED = Settings(("hook.space.svc", "hook"), 90 * DAY, SETTLE)
PAIRS = [issue.issue(WANTED.names, WANTED.lifetime_seconds, NOW) for _ in range(2)]
REPLICAS = 3


class World:
    """An API server, its clock, and what its webhook clients have trusted of late."""

    def __init__(self) -> None:
        self.time = 0.0
        self.version = 0
        self.secret: dict[str, bytes] | None = None
        self.secret_version = ""
        self.asked = False
        self.bundle_version = "0"
        self.bundle = b""
        self.past: list[tuple[float, bytes]] = []
        """Bundles that were replaced, each with when."""

    def next(self) -> str:
        self.version += 1
        return str(self.version)

    async def get_secret(self) -> SecretView | None:
        return None if self.secret is None else SecretView(self.secret_version, "u", dict(self.secret), self.asked)

    async def write_secret(self, version: str | None, data: Mapping[str, bytes | None]) -> bool:
        if version != (None if self.secret is None else self.secret_version):
            return False
        merged = {**(self.secret or {}), **data}
        self.spoil({name: value for name, value in merged.items() if value is not None})
        return True

    def spoil(self, data: dict[str, bytes] | None) -> None:
        self.secret, self.asked = data, False
        self.secret_version = self.next()

    async def get_configuration(self) -> ConfigurationView:
        return ConfigurationView(self.bundle_version, {"hook": self.bundle})

    async def write_bundle(self, version: str, webhooks: Sequence[str], bundle: bytes) -> bool:
        if version != self.bundle_version:
            return False
        self.past.append((self.time, self.bundle))
        self.bundle, self.bundle_version = bundle, self.next()
        return True

    def trusts(self, pair: Pair) -> bool:
        """Whether every API server does, also one that is behind."""
        recent = [bundle for until, bundle in self.past if until > self.time - LAG]
        return all(pair.authority.pem.encode() in bundle for bundle in [*recent, self.bundle])


class Replica:
    """A manager, what it serves, and what it had read when it was held up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rotations = self.mended = 0
        self.held: Observed | None = None
        self.since: float | None = None
        self.manager = Manager(world, WANTED, self, clock=lambda: world.time, wall_clock=lambda: NOW + world.time)

    def serve(self, pair: Pair) -> None:
        self.since = self.world.time if self.since is None else self.since

    def known(self, authorities: bytes) -> None:
        self.authorities = authorities

    def trusted(self, yes: bool) -> None:
        pass

    def rotated(self) -> None:
        self.rotations += 1

    def replaced(self, secret: SecretView) -> None:
        self.mended += 1

    async def look(self) -> None:
        held, self.held = self.held, None
        await self.manager.act(held or await self.manager.observe())

    async def hold_up(self) -> None:
        self.held = await self.manager.observe()


async def advance(world: World, replicas: list[Replica], ticks: int, *, checked: bool = True) -> None:
    for _ in range(ticks):
        world.time += TICK
        for replica in replicas:
            await replica.look()
            if checked:
                check(world, replicas)


def check(world: World, replicas: list[Replica]) -> None:
    for replica in replicas:
        pair = replica.manager.serving
        # One that has only just started serves as soon as it is trusted at all: it is not asked before it is ready.
        if pair and replica.since is not None and world.time - replica.since > LAG:
            assert world.trusts(pair)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["look", "hold up", "kill", "rotate", "spoil", "delete", "tick"]), st.integers(0, 2)),
    max_size=40,
)


@settings(max_examples=15, deadline=None)
@given(ACTIONS)
def test_whatever_is_served_is_trusted_by_every_api_server(actions: list[tuple[str, int]]) -> None:
    async def go() -> None:
        world = World()
        replicas = [Replica(world) for _ in range(REPLICAS)]
        await advance(world, replicas, 10)
        for action, number in actions:
            if action == "look":
                await replicas[number].look()
            elif action == "hold up":
                await replicas[number].hold_up()
            elif action == "kill":
                replicas[number] = Replica(world)
            elif action == "rotate":
                world.asked = world.secret is not None
                world.secret_version = world.next()
            elif action == "spoil":
                world.spoil({"tls.crt": b"rubbish", "ca.crt": b"rubbish"})
            elif action == "delete":
                world.spoil(None)
            else:
                await advance(world, replicas, number + 1)
            check(world, replicas)
        await advance(world, replicas, 80)
        assert world.secret is not None
        assert "next-tls.crt" not in world.secret
        assert world.bundle == world.secret["ca.crt"]
        assert world.bundle.count(b"BEGIN") == 1
        assert {replica.manager.serving and replica.manager.serving.certificate for replica in replicas} == {
            world.secret["tls.crt"]
        }

    asyncio.run(go())


async def test_replicas_that_start_together_agree_on_one_certificate() -> None:
    world = World()
    replicas = [Replica(world) for _ in range(REPLICAS)]
    for replica in replicas:
        await replica.hold_up()
    await advance(world, replicas, 3)
    assert sum(replica.rotations for replica in replicas) == 1
    assert len({replica.manager.serving for replica in replicas}) == 1


async def test_it_is_renewed_when_two_thirds_of_its_life_are_over() -> None:
    world = World()
    replica = Replica(world)
    await advance(world, [replica], 3)
    first = replica.manager.serving
    world.time = 59 * DAY
    await advance(world, [replica], 80)
    assert replica.manager.serving == first
    world.time = 61 * DAY
    await advance(world, [replica], 80)
    assert replica.manager.serving not in {None, first}
    assert (replica.rotations, replica.mended) == (2, 0)


async def test_an_overwritten_bundle_is_restored_by_the_next_look() -> None:
    world = World()
    replica = Replica(world)
    await advance(world, [replica], 3)
    before = world.bundle
    for overwritten in (b"", PAIRS[0].authority.pem.encode()):
        await world.write_bundle(world.bundle_version, ["hook"], overwritten)
        await advance(world, [replica], 1, checked=False)
        assert world.bundle == before


@pytest.mark.parametrize("entry", ["tls.crt", "tls.key", "ca.crt"])
async def test_a_spoilt_secret_is_replaced_while_what_is_served_stays_trusted(entry: str) -> None:
    world = World()
    replica = Replica(world)
    await advance(world, [replica], 10)
    before, data = replica.manager.serving, dict(world.secret or {})
    world.spoil({**data, entry: b"rubbish"})
    await advance(world, [replica], 2)
    assert replica.manager.serving == before
    assert before
    assert replica.mended == 1
    await advance(world, [replica], 40)
    assert replica.manager.serving != before
    assert before.authority.pem.encode() not in world.bundle


def test_a_pair_is_served_only_where_it_is_trusted_and_its_predecessor_not_needed() -> None:
    old, new = PAIRS
    trusted = {old.authority.pem: 60.0, new.authority.pem: 9.0}
    assert not serves(new, old, NOW, trusted, SETTLE)
    assert serves(new, old, NOW, {**trusted, new.authority.pem: 10.0}, SETTLE)
    assert serves(new, None, NOW, trusted, SETTLE)
    assert serves(new, old, NOW, {new.authority.pem: 0.0}, SETTLE)
    assert not serves(new, None, NOW, {old.authority.pem: 60.0}, SETTLE)
    assert not serves(new, None, NOW + 91 * DAY, trusted, SETTLE)
    assert not serves(new, None, NOW - DAY, trusted, SETTLE)


def test_steps() -> None:
    old, new = PAIRS
    both = (old.authority, new.authority)
    steady, staged = Contents(old, None, both[:1]), Contents(old, new, both)
    trusted = {old.authority.pem: 99.0, new.authority.pem: 9.0}
    assert decide(None, False, NOW, {}, 0, SETTLE) is Step.REPLACE
    assert decide(steady, False, NOW, {}, 0, SETTLE) is Step.TRUST
    assert decide(steady, True, NOW, trusted, 0, SETTLE) is Step.NONE
    assert decide(steady._replace(asked=True), True, NOW, trusted, 0, SETTLE) is Step.STAGE
    assert decide(staged, True, NOW, trusted, 0, SETTLE) is Step.NONE
    assert decide(staged, True, NOW, {**trusted, new.authority.pem: 10.0}, 0, SETTLE) is Step.PROMOTE
    promoted = Contents(new, None, both)
    assert decide(promoted, True, NOW, trusted, 19, SETTLE) is Step.NONE
    assert decide(promoted, True, NOW, trusted, 20, SETTLE) is Step.RETIRE
    assert decide(Contents(None, new, both), False, NOW, {}, 0, SETTLE) is Step.PROMOTE
    assert decide(staged, True, NOW + 91 * DAY, trusted, 0, SETTLE) is Step.REPLACE


def test_what_was_not_looked_at_for_long_is_seen_anew() -> None:
    seen = Seen(5)
    assert seen.look(["a"], 100) == {"a": 0}
    assert seen.look(["a", "b"], 104) == {"a": 4, "b": 0}
    assert seen.look(["a"], 110) == {"a": 0}


def test_authorities_that_have_ended_are_dropped() -> None:
    authorities = [pair.authority for pair in PAIRS]
    assert kept([*authorities, *authorities], NOW) == tuple(authorities)
    assert kept(authorities, NOW + 91 * DAY) == ()


def test_a_client_that_trusts_the_authority_alone_accepts_the_server_by_all_its_names() -> None:
    pair = issue.issue(WANTED.names, 90 * DAY, time.time())
    server = new_context()
    take_up((server,), pair.certificate, pair.key)
    client = ssl.create_default_context(cadata=pair.authority.pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in WANTED.names:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(down, up, server_hostname=name),
            server.wrap_bio(up, down, server_side=True),
        ]
        for _ in range(3):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert ends[0].getpeercert()


def test_no_key_is_shown() -> None:
    (pair, _) = PAIRS
    assert pair.key.decode() not in repr(pair)
    assert "secret" not in repr(SecretView("1", "u", {"tls.key": b"secret"}))
