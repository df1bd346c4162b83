"""What is measured of a certificate that the webhook makes itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from at_least_semaphore_pod_hook.server.metrics import PREFIX, REGISTRY

TRUSTED = Gauge(
    f"{PREFIX}certificate_trusted",
    "1 while the API server is told to trust the self-managed certificate that is served.",
    registry=REGISTRY,
)
ROTATIONS = Counter(
    f"{PREFIX}certificate_rotations",
    "Certificates that this replica has put in their predecessors' place, the first one included.",
    registry=REGISTRY,
)
