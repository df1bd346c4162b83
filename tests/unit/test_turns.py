"""A queue whose owners are served in turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.controller.turns import Turns, has_room


async def test_owners_are_served_in_turn_and_each_in_order() -> None:
    turns: Turns[str] = Turns(100)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert turns.put(item[0], item)
    assert [await turns.get() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_place_is_free_again_once_it_is_taken() -> None:
    turns: Turns[int] = Turns(2)
    assert turns.put("a", 1)
    assert not turns.put("a", 2)
    assert turns.put("b", 3)
    assert not turns.put("c", 4)
    assert await turns.get() == 1
    assert turns.put("c", 5)


@given(st.lists(st.sampled_from("abcd"), max_size=300), st.integers(1, 100))
def test_nobody_takes_more_than_is_left(owners: list[str], most: int) -> None:
    taken = dict.fromkeys("abcd", 0)
    for owner in owners:
        if has_room(taken[owner], sum(taken.values()), most):
            taken[owner] += 1
    assert sum(taken.values()) <= most
    assert all(own <= (most + 1) // 2 for own in taken.values())
    # Whoever has nothing yet gets something, unless all is taken.
    assert all(taken[owner] or sum(taken.values()) == most for owner in set(owners))
