"""Keys, and one transaction that reads all that a decision needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook import etcd_permits
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Operation, Range, prefix_end
from at_least_semaphore_pod_hook.stores.etcd.decisions import Head, Own, Record, Seen

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.etcd.wire import KeyValue, OperationResponse, TxnResponse
    from at_least_semaphore_pod_hook.semaphore.model import AcquireRequest, SemaphoreKey

HOLDERS_NAMED = 3
_OF_EACH = 3
"""Keys that are read of each semaphore: head, epoch and mark."""
_ENCODER = msgspec.json.Encoder()
_head = msgspec.json.Decoder(Head)
_record = msgspec.json.Decoder(Record)


class Names:
    """The keys of one semaphore, as etcd wants them."""

    epoch = etcd_permits.EPOCH.encode()

    def __init__(self, key: SemaphoreKey) -> None:
        self.semaphore = str(key)
        self.head = etcd_permits.head_key(self.semaphore).encode()
        self.freed = etcd_permits.freed_key(self.semaphore).encode()
        self.holders = self.holder("")

    def holder(self, permit: str) -> bytes:
        """Name who holds a permit."""
        return etcd_permits.holder_key(self.semaphore, permit).encode()

    def ended(self, permit: str) -> bytes:
        """Name the note that a permit's pod has ended."""
        return etcd_permits.ended_key(self.semaphore, permit).encode()

    def denied(self, owner: str) -> bytes:
        """Name the note that pods of an owner were denied."""
        return f"denied/{self.semaphore}/{owner}".encode()


class HolderFound(NamedTuple):
    """A holder as it was read, with the revision that wrote it and the lease that it is under."""

    key: bytes
    record: Record
    revision: int
    lease: int


class Reading:
    """What to read of a semaphore in one transaction, and how to understand the answer.

    Args:
        names: The semaphore's keys.
        permits: Permits whose holders are read one by one.
        owner: The owner whose note is read, or an empty string.
    """

    def __init__(self, names: Names, permits: tuple[str, ...] = (), owner: str = "") -> None:
        self.names = names
        self._permits = tuple(filter(None, permits))
        self._owner = owner

    @classmethod
    def of_request(cls, request: AcquireRequest) -> Reading:
        """Return what an acquire has to read."""
        return cls(Names(request.key), (request.permit, request.carried), request.owner)

    def operations(self, *, counted: bool) -> list[Operation]:
        """Return the steps of the transaction; where `counted`, etcd counts the holders."""
        names = self.names
        ranges = [Range(key) for key in (names.head, names.epoch, names.freed)]
        ranges += [Range(names.holder(permit)) for permit in self._permits]
        if self._owner:
            ranges.append(Range(names.denied(self._owner)))
        if counted:
            ranges.append(Range(names.holders, prefix_end(names.holders), limit=HOLDERS_NAMED))
        return [Operation(request_range=one) for one in ranges]

    def seen(self, answer: TxnResponse, request: AcquireRequest | None = None, *, counted: bool) -> Seen:
        """Return what the transaction has read."""
        head_kv, epoch_kv, freed_kv = map(_only, answer.responses[:_OF_EACH])
        head = _decode_head(head_kv)
        epoch = f"{answer.header.cluster_id:x}/{epoch_kv.value.decode()}" if epoch_kv else ""
        counts = answer.responses[len(self.operations(counted=True)) - 1] if counted else None
        own = self._holder(answer, request.permit) if request else None
        carried = self._holder(answer, request.carried) if request and request.carried else None
        note = _only(answer.responses[_OF_EACH + len(self._permits)]) if self._owner else None
        return Seen(
            head,
            head_kv.mod_revision if head_kv else 0,
            epoch,
            epoch_kv.mod_revision if epoch_kv else 0,
            freed_kv.mod_revision if freed_kv else 0,
            counts.count if counts else head.held,
            counted,
            tuple(one.record.pod for one in read_holders(counts)) if counts else (),
            own,
            carried,
            note.lease if note else 0,
        )

    def leases(self, answer: TxnResponse) -> dict[str, int]:
        """Return, by permit, the leases of those that are held."""
        found = ((permit, self._holder(answer, permit)) for permit in self._permits)
        return {permit: holder.lease for permit, holder in found if holder}

    def _holder(self, answer: TxnResponse, permit: str) -> Own | None:
        found = read_holders(answer.responses[_OF_EACH + self._permits.index(permit)])
        return Own(found[0].record, found[0].lease) if found else None


def read_holders(response: OperationResponse) -> list[HolderFound]:
    """Return the holders that a read has found.

    Raises:
        StoreUnavailableError: What stands there was not written by a store.
    """
    try:
        return [HolderFound(kv.key, _record.decode(kv.value), kv.mod_revision, kv.lease) for kv in response.kvs]
    except msgspec.MsgspecError as error:
        raise StoreUnavailableError(f"etcd: a holder is not what was written: {error}") from error


def _decode_head(kv: KeyValue | None) -> Head:
    try:
        return _head.decode(kv.value) if kv else Head()
    except msgspec.MsgspecError as error:
        raise StoreUnavailableError(f"etcd: a semaphore is not what was written: {error}") from error


def encode(value: Head | Record) -> bytes:
    """Return a head or a holder as it is stored."""
    return _ENCODER.encode(value)


def _only(response: OperationResponse) -> KeyValue | None:
    return response.kvs[0] if response.kvs else None
