"""etcd's messages as the JSON gateway spells them (https://etcd.io/docs, API reference).

msgspec makes base64 of `bytes` by itself. Integers of 64 bits come as strings, hence `strict=False`, and whatever is
empty or zero does not come at all, hence a default for everything.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Request(msgspec.Struct, omit_defaults=True):
    """What is sent. etcd takes a field that is left out for its zero."""


class Range(_Request):
    """Read a key or, with `range_end`, all keys from `key` up to but without it; at a `revision`, as they were then."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    sort_order: Literal["NONE", "ASCEND", "DESCEND"] = "NONE"
    sort_target: Literal["KEY", "VERSION", "CREATE", "MOD", "VALUE"] = "KEY"
    keys_only: bool = False
    max_create_revision: int = 0
    count_only: bool = False


class Put(_Request):
    """Write a key; with a `lease` it goes when the lease does."""

    key: bytes
    value: bytes = b""
    lease: int = 0


class Delete(_Request):
    """Delete a key, or a range of them as in `Range`."""

    key: bytes
    range_end: bytes = b""


class Operation(_Request):
    """One step of a transaction: exactly one of these."""

    request_range: Range | None = None
    request_put: Put | None = None
    request_delete_range: Delete | None = None


class Compare(_Request, omit_defaults=False):
    """A condition of a transaction: the key was created, or last written, at this revision or, with `LESS`, before it.

    A key that does not exist was so at revision 0.

    Its fields are always sent: without a target etcd would compare versions.
    """

    key: bytes
    create_revision: int | msgspec.UnsetType = msgspec.UNSET
    mod_revision: int | msgspec.UnsetType = msgspec.UNSET
    target: Literal["CREATE", "MOD"] = "CREATE"
    result: Literal["EQUAL", "LESS"] = "EQUAL"


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """Return the condition that a key was last written at this revision; 0 for a key that does not exist."""
    return Compare(key, mod_revision=mod_revision, target="MOD")


def older(key: bytes, revision: int) -> Compare:
    """Return the condition that a key was not written at this revision or since."""
    return Compare(key, mod_revision=revision, target="MOD", result="LESS")


class Txn(_Request):
    """A transaction: where all of `compare` hold, `success` is done, otherwise `failure`."""

    compare: list[Compare]
    success: list[Operation]
    failure: list[Operation]


class Watch(_Request):
    """Be told of changes of a key, or a range of them, from a revision on."""

    key: bytes
    range_end: bytes = b""
    start_revision: int = 0
    filters: list[Literal["NOPUT", "NODELETE"]] = []


class WatchRequest(_Request):
    """What opens a watch."""

    create_request: Watch


class LeaseRequest(_Request):
    """A lease to be granted (`TTL`, in seconds), kept alive or revoked (`ID`)."""

    id: int = msgspec.field(name="ID", default=0)
    ttl: int = msgspec.field(name="TTL", default=0)


class Credentials(_Request):
    """A user's name and password, to be exchanged for a token."""

    name: str
    password: str


class TimeToLiveRequest(_Request):
    """A lease that is asked about."""

    id: int = msgspec.field(name="ID", default=0)


class Header(msgspec.Struct):
    """Who answered, and at which revision."""

    cluster_id: int = 0
    revision: int = 0


class KeyValue(msgspec.Struct):
    """A key, its value and its history."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class RangeResponse(msgspec.Struct):
    """Keys that were read; `count` is how many there are, whatever the limit."""

    header: Header = msgspec.field(default_factory=Header)
    kvs: list[KeyValue] = []
    count: int = 0


class PutResponse(msgspec.Struct):
    """A key was written."""

    header: Header = msgspec.field(default_factory=Header)


class DeleteResponse(msgspec.Struct):
    """So many keys were deleted."""

    header: Header = msgspec.field(default_factory=Header)
    deleted: int = 0


class OperationResponse(msgspec.Struct):
    """The answer to one `Operation`."""

    response_range: RangeResponse | None = None
    response_put: PutResponse | None = None
    response_delete_range: DeleteResponse | None = None

    @property
    def kvs(self) -> list[KeyValue]:
        """The keys that were read; none where it was no read."""
        return self.response_range.kvs if self.response_range else []

    @property
    def count(self) -> int:
        """How many keys there are in the range that was read, whatever the limit."""
        return self.response_range.count if self.response_range else 0


class TxnResponse(msgspec.Struct):
    """Which branch was taken, and the answers to its steps."""

    header: Header = msgspec.field(default_factory=Header)
    succeeded: bool = False
    responses: list[OperationResponse] = []


class LeaseResponse(msgspec.Struct):
    """A lease and its seconds to live; 0 where it has ended."""

    header: Header = msgspec.field(default_factory=Header)
    id: int = msgspec.field(name="ID", default=0)
    ttl: int = msgspec.field(name="TTL", default=0)


class TimeToLiveResponse(msgspec.Struct):
    """A lease's whole seconds left to live, -1 where it has ended, and how many a renewal gives it."""

    header: Header = msgspec.field(default_factory=Header)
    id: int = msgspec.field(name="ID", default=0)
    ttl: int = msgspec.field(name="TTL", default=0)
    granted_ttl: int = msgspec.field(name="grantedTTL", default=0)


class Token(msgspec.Struct):
    """Proof of a login."""

    token: str = ""


class Event(msgspec.Struct):
    """A change of a key."""

    type: Literal["PUT", "DELETE"] = "PUT"
    kv: KeyValue = msgspec.field(default_factory=KeyValue)


class WatchResponse(msgspec.Struct):
    """News from a watch.

    A canceled one gets no more; where its start was compacted, `compact_revision` is the first one that is still known.
    """

    header: Header = msgspec.field(default_factory=Header)
    events: list[Event] = []
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0


class Refusal(msgspec.Struct):
    """Why something was not done. Versions differ in which of the two texts they send."""

    error: str = ""
    message: str = ""
    code: int = 0


class KeepAliveFrame(msgspec.Struct):
    """One message of the stream that keeps leases alive."""

    result: LeaseResponse = msgspec.field(default_factory=LeaseResponse)


class WatchFrame(msgspec.Struct):
    """One message of a watch."""

    result: WatchResponse = msgspec.field(default_factory=WatchResponse)


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with `prefix`, which must not end in the byte 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
