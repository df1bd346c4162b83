"""Any sequence of operations is answered as the specification in `stores/memory.py` answers it, by every store.

`OPERATIONS` in the environment is their number over all stores together, `SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import random
import time
import traceback
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from at_least_semaphore_pod_hook.semaphore.model import Acquired, Fence, Outcome, SemaphoreKey
from at_least_semaphore_pod_hook.stores.memory import MemoryStore
from tests.contract import operations
from tests.contract.conftest import KINDS
from tests.contract.operations import KEYS, STALE, Call, agree, at_once, ends_ms, is_between, performed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreState
    from tests.contract.subjects import Subject

STEPS = 50
OPERATIONS = int(os.environ.get("OPERATIONS", "100000"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
SHARES = {"memory": 2, "redis": 5, "valkey": 5, "sentinel": 3, "cluster": 3, "etcd": 1, "etcd-3": 1}
"""How many of the operations a store gets, in proportion: what is slower gets fewer."""

SECONDS = (0.0, 1.0, 10.0, 100.0)
TICKS = (0, 1, -1)


class Choice(list[Call]):
    """Calls to choose from, which are too many to be written into messages."""

    def __repr__(self) -> str:
        return f"{len(self)} calls"


@st.composite
def _one(draw: st.DrawFn, choice: Choice) -> Call:
    return choice[draw(st.integers(0, len(choice) - 1))]


def among(calls: Iterable[Call]) -> st.SearchStrategy[Call]:
    return _one(Choice(calls))


clients = st.sampled_from((0, 1))
keys = st.sampled_from(KEYS)
chances = st.sampled_from((True, False, False, False))
"""For what would make semaphores too seldom full, were it done as often as the rest."""
ANY = (
    operations.PLAIN_ACQUIRES,
    operations.ACQUIRES,
    operations.RENEWALS,
    operations.RELEASES,
    operations.KEEPS,
    operations.RECLAIMS,
    operations.BEGINNINGS,
    operations.RESIZES,
    operations.ADOPTIONS,
    operations.STATES,
    operations.FORGETTINGS,
)


def of(key: SemaphoreKey) -> st.SearchStrategy[Call]:
    return st.one_of(*(among(call for call in calls if call.key == key) for calls in ANY))


at_an_end = st.one_of(
    *map(
        among,
        (
            operations.PLAIN_ACQUIRES,
            operations.CARRIED_ACQUIRES,
            operations.RENEWALS,
            operations.KEEPS,
            operations.RELEASES,
            operations.RECLAIMS,
            operations.ADOPTIONS,
        ),
    )
)


def about(key: SemaphoreKey, permit: str) -> st.SearchStrategy[Call]:
    """Calls that concern one permit."""
    carried = [call for call in operations.CARRIED_ACQUIRES if call.arguments["request"].carried == permit]
    plain = [call for call in operations.PLAIN_ACQUIRES if call.arguments["request"].permit == permit]
    others = (operations.RENEWALS, operations.KEEPS, operations.RELEASES)
    named = [[call for call in calls if call.arguments["permit"] == permit] for calls in others]
    return st.one_of(*(among(call for call in calls if call.key == key) for calls in (plain, carried, *named)))


lives = st.one_of(*(st.lists(about(*of_whom), min_size=2, max_size=6) for of_whom in product(KEYS, operations.PERMITS)))
pairs = st.one_of(*(st.tuples(of(key), of(key)) for key in KEYS))


class Comparison(RuleBasedStateMachine):
    """A store beside its specification, on one clock.

    `specifications` are all states that fit what was answered so far: there is more than one after two operations at
    once whose order has not shown yet.
    """

    subject: ClassVar[Subject]
    loop: ClassVar[asyncio.AbstractEventLoop]
    count: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.specifications = [MemoryStore(self.subject.clock.seconds)]
        self.fences: dict[SemaphoreKey, list[Fence]] = {}
        self.newest: dict[SemaphoreKey, int] = {}
        for key in KEYS:
            self._start_anew(key)

    def _start_anew(self, key: SemaphoreKey) -> None:
        self.subject.forget(key)
        self.newest[key] = 0
        # A guarded step that has begun: no other fence may be shown to a store.
        beginning = Call("begin", key, {"fence": Fence("redlock", 0)})
        for specification in self.specifications:
            specification._semaphores.pop(key, None)
            expected = at_once(performed(specification, beginning, ()))
        step = self._run(performed(self.subject.store, beginning, ()))
        assert step == expected
        # Steps that began before all was lost have been overtaken.
        self.fences.setdefault(key, []).append(step.fence)

    @initialize(lengths=st.tuples(*[st.sampled_from((*operations.LENGTHS, 0))] * len(KEYS)))
    def create(self, lengths: tuple[int, ...]) -> None:
        for key, length in zip(KEYS, lengths, strict=True):
            if length:
                self.perform(0, Call("set_length", key, {"length": length}, fence=0))

    def perform(self, client: int, call: Call) -> None:
        Comparison.count += 1
        answer, state = self._run(self._one_by_one(client, call))
        fitting = []
        for specification in self.specifications:
            expected = at_once(performed(specification, call, self.fences[call.key]))
            if agree(answer, expected, specification, call.key):
                fitting.append(specification)
        self.specifications = one_at_least(fitting, f"{call}\nwas answered {answer}\nand not     {expected}")
        self._check(call.key, [(call, answer)], state)
        if _is_grant(call, answer):
            assert answer.permit in state.permits
            assert state.held <= state.length

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.loop.run_until_complete(work)
        except Exception:
            traceback.print_exc()  # it may not happen again when Hypothesis repeats it
            raise

    async def _one_by_one(self, client: int, call: Call) -> tuple[Any, SemaphoreState]:
        answer = await performed(self.subject.stores[client], call, self.fences[call.key])
        # By the other client: what one has written, the other reads.
        return answer, await self.subject.stores[1 - client].state(call.key)

    @rule(pair=pairs)
    def perform_two_at_once(self, pair: tuple[Call, Call]) -> None:
        """Two calls of two clients at the same time are answered as in one of both orders."""
        Comparison.count += 2
        key = pair[0].key
        answers, state = self._run(self._at_once(pair))
        fitting = {}
        for specification, order in product(self.specifications, ((0, 1), (1, 0))):
            specified = self._copy(specification)
            for index in order:
                expected = at_once(performed(specified, pair[index], self.fences[key]))
                if not agree(answers[index], expected, specified, key) and not (
                    pair[index].method == "state"
                    and is_between(answers[index], expected, self._after(specified, pair[1 - index]))
                ):
                    break
            else:
                fitting[repr(specified._semaphores)] = specified
        message = (
            f"{pair[0]}\nand {pair[1]}\nwere answered {answers[0]}\nand {answers[1]}: in neither order\n"
            f"Specified were {self.specifications[0]._semaphores.get(key)}"
        )
        self.specifications = one_at_least(list(fitting.values()), message)
        self._check(key, list(zip(pair, answers, strict=True)), state)

    def _copy(self, specification: MemoryStore) -> MemoryStore:
        copied = MemoryStore(self.subject.clock.seconds)
        copied.epoch = specification.epoch
        copied._semaphores = copy.deepcopy(specification._semaphores)
        return copied

    def _after(self, specification: MemoryStore, call: Call) -> SemaphoreState:
        """Return the state that a call would leave."""
        copied = self._copy(specification)
        at_once(performed(copied, call, self.fences[call.key]))
        state: SemaphoreState = at_once(copied.state(call.key))
        return state

    async def _at_once(self, pair: tuple[Call, Call]) -> tuple[list[Any], SemaphoreState]:
        fences = self.fences[pair[0].key]
        calls = zip(self.subject.stores, pair, strict=True)
        answers = await asyncio.gather(*(performed(store, call, fences) for store, call in calls))
        return answers, await self.subject.store.state(pair[0].key)

    def _check(self, key: SemaphoreKey, answered: list[tuple[Call, Any]], state: SemaphoreState) -> None:
        self.fences[key] += [answer.fence for call, answer in answered if call.method == "begin" and answer != STALE]
        for token in sorted(answer.token for call, answer in answered if _is_grant(call, answer)):
            assert token > self.newest[key]
            self.newest[key] = token
        assert len(state.permits) == state.held
        assert state.free + state.held == state.length or (state.free == 0 and state.held > state.length)
        assert all(0 < holder.lease_ms <= holder.expiration_ms for holder in state.holders)
        fitting = [one for one in self.specifications if agree(state, at_once(one.state(key)), one, key)]
        message = f"after {answered}\n{state}\nis not {at_once(self.specifications[0].state(key))}"
        self.specifications = one_at_least(fitting, message)

    @rule(client=clients, call=among(operations.PLAIN_ACQUIRES))
    def acquire(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.ACQUIRES))
    def acquire_in_any_way(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.RENEWALS))
    def renew(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.KEEPS))
    def keep(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.RELEASES))
    def release(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among([*operations.RECLAIMS, *operations.STATES, *operations.FORGETTINGS]))
    def tidy_up_or_read(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.BEGINNINGS))
    def begin(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.RESIZES))
    def set_length(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(client=clients, call=among(operations.ADOPTIONS))
    def adopt(self, client: int, call: Call) -> None:
        self.perform(client, call)

    @rule(seconds=st.sampled_from(SECONDS), ticks=st.sampled_from(TICKS))
    def advance(self, seconds: float, ticks: int) -> None:
        self._advance_us(round((seconds + ticks * self.subject.tick) * 1_000_000))

    @rule(number=st.integers(0, 9), ticks=st.sampled_from(TICKS), client=clients, call=at_an_end)
    def perform_at_the_end_of_something(self, number: int, ticks: int, client: int, call: Call) -> None:
        """Or one tick before or after it: by chance alone, time would seldom stop there."""
        moments = sorted({moment for one in self.specifications for moment in ends_ms(one, call.key)})
        coming = [moment * 1000 for moment in moments if moment * 1000 > self.subject.clock.us]
        if coming:
            target = coming[number % len(coming)] + round(ticks * self.subject.tick * 1_000_000)
            self._advance_us(target - self.subject.clock.us)
        self.perform(client, call)

    @rule(client=clients, calls=lives)
    def perform_on_one_permit(self, client: int, calls: list[Call]) -> None:
        """What was done to a permit shows in what is done to it next: by chance alone, that would mostly be another."""
        for call in calls:
            self.perform(client, call)

    def _advance_us(self, us: int) -> None:
        if us > 0:
            Comparison.count += 1
            self.subject.advance(us / 1_000_000)
            for specification, key in product(self.specifications if self.subject.reclaims else (), KEYS):
                at_once(specification.reclaim(key))

    @rule(chance=chances)
    def begin_epoch(self, chance: bool) -> None:
        if chance:
            Comparison.count += 1
            self.subject.begin_epoch()
            for specification in self.specifications:
                specification.epoch += 1

    @rule(key=keys, number=st.integers(0, 3))
    def lose_a_holder(self, key: SemaphoreKey, number: int) -> None:
        permits = sorted(at_once(self.specifications[0].state(key)).permits)
        if permits:
            Comparison.count += 1
            permit = permits[number % len(permits)]
            self.subject.lose(key, permit)
            for specification in self.specifications:
                specification._get(key).permits.pop(permit, None)

    @rule(key=keys, chance=chances)
    def lose_all(self, key: SemaphoreKey, chance: bool) -> None:
        if chance:
            Comparison.count += 1
            self._start_anew(key)


def one_at_least(fitting: list[MemoryStore], message: str) -> list[MemoryStore]:
    """Return the specifications that fit; print the message where there is none.

    What happened by the order of two calls may not happen again when Hypothesis repeats it, and then it tells nothing.
    """
    if not fitting:
        print(message)
    assert fitting, message
    return fitting


def _is_grant(call: Call, answer: Any) -> bool:
    return isinstance(answer, Acquired) and answer.outcome is Outcome.GRANTED and not call.arguments["request"].dry_run


@pytest.mark.parametrize("kind", KINDS)
def test_any_operations_are_answered_as_specified(
    kind: str, new_subject: Callable[[str], Subject], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = OPERATIONS * SHARES[kind] // sum(SHARES[other] for other in KINDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        subject = new_subject(kind)
        Comparison.subject, Comparison.loop, Comparison.count = subject, runner.get_loop(), 0
        with capsys.disabled():
            print(f"\n{kind}: {wanted} operations, SEED={SEED}", flush=True)
        started = time.monotonic()
        try:
            for run in itertools.count():
                examples = min(500, 1 + (wanted - Comparison.count) // STEPS)
                run_state_machine_as_test(
                    seed(SEED + run)(Comparison),
                    settings=settings(
                        max_examples=examples,
                        stateful_step_count=STEPS,
                        deadline=None,
                        database=None,
                        phases=(Phase.generate, Phase.shrink),
                        suppress_health_check=list(HealthCheck),
                    ),
                )
                if Comparison.count >= wanted:
                    break
        finally:
            runner.run(subject.close())
        seconds = time.monotonic() - started
        with capsys.disabled():
            print(f"{kind}: {Comparison.count} operations in {seconds:.1f} s, {Comparison.count / seconds:.0f}/s")
