"""A semaphore for Kubernetes pods: a mutating admission webhook and a sidecar."""

__version__ = "0.1.0"
