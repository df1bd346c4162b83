"""The HTTP that a sidecar speaks, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.sidecar.http import MAX_ANSWER_BYTES, Answer, parse, post
from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
CHUNKED = b'HTTP/1.1 503 No\r\ntransfer-encoding: Chunked\r\n\r\n3\r\n{"a\r\nA;x=y\r\n":1,"b":22\r\n1\r\n}\r\n0\r\n\r\n'


def test_a_request() -> None:
    assert post("h:1", "/v3/kv/txn", b"{}", "token") == (
        b"POST /v3/kv/txn HTTP/1.1\r\nHost: h:1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        b"Authorization: token\r\n\r\n{}"
    )
    assert b"Authorization" not in post("h:1", "/", b"{}")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PLAIN, Answer(200, b'{"a":1}', True)),
        (CHUNKED, Answer(503, b'{"a":1,"b":22}', True)),
        (PLAIN.replace(b"Content-Type: application/json", b"Connection: close"), Answer(200, b'{"a":1}', False)),
        (PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), Answer(200, b'{"a":1}', False)),
    ],
)
def test_an_answer_in_any_pieces(data: bytes, expected: Answer) -> None:
    assert all(parse(data[:end]) is None for end in range(len(data)))
    assert parse(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0",
        b"-ERR x\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * MAX_ANSWER_BYTES,
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        parse(data)


@given(st.binary(max_size=200))
def test_nothing_but_a_malformed_reply_is_raised(data: bytes) -> None:
    for whole in (data, PLAIN[:20] + data, CHUNKED[:47] + data):
        try:
            parse(whole)
        except MalformedReplyError:
            continue
