from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.admission.annotations import Demand, annotation_prefix, parse
from at_least_semaphore_pod_hook.errors import InvalidInputError
from tests.unit.fakes import PREFIX, notes


def test_the_prefix_of_a_variant() -> None:
    assert annotation_prefix() == PREFIX
    assert annotation_prefix("foo") == f"foo.{PREFIX}"


def test_reads_what_a_pod_asks_for() -> None:
    assert parse(notes(), PREFIX) == Demand("resource-name", 3, 60)
    assert parse(notes(length="1000000", expiration="86400"), PREFIX) == Demand("resource-name", 1000000, 86400)


@pytest.mark.parametrize("opt_in", [None, "false"])
def test_not_opted_in_is_left_alone_whatever_else_it_says(opt_in: str | None) -> None:
    assert parse(notes(**{"at-least-semaphore-pod": opt_in, "length": "x"}), PREFIX) is None


def test_another_variants_annotations_are_not_ours() -> None:
    assert parse(notes(), f"foo.{PREFIX}") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at-least-semaphore-pod", "yes"),
        ("at-least-semaphore-pod", "True"),
        ("at-least-semaphore-pod", ""),
        ("key", None),
        ("key", ""),
        ("key", "a/b"),
        ("key", "-a"),
        ("key", "a-"),
        ("key", "{a}"),
        ("key", "a\x00b"),
        ("key", "a\n"),
        ("key", "ключ"),
        ("key", "x" * 64),
        ("length", None),
        ("length", ""),
        ("length", "0"),
        ("length", "-1"),
        ("length", "+1"),
        ("length", "01"),
        ("length", "1.5"),
        ("length", "1e3"),
        ("length", " 3"),
        ("length", "3\n"),
        ("length", "٣"),
        ("length", "1000001"),
        ("length", "99999999"),
        ("length", "9" * 100_000),
        ("expiration", None),
        ("expiration", "0"),
        ("expiration", "86401"),
        ("expiration", "60s"),
    ],
)
def test_refuses_with_name_value_and_what_is_accepted(name: str, value: str | None) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse(notes(**{name: value}), PREFIX)
    message = str(refused.value)
    assert f"annotation {PREFIX}{name}" in message
    assert " takes " in message
    assert message.isascii() or "…" in message
    assert message.isprintable()
    assert len(message) < 700
    if value and len(value) < 64:
        assert ascii(value) in message


@given(st.dictionaries(st.sampled_from(["at-least-semaphore-pod", "key", "length", "expiration"]), st.text()))
def test_any_text_is_read_or_refused(values: dict[str, str]) -> None:
    try:
        demand = parse({PREFIX + name: value for name, value in values.items()}, PREFIX)
    except InvalidInputError:
        return
    if demand:
        assert 1 <= demand.length <= 1_000_000
        assert 1 <= demand.expiration <= 86_400
        assert demand.key.isascii()
        assert not set(demand.key) & set("/{}* \n")
