"""The few bytes of HTTP/1.1 that a sidecar speaks (RFC 9112)."""

from __future__ import annotations

from at_least_semaphore_pod_hook.sidecar.resp import MalformedReplyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    from at_least_semaphore_pod_hook.sidecar.connection import Connection
else:
    from at_least_semaphore_pod_hook.addresses import NamedTuple

MAX_ANSWER_BYTES = 262_144
"""The longest answer that is read. A sidecar's are a few hundred bytes."""
MAX_DIGITS = 8
DIGITS = b"0123456789abcdef"
PROTOCOL = b"HTTP/1."
STATUS_DIGITS = 3


class Answer(NamedTuple):
    """A response. `reusable` is whether the connection can take another request."""

    status: int
    body: bytes
    reusable: bool


def post(host: str, path: str, body: bytes, authorization: str = "") -> bytes:
    """Write a request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    if authorization:
        head += f"Authorization: {authorization}\r\n"
    return f"{head}\r\n".encode() + body


def exchange(connection: Connection, request: bytes) -> Answer:
    """Send a request over a connection that is open, and receive its response; raises as `Connection.receive` does."""
    connection.send(request)
    received = b""
    while (answer := parse(received)) is None:
        received += connection.receive()
    if not answer.reusable:
        connection.close()
    return answer


def parse(data: bytes) -> Answer | None:
    """Read a response; None where there is more to come.

    Raises:
        MalformedReplyError: It is not one, or longer than what a sidecar reads.
    """
    if len(data) > MAX_ANSWER_BYTES:
        raise MalformedReplyError("the answer is too long")
    if not data.startswith(PROTOCOL[: len(data)]):
        raise MalformedReplyError("the answer is not HTTP/1.1")
    head, end, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    version, _, said = lines[0].partition(b" ")
    if not end:
        return None
    status = said[:STATUS_DIGITS]
    if not status.isdigit() or len(status) < STATUS_DIGITS:
        raise MalformedReplyError("the answer has no status")
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip().lower()
    reusable = version == b"HTTP/1.1" and fields.get(b"connection") != b"close"
    if fields.get(b"transfer-encoding") == b"chunked":
        body = _chunks(rest)
    else:
        length = _number(fields.get(b"content-length", b""), 10)
        body = rest[:length] if len(rest) >= length else None
    return None if body is None else Answer(int(status), body, reusable)


def _chunks(rest: bytes) -> bytes | None:
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None
        size = _number(line.partition(b";")[0].strip(), 16)
        if not size:
            # Trailers may follow, each a line, up to an empty one.
            return body if rest.startswith(b"\r\n") or b"\r\n\r\n" in rest else None
        if len(rest) < size + 2:
            return None
        body, rest = body + rest[:size], rest[size + 2 :]


def _number(digits: bytes, base: int) -> int:
    if 0 < len(digits) <= MAX_DIGITS and all(digit in DIGITS[:base] for digit in digits.lower()):
        return int(digits, base)
    raise MalformedReplyError("the answer does not say how long it is")
