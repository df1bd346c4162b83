"""The sidecar's reading and writing of RESP2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.sidecar import resp

if TYPE_CHECKING:
    from collections.abc import Sequence

LINE = st.binary(max_size=40).filter(lambda data: b"\r\n" not in data and not data.endswith(b"\r"))
ATOM = st.one_of(
    LINE.map(lambda line: (b"+" + line + b"\r\n", line)),
    LINE.map(lambda line: (b"-" + line + b"\r\n", resp.ServerError(line.decode("ascii", "replace")))),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: (b":%d\r\n" % number, number)),
    st.binary(max_size=60).map(lambda data: (b"$%d\r\n%b\r\n" % (len(data), data), data)),
    st.sampled_from([(b"$-1\r\n", None), (b"*-1\r\n", None)]),
)


def _array(items: Sequence[tuple[bytes, object]]) -> tuple[bytes, object]:
    return b"*%d\r\n" % len(items) + b"".join(wire for wire, _ in items), [reply for _, reply in items]


REPLY = st.one_of(ATOM, st.lists(ATOM, max_size=4).map(_array), st.lists(st.lists(ATOM).map(_array)).map(_array))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_the_modules_own_error(data: bytes) -> None:
    try:
        parsed = resp.parse(data)
    except resp.MalformedReplyError:
        return
    assert parsed is None or 0 < parsed[1] <= len(data)


@given(st.text(alphabet="+-:$*0123456789\r\n ax", max_size=60))
def test_almost_resp_raises_nothing_but_the_modules_own_error(text: str) -> None:
    try:
        resp.parse(text.encode())
    except resp.MalformedReplyError:
        return


@given(REPLY, st.binary(max_size=20))
def test_a_reply_parses_to_what_it_says_whatever_follows(reply: tuple[bytes, object], rest: bytes) -> None:
    wire, value = reply
    assert resp.parse(wire + rest) == (value, len(wire))


@given(REPLY, st.data())
def test_a_split_at_any_position_parses_equal(reply: tuple[bytes, object], data: st.DataObject) -> None:
    wire, value = reply
    cut = data.draw(st.integers(0, len(wire) - 1))
    assert resp.parse(wire[:cut]) is None
    assert resp.parse(wire[:cut] + wire[cut:]) == (value, len(wire))


@given(st.binary(max_size=120), st.data())
def test_what_a_prefix_says_is_never_taken_back(wire: bytes, data: st.DataObject) -> None:
    def outcome(part: bytes) -> object:
        try:
            return resp.parse(part)
        except resp.MalformedReplyError:
            return "malformed"

    early = outcome(wire[: data.draw(st.integers(0, len(wire)))])
    assert early is None or early == outcome(wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"?",
        b"\r\n",
        b":\r\n",
        b":+1\r\n",
        b":1_0\r\n",
        b": 1\r\n",
        b":--1\r\n",
        b":9223372036854775808\r\n",
        b":" + b"1" * 5_000 + b"\r\n",
        b"$-2\r\n",
        b"$99999999\r\n",
        b"$1\r\nabc",
        b"*-2\r\n",
        b"*99999999\r\n",
        b"*1\r\n" * 5,
        b"*1\r\n" * 5_000,
        b"+" + b"a" * resp.MAX_REPLY_BYTES,
        b"*1000\r\n" + b"$100\r\n" + b"a" * 100 + b"\r\n" + (b"$100\r\n" + b"a" * 100 + b"\r\n") * 200,
    ],
)
def test_what_is_no_reply_or_too_long_is_malformed(wire: bytes) -> None:
    with pytest.raises(resp.MalformedReplyError):
        resp.parse(wire)


def test_an_error_reply_has_a_code() -> None:
    parsed = resp.parse(b"-LOADING the dataset\r\n")
    assert parsed is not None
    error = parsed[0]
    assert isinstance(error, resp.ServerError)
    assert (error.code, error.text) == ("LOADING", "LOADING the dataset")
    assert {error} == {resp.ServerError("LOADING the dataset")}
    assert "LOADING" in repr(error)


def test_a_command_is_written_as_bulk_strings_by_their_bytes() -> None:
    assert resp.encode("GET", "é", "\udcff") == b"*3\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n$1\r\n\xff\r\n"


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_what_is_written_can_be_read(arguments: list[str]) -> None:
    assert resp.parse(resp.encode(*arguments)) == (
        [argument.encode() for argument in arguments],
        len(resp.encode(*arguments)),
    )
