"""The product broken on purpose, in one way each: what the checker has to notice.

A variant of a script is a substitution in the shipped text, so that it differs from the product in nothing else, and
nobody has to keep it up to date: one whose text is not there any more fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from at_least_semaphore_pod_hook.addresses import Address
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.semaphore.contracts import Store
from at_least_semaphore_pod_hook.semaphore.model import Acquired, AcquireRequest, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import Admitted, SemaphoreService
from at_least_semaphore_pod_hook.stores.redis.batcher import Script
from at_least_semaphore_pod_hook.stores.redis.store import RedisStore, open_redis_store
from tests.chaos.workers import Fault, Load, MakeService, Profile, surveying_service

CLIENT = "CLIENT"
"""Stands for a client's number in a substituted text."""

CROWD = Profile(lengths=(3, 2, 4), meddle=0.3, carry=0.3, resize=0.05, sweep=0.1, delay_seconds=0.002)
DRAINING = Profile(semaphores=2, lengths=(5, 2), hold_seconds=0.03, resize=0.15, delay_seconds=0.004)
EXPIRY = Profile(seconds=2.4, lengths=(2,), lease_seconds=1, hold_seconds=0.05, vanish=0.2, pause=0.2)
REVIVING = EXPIRY._replace(clients=14, semaphores=3, lengths=(3, 1), vanish=0.0, pause=0.7, resize=0.02)
STALE = DRAINING._replace(semaphores=1, resize=0.5)
NAMES = Profile(lengths=(4,), hold_seconds=0.04, meddle=0.7, delay_seconds=0.002)
LOSSY = Profile(seconds=0.4, lengths=(3,), lose=0.1, delay_seconds=0.002, stay=0.5)
RESTORED = Profile(seconds=1.0, lengths=(3,), hold_seconds=0.6, ask_length=True)
PROFILES = {
    "crowd": CROWD,
    "draining": DRAINING,
    "stale": STALE,
    "names": NAMES,
    "expiry": EXPIRY,
    "reviving": REVIVING,
    "lossy": LOSSY,
}

Substitution = tuple[str, str, str]
"""The name of a script, what stands there, and what is to stand there."""


class VariedStore(RedisStore):
    """A store that runs other scripts than the shipped ones.

    Args:
        address: The server.
        number: The client's.
        substitutions: What differs.
    """

    def __init__(self, address: Address, number: int, substitutions: Sequence[Substitution]) -> None:
        super().__init__(open_redis_store(address)._caller)
        shipped = self._caller.call

        async def call(script: Script, *arguments: Any) -> Any:
            text = script.text
            for name, old, new in substitutions:
                if name == script.name:
                    if old not in text:
                        raise AssertionError(f"{name}.lua has no such text: {old}")
                    text = text.replace(old, new.replace(CLIENT, str(number)))
            return await shipped(Script.of(script.name, text, epoch=script.epoch, grants=script.grants), *arguments)

        self._caller.call = call  # type: ignore[method-assign,assignment]


class TwoSteps(VariedStore):
    """Counts in one step and adds in another."""

    async def acquire(self, request: AcquireRequest, timeout: float | None = None) -> Acquired:
        counted = await super().acquire(request._replace(dry_run=True), timeout)
        if counted.outcome is not Outcome.GRANTED:
            return counted
        await asyncio.sleep(0.001)
        return await super().acquire(request, timeout)


class RetriedUnderAnotherName(SemaphoreService):
    """Asks for another permit where an answer was lost."""

    async def acquire(self, request: AcquireRequest, timeout: float) -> Admitted:
        try:
            return Admitted(await self._store.acquire(request, timeout))
        except StoreUnavailableError:
            return Admitted(await self._store.acquire(request._replace(permit=f"{request.permit}-again"), timeout))


class NotUndone(SemaphoreService):
    """Leaves a permit alone whose acquire may have been applied."""

    def give_back(self, key: SemaphoreKey, permit: str) -> None:
        pass


class Variant(NamedTuple):
    """One way in which the product is broken.

    Attributes:
        name: In words.
        profile: The load under which it shows.
        rules: The rules that must notice it, any of them.
        substitutions: What differs in the scripts.
        store: What makes a client's store from address, number and substitutions.
        service: What makes a client's service.
    """

    name: str
    profile: Profile
    rules: frozenset[str]
    substitutions: tuple[Substitution, ...] = ()
    store: Callable[[Address, int, Sequence[Substitution]], Store] = VariedStore
    service: MakeService = surveying_service

    def load(self, address: Address, seed: int, fault: Fault | None = None) -> Load:
        """Make a load of the product as it is broken."""
        return Load(
            address,
            f"{self.name.replace(' ', '-')}-{seed}",
            self.profile,
            seed,
            lambda where, number: self.store(where, number, self.substitutions),
            self.service,
            fault,
        )


def _without_survey(service: type[SemaphoreService]) -> MakeService:
    """Make services that ask nobody which pods live."""
    return lambda store, lock, _survey: service(store, lock)


def _scripts(name: str, profile: Profile, rules: str, *substitutions: Substitution) -> Variant:
    return Variant(name, profile, frozenset(rules.split()), substitutions)


_CLOCK = "redis.call('TIME')"
_SKEWED = f"(function() local t = redis.call('TIME') return {{t[1] + 30 * {CLIENT}, t[2]}} end)()"
_TOKEN = "math.max(tonumber(stored[2] or '0') + 1, clock[1] * 1000000 + clock[2])"
_IS_FULL = "if held >= length or own then"

VARIANTS = (
    Variant(
        "count and add in two steps",
        CROWD,
        frozenset({"never_above_length"}),
        (("acquire", _IS_FULL, "if (dry_run and held >= length) or own then"),),
        store=TwoSteps,
    ),
    _scripts(
        "client clocks",
        CROWD,
        "never_above_length",
        *((script, _CLOCK, _SKEWED) for script in ("acquire", "renew", "reclaim")),
    ),
    _scripts(
        "release pops any permit",
        CROWD,
        "never_above_length held_is_renewed",
        (
            "release",
            "redis.call('ZREM', KEYS[2], ARGV[1]) == 1",
            "#redis.call('ZPOPMIN', KEYS[2]) == 2",
        ),
    ),
    _scripts(
        "release gives nothing back",
        CROWD,
        "full_is_full released_is_over",
        (
            "release",
            "redis.call('ZREM', KEYS[2], ARGV[1]) == 1",
            "redis.call('ZSCORE', KEYS[2], ARGV[1])",
        ),
    ),
    _scripts(
        "late renewal brings a released permit back",
        CROWD,
        "released_is_over",
        ("release", "redis.call('HDEL', KEYS[3], ARGV[1])", ""),
        ("renew", "if not stored or not lease_end then", "lease_end = lease_end or '+inf'\nif not stored then"),
        ("renew", "'XX', ", ""),
    ),
    _scripts(
        "stale step writes",
        STALE,
        "stale_steps_are_refused",
        ("set_length", "if tonumber(ARGV[2]) ~= newest then", "if false then"),
    ),
    _scripts("constant token", CROWD, "tokens_are_unique tokens_rise", ("acquire", _TOKEN, "7")),
    _scripts("counter starts anew", CROWD, "tokens_rise", ("acquire", _TOKEN, "tonumber(stored[2] or '0') % 9 + 1")),
    _scripts(
        "token by client clock",
        CROWD,
        "tokens_rise",
        ("acquire", _TOKEN, f"clock[1] * 1000000 + clock[2] - 50000 * {CLIENT}"),
    ),
    _scripts(
        "resumed under a new token",
        CROWD,
        "resumed_tokens",
        ("acquire", "ARGV[2], carried.token", "ARGV[2], string.format('%.0f', clock[1] * 1000000 + clock[2])"),
    ),
    _scripts(
        "expired counts as held",
        EXPIRY,
        "full_is_full",
        ("acquire", "local expired = redis.call('ZCOUNT', KEYS[2], '-inf', now)", "local expired = 0"),
    ),
    _scripts(
        "unexpired counts as free",
        EXPIRY,
        "never_above_length",
        (
            "acquire",
            "local expired = redis.call('ZCOUNT', KEYS[2], '-inf', now)",
            "local expired = redis.call('ZCOUNT', KEYS[2], '-inf', now + 500)",
        ),
    ),
    _scripts(
        "lease in seconds",
        EXPIRY,
        "never_above_length held_is_renewed",
        ("acquire", "now + ARGV[6]", "now + ARGV[6] / 1000"),
        ("acquire", "lease = tonumber(ARGV[6])", "lease = tonumber(ARGV[6]) / 1000"),
    ),
    _scripts(
        "renewal revives over the length",
        REVIVING,
        "never_above_length",
        ("renew", "if held >= length then", "if false then"),
    ),
    _scripts(
        "renewal by another pod",
        CROWD,
        "releases_are_ones_own",
        ("renew", "if holder.confirmed and ARGV[2] ~= '' and holder.pod ~= ARGV[2] then", "if false then"),
    ),
    _scripts(
        "release by another pod",
        CROWD,
        "releases_are_ones_own",
        ("release", "if holder.confirmed and holder.pod ~= ARGV[2] then", "if false then"),
    ),
    _scripts(
        "reclaim takes what has not expired",
        CROWD,
        "never_above_length held_is_renewed",
        ("reclaim", "'-inf', now, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    ),
    _scripts("granted under a held name", NAMES, "granted_once", ("acquire", _IS_FULL, "if held >= length then")),
    _scripts(
        "resumed by another identity",
        CROWD,
        "resumed_by_its_own",
        ("acquire", "if own and own.identity == ARGV[3] then", "if own then"),
    ),
    _scripts(
        "resumed although confirmed",
        CROWD,
        "resumed_by_its_own",
        ("acquire", "not carried.confirmed and carried.uid == ''", "carried.uid == ''"),
    ),
    _scripts(
        "full with one free",
        CROWD,
        "full_is_full",
        ("acquire", _IS_FULL, "if held >= length - 1 or own then"),
    ),
    _scripts(
        "shrinking takes permits",
        DRAINING,
        "never_above_length held_is_renewed",
        (
            "set_length",
            "redis.call('PEXPIRE',",
            "local inflight = 'inflight' .. string.sub(KEYS[1], 6)\n"
            "redis.call('ZREMRANGEBYRANK', inflight, ARGV[3], -1)\n"
            "redis.call('PEXPIRE',",
        ),
    ),
    _scripts(
        "grants while it drains",
        DRAINING,
        "never_above_length",
        (
            "set_length",
            "redis.call('HSET', KEYS[1],",
            "redis.call('HSET', KEYS[1], 'before', redis.call('HGET', KEYS[1], 'length') or '0',",
        ),
        (
            "acquire",
            _IS_FULL,
            "local before = tonumber(redis.call('HGET', KEYS[1], 'before') or '0')\n"
            "if (held >= length and not (held > length and held < before)) or own then",
        ),
    ),
    Variant(
        "retried under another name",
        LOSSY,
        frozenset({"final"}),
        service=_without_survey(RetriedUnderAnotherName),
    ),
    Variant(
        "lost acquires are not undone",
        LOSSY,
        frozenset({"final"}),
        service=_without_survey(NotUndone),
    ),
)

# With a server that comes back with an old copy of its data.
RESTORED_VARIANTS = (
    _scripts(
        "the epoch is not minded",
        RESTORED,
        "never_above_length",
        ("acquire", "if (stored[3] or '') ~= ARGV[12] and not dry_run then", "if false then"),
    ),
    Variant(
        "rebuilt without asking who lives",
        RESTORED,
        frozenset({"never_above_length"}),
        service=_without_survey(SemaphoreService),
    ),
)
