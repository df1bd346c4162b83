from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.addresses import Address, parse_address
from at_least_semaphore_pod_hook.errors import InvalidInputError

SCHEMES = {"redis": False, "rediss": True}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:6379", Address("127.0.0.1", 6379)),
        ("redis-0.redis:6379", Address("redis-0.redis", 6379)),
        ("[::1]:6379", Address("::1", 6379)),
        ("redis://host", Address("host", 6379)),
        ("redis://host:7000", Address("host", 7000)),
        ("redis://host:7000/", Address("host", 7000)),
        ("redis://[::1]", Address("::1", 6379)),
        ("rediss://user:pass@host:7000/3", Address("host", 7000, True, "user", "pass", 3)),
        ("redis://:p%2Fw%40@host", Address("host", 6379, False, "", "p/w@")),
        ("redis://:a@b@host", Address("host", 6379, False, "", "a@b")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text, SCHEMES, 6379) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:x",
        "host:65536",
        "host:-1",
        "ho st:1",
        "http://host:1",
        "redis://",
        "redis://h/x",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="accepted"):
        parse_address(text, SCHEMES, 6379)


def test_a_password_never_shows() -> None:
    for text in (
        "redis://user:secret@host:x",
        "redis://:secret",
        "redis://user:se/secret@host",
        "redis://user:secret@host/secret",
        "user:secret@host:x",
        "user:secret@host:1",
    ):
        with pytest.raises(InvalidInputError) as refused:
            parse_address(text, SCHEMES, 6379)
        assert "secret" not in str(refused.value)
    assert str(parse_address("redis://user:secret@host:1", SCHEMES, 6379)) == "host:1"
    assert str(Address("::1", 1)) == "[::1]:1"


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(text, SCHEMES, 6379)
    except InvalidInputError:
        return
    assert address.host
    assert 0 <= address.port <= 65535
