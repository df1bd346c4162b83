"""A client for etcd v3, over the JSON that each etcd serves beside gRPC (https://etcd.io/docs, "gRPC gateway").

It has what lock and store need and nothing that is theirs.
"""

from at_least_semaphore_pod_hook.etcd.client import Client
from at_least_semaphore_pod_hook.etcd.errors import EtcdRefusedError, EtcdUnavailableError
from at_least_semaphore_pod_hook.etcd.wire import (
    Compare,
    Delete,
    Operation,
    Put,
    Range,
    Watch,
    older,
    prefix_end,
    unchanged,
)

__all__ = [
    "Client",
    "Compare",
    "Delete",
    "EtcdRefusedError",
    "EtcdUnavailableError",
    "Operation",
    "Put",
    "Range",
    "Watch",
    "older",
    "prefix_end",
    "unchanged",
]
