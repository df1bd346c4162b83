"""The checker is quiet about the product, and notices each way in which the product can be broken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import pytest

from at_least_semaphore_pod_hook.addresses import Address
from devcluster.stores import RedisServer
from tests.chaos.checker import RULES, Violation, check, check_final
from tests.chaos.holds import Expectation
from tests.chaos.linearizable import Verdict, judge
from tests.chaos.restored import RestoredCopy
from tests.chaos.variants import PROFILES, RESTORED, RESTORED_VARIANTS, VARIANTS, Variant
from tests.chaos.workers import Load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.history import Operation

SEEDS = range(6)
EXPECTATION = Expectation(late=0.0)
"""An answer that `Faults` loses is one to a call that has been applied: nothing is applied later."""

ADDRESS = "127.0.0.1"
# Those that show in answers alone, whatever the time is.
UNTIMED = ("full with one free", "granted under a held name", "release by another pod", "resumed although confirmed")


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    yield from _server(tmp_path_factory, "redis")


@pytest.fixture(scope="module")
def valkey_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    yield from _server(tmp_path_factory, "valkey")


def _server(directories: pytest.TempPathFactory, kind: Literal["redis", "valkey"]) -> Iterator[Address]:
    with RedisServer(directories.mktemp(kind), prefer=kind) as server:
        assert server.kind == kind
        yield Address(ADDRESS, server.port)


async def _run(load: Load) -> tuple[list[Operation], list[Violation]]:
    operations, finals = await load.run()
    violations = check(operations, EXPECTATION)
    if not load.profile.vanish:
        # What has vanished is held until its lease ends.
        violations += [violation for final in finals for violation in check_final(final, operations)]
    return operations, violations


def _told(violations: list[Violation]) -> str:
    return "\n".join(map(str, violations))


# Valkey runs the same scripts: there it is enough that they answer alike, in a crowd and as time passes.
@pytest.mark.parametrize(
    ("kind", "profile"), [*(("redis", profile) for profile in PROFILES), ("valkey", "crowd"), ("valkey", "expiry")]
)
async def test_product_breaks_no_rule(kind: str, profile: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(f"{kind}_address")
    loads = [Load(address, f"product-{profile}-{seed}", PROFILES[profile], seed) for seed in SEEDS]
    for operations, violations in await asyncio.gather(*map(_run, loads)):
        assert not violations, _told(violations)
        outcomes = {operation.result.get("outcome") for operation in operations}
        assert {"granted", "full"} <= outcomes, "the load did not fill the semaphores"


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
async def test_variant_is_noticed(variant: Variant, redis_address: Address) -> None:
    assert variant.rules <= {*RULES, "final"}
    for seed in SEEDS:
        _, violations = await _run(variant.load(redis_address, seed))
        if variant.rules & {violation.rule for violation in violations}:
            return
    pytest.fail(f"not noticed with any seed; noticed instead: {_told(violations)}")


async def _run_restored(fault: RestoredCopy, load: Load) -> tuple[list[Operation], set[str]]:
    operations, _ = await load.run()
    return operations, {violation.rule for violation in check(operations, fault.expectation(operations))}


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


async def test_product_keeps_the_length_over_a_restored_copy(mortal_server: RedisServer) -> None:
    address = Address(ADDRESS, mortal_server.port)
    put_back = 0
    for seed in SEEDS[:3]:
        fault = RestoredCopy(mortal_server)
        operations, rules = await _run_restored(fault, Load(address, f"restored-{seed}", RESTORED, seed, fault=fault))
        assert not rules, _told(check(operations, fault.expectation(operations)))
        put_back += sum(o.result.get("count", 0) for o in operations if o.kind == "adopt")
    assert put_back, "nobody had to be put back with any seed"


@pytest.mark.parametrize("variant", RESTORED_VARIANTS, ids=[variant.name for variant in RESTORED_VARIANTS])
async def test_variant_is_noticed_over_a_restored_copy(variant: Variant, mortal_server: RedisServer) -> None:
    for seed in SEEDS:
        fault = RestoredCopy(mortal_server)
        load = variant.load(Address(ADDRESS, mortal_server.port), seed, fault)
        if variant.rules & (await _run_restored(fault, load))[1]:
            return
    pytest.fail("not noticed with any seed")


@pytest.mark.parametrize("profile", ["crowd", "draining"])
async def test_product_is_linearizable(profile: str, redis_address: Address) -> None:
    loads = [Load(redis_address, f"order-{profile}-{seed}", PROFILES[profile], seed) for seed in SEEDS]
    for operations, _ in await asyncio.gather(*(load.run() for load in loads)):
        for judgement in judge(operations, EXPECTATION):
            assert judgement.verdict is Verdict.LINEARIZABLE, judgement


@pytest.mark.parametrize("name", UNTIMED)
async def test_variant_is_not_linearizable(name: str, redis_address: Address) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    verdicts = set()
    for seed in SEEDS:
        operations, _ = await variant.load(redis_address, 100 + seed).run()
        verdicts |= {judgement.verdict for judgement in judge(operations, EXPECTATION)}
        if Verdict.NOT in verdicts:
            return
    pytest.fail(f"only {verdicts}")
