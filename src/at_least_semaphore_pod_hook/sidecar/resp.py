"""The few bytes of RESP2 that a sidecar speaks. No I/O in here: bytes in, values out."""

from __future__ import annotations

from at_least_semaphore_pod_hook.errors import StoreUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Reply: TypeAlias = "int | bytes | ServerError | list[Reply] | None"

MAX_REPLY_BYTES = 16_384
"""The longest reply that is read. A sidecar's are a few bytes; what is longer does not come from a store of ours."""
MAX_ITEMS = 1_024
MAX_DEPTH = 4
MAX_DIGITS = 20
INT64 = 2**63


class MalformedReplyError(StoreUnavailableError):
    """What the server sent is not RESP2, or more of it than a sidecar reads. The connection is of no more use."""


class ServerError:
    """An error reply. `code` is its first word, such as NOAUTH; `text` is all of it."""

    __slots__ = ("code", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.code = text.partition(" ")[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServerError) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"ServerError({self.text!r})"


def encode(*arguments: str) -> bytes:
    """Write a command as an array of bulk strings."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        # An argument vector that is not UTF-8 comes with surrogates: it goes out as the bytes that it came in as.
        data = argument.encode("utf-8", "surrogateescape")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def parse(data: bytes) -> tuple[Reply, int] | None:
    """Read the reply that `data` begins with.

    Returns the reply and how many bytes it took, or None where there is more to come. Strings, simple and bulk, are
    bytes; a null is None.

    Raises:
        MalformedReplyError: It is not a reply, whatever may follow, or one of more than MAX_REPLY_BYTES.
    """
    # Cut off, so that it does not matter how much of what follows has come already.
    parsed = _parse(data[:MAX_REPLY_BYTES], 0, 0)
    if parsed is None and len(data) >= MAX_REPLY_BYTES:
        raise MalformedReplyError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
    return parsed


def _parse(data: bytes, start: int, depth: int) -> tuple[Reply, int] | None:
    if start >= len(data):
        return None
    kind = data[start : start + 1]
    if kind not in b"+-:$*":
        raise MalformedReplyError(f"a reply does not begin with byte 0x{data[start]:02x}")
    end = data.find(b"\r\n", start)
    if end < 0:
        return None
    line, after = data[start + 1 : end], end + 2
    if kind in b"+-":
        return (line if kind == b"+" else ServerError(line.decode("ascii", "replace"))), after
    number = _integer(line)
    if kind == b":" or number == -1:
        return (number if kind == b":" else None), after
    return _bulk(data, after, number) if kind == b"$" else _array(data, after, number, depth + 1)


def _bulk(data: bytes, start: int, length: int) -> tuple[Reply, int] | None:
    if not 0 <= length <= MAX_REPLY_BYTES:
        raise MalformedReplyError(f"a string of {length} bytes is not accepted")
    end = start + length
    if len(data) < end + 2:
        return None
    if data[end : end + 2] != b"\r\n":
        raise MalformedReplyError("a string does not end where it should")
    return data[start:end], end + 2


def _array(data: bytes, start: int, items: int, depth: int) -> tuple[Reply, int] | None:
    if not 0 <= items <= MAX_ITEMS or depth > MAX_DEPTH:
        raise MalformedReplyError(f"an array of {items} items at depth {depth} is not accepted")
    replies: list[Reply] = []
    for _ in range(items):
        parsed = _parse(data, start, depth)
        if parsed is None:
            return None
        reply, start = parsed
        replies.append(reply)
    return replies, start


def _integer(digits: bytes) -> int:
    # int() alone would let blanks, underscores and a million digits pass.
    if digits.removeprefix(b"-").isdigit() and len(digits) <= MAX_DIGITS:
        number = int(digits)
        if -INT64 <= number < INT64:
            return number
    raise MalformedReplyError("a number is none")
