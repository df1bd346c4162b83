"""A Kubernetes cluster and its stores on one machine, for this project's tests, demo and benches (never shipped).

`controlplane` runs real API server and controllers, `podrunner` stands in for scheduler and kubelet, `stores` runs
Redis, Valkey and etcd, `binaries` finds or builds what they need. Nothing is imported here beyond the exception.
"""

from devcluster.errors import DevClusterError

__all__ = ["DevClusterError"]
