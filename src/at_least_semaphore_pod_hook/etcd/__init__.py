"""A client for etcd v3, over the JSON that each etcd serves beside gRPC (https://etcd.io/docs, "gRPC gateway").

It has what the lock needs and nothing of the lock's.
"""

from at_least_semaphore_pod_hook.etcd.client import Client
from at_least_semaphore_pod_hook.etcd.errors import EtcdRefusedError, EtcdUnavailableError
from at_least_semaphore_pod_hook.etcd.wire import Compare, Delete, Operation, Put, Range, Watch, prefix_end

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
    "prefix_end",
]
