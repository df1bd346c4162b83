"""Leases (coordination.k8s.io/v1): as the API server keeps them, and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.errors import ApiUnavailableError


class LeaseView(NamedTuple):
    """A Lease. Its times are its writers' clocks: good for people to read, never to be compared with ours.

    Attributes:
        resource_version: Changes with every write.
        holder: Who leads; empty where nobody does.
        duration_seconds: How long after its last renewal it is still the holder's.
        transitions: How often the holder has changed.
        acquired, renewed: As written, in RFC 3339.
    """

    resource_version: str
    holder: str
    duration_seconds: int
    transitions: int
    acquired: str
    renewed: str


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


_lease = msgspec.json.Decoder(_Lease)


def decode_lease(body: bytes) -> LeaseView:
    """Read a Lease. Raises ApiUnavailableError where it is none."""
    try:
        lease = _lease.decode(body)
    except ValueError as error:
        raise ApiUnavailableError(f"the API server's answer is no Lease: {error}") from error
    spec = lease.spec
    return LeaseView(
        lease.metadata.resource_version,
        spec.holder_identity or "",
        spec.lease_duration_seconds or 0,
        spec.lease_transitions or 0,
        spec.acquire_time or "",
        spec.renew_time or "",
    )


def encode_spec(lease: LeaseView) -> dict[str, Any]:
    """Return a Lease's spec. An empty holder is written as such, as a release is."""
    spec: dict[str, Any] = {
        "holderIdentity": lease.holder,
        "leaseDurationSeconds": lease.duration_seconds,
        "leaseTransitions": lease.transitions,
    }
    if lease.acquired:
        spec["acquireTime"] = lease.acquired
    if lease.renewed:
        spec["renewTime"] = lease.renewed
    return spec


def micro_time(seconds: float) -> str:
    """Return seconds since the epoch as a MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
