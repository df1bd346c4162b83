"""Validated settings, frozen. Imported by the sidecar: nothing heavy here."""

from __future__ import annotations

from at_least_semaphore_pod_hook.addresses import Address, StoreUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from at_least_semaphore_pod_hook.addresses import NamedTuple

PROBE_PERIOD_SECONDS = 1
"""How often the kubelet looks whether a sidecar's port is open."""
PROBE_TIMEOUT_SECONDS = 1
"""How long it waits for an answer."""
STOP_GRACE_SECONDS = 1
"""How long a container that is stopped because the port is closed may take: the least that the API server accepts."""
MIN_FENCED_EXPIRATION_SECONDS = 10
"""The shortest lease that leaves time to renew, and after that to stop the pod's work before the lease ends."""
FENCE_SLACK = 2.0
"""For what the kubelet needs besides probing and waiting, such as a busy node."""
MAX_FENCE_MARGIN = 15.0


def fence_margin(lease_ms: int) -> float:
    """Return how many seconds before a lease's end the pod's work has to be told to stop.

    Longer than all that the kubelet may take: up to a period until it probes, the probe's timeout, and the grace that
    the container gets. A sixth of the lease where that is more, since a longer one has the time.
    """
    needed = PROBE_PERIOD_SECONDS + PROBE_TIMEOUT_SECONDS + STOP_GRACE_SECONDS + FENCE_SLACK
    return max(needed, min(MAX_FENCE_MARGIN, lease_ms / 6_000))


class Common(NamedTuple):
    """What webhook and sidecar share."""

    lock_mode: str
    redis_addresses: tuple[Address, ...]
    etcd_addresses: tuple[Address, ...]
    queue: StoreUrl
    log_level: str
    log_format: str


class Webhook(NamedTuple):
    """The webhook's settings.

    Attributes:
        queue_flag: The flag that names the store, as it was given, to be handed on to the sidecars.
        sidecar_mode: Whether sidecars renew in the store ("direct"), or at the webhook ("api").
        permit_port: What the webhook serves sidecars on.
        permit_url: Where they find it; empty for the Service and that port.
        permit_authorities: Whom they are to trust (PEM); empty for what the webhook knows of its own certificate.
        sidecar_secret: A Secret of the pod's namespace that is mounted into its sidecar, or an empty string.
        variant: Sets the annotations of a second copy in the same cluster apart.
        confirm: Whether main containers wait until the sidecar has confirmed the permit.
        confirm_port: What the sidecar listens on then, save in pods that share their node's ports.
        fence: Whether main containers are stopped before a lease ends that cannot be renewed.
        certificate_secret: The Secret that the webhook keeps its certificate in; empty where it is in `cert_dir`.
        service_name: The Service that the certificate is for.
        webhook_configuration: The MutatingWebhookConfiguration that is told to trust it.
        client_ca_file: Authorities of which clients have to show a certificate; empty where none is asked for.
        client_names: One of these names it has to have then; none for any.
        metrics_auth: Whether metrics are for everybody ("none"), or for whom the API server lets ("kubernetes").
        release_gates: Whether to remove our gate from all pods that wait, and end, in place of serving.
    """

    common: Common
    host: str
    port: int
    cert_dir: str
    certificate_secret: str
    service_name: str
    webhook_configuration: str
    certificate_days: int
    certificate_settle_seconds: float
    client_ca_file: str
    client_names: tuple[str, ...]
    sidecar_image: str
    sidecar_image_pull_policy: str
    sidecar_memory_limit: str
    sidecar_mode: str
    permit_port: int
    permit_url: str
    permit_authorities: str
    sidecar_secret: str
    enable_sidecar_containers: bool
    metrics_bind_address: Address
    metrics_auth: str
    status_page: bool
    health_probe_bind_address: Address
    kubeconfig: str
    wake_owners: bool
    when_full: str
    confirm: bool
    confirm_port: int
    fence: bool
    release_gates: bool
    queue_flag: str
    variant: str


class PermitApi(NamedTuple):
    """Where a sidecar renews that is told of no store.

    Attributes:
        address: The webhook's.
        authorities: Whom to trust (PEM) when the webhook shows its certificate; the system's authorities where empty.
        token_file: Where the token is by which the sidecar shows whose it is.
    """

    address: Address
    authorities: str
    token_file: str


class Sidecar(NamedTuple):
    """The sidecar's settings.

    Attributes:
        pod: The pod's own name where it is known.
        termination_grace_period_seconds: How long it keeps trying to give the permit back.
        release_on: When it gives the permit back: "sigterm", or "exit" of the pod's other containers.
        end_with_pod: Whether to end soon after the pod's other containers, unasked.
        confirm_port: The port to listen on once the permit is confirmed; 0 for none.
        fence: Whether to close the port before a lease ends that cannot be renewed.
        api: Where to renew in place of the store, or None.
    """

    common: Common
    namespace: str
    key: str
    permit: str
    pod: str
    termination_grace_period_seconds: float
    release_on: str = "sigterm"
    end_with_pod: bool = False
    confirm_port: int = 0
    fence: bool = False
    api: PermitApi | None = None
