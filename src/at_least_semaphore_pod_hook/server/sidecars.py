"""What the webhook tells its sidecars, and how it serves those that are told of no store."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.admission.inject import SECRET_PATH, SIDECAR_NAME, SidecarTemplate
from at_least_semaphore_pod_hook.controller.configuration import own_namespace
from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server.identities import Identities, TokenReviews
from at_least_semaphore_pod_hook.server.permits import Permits, permit_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from at_least_semaphore_pod_hook.semaphore.contracts import Store
    from at_least_semaphore_pod_hook.server.app import Application
    from at_least_semaphore_pod_hook.server.certificates import Certificate
    from at_least_semaphore_pod_hook.settings import Webhook

API = "api"


def sidecar_template(settings: Webhook) -> SidecarTemplate:
    """Describe the sidecar that this webhook injects."""
    common = settings.common
    api = settings.sidecar_mode == API
    return SidecarTemplate(
        name=f"{settings.variant}-{SIDECAR_NAME}" if settings.variant else SIDECAR_NAME,
        image=settings.sidecar_image,
        image_pull_policy=settings.sidecar_image_pull_policy,
        memory_limit=settings.sidecar_memory_limit,
        flags=(
            *(
                (f"--permit-url={_permit_url(settings)}", f"--permit-token-file={SECRET_PATH}/token")
                if api
                else (settings.queue_flag,)
            ),
            f"--log-level={common.log_level}",
            f"--log-format={common.log_format}",
        ),
        native=settings.enable_sidecar_containers,
        confirm_port=settings.confirm_port if settings.confirm else 0,
        fence=settings.fence,
        secret=settings.sidecar_secret,
        audience=annotation_prefix(settings.variant).rstrip("/") if api else "",
    )


def _permit_url(settings: Webhook) -> str:
    return settings.permit_url or f"https://{settings.service_name}.{own_namespace()}.svc:{settings.permit_port}"


def authorities_of(settings: Webhook, certificate: Certificate) -> Callable[[], str]:
    """Return what tells whom sidecars are to trust at the moment (PEM).

    Raises:
        InvalidInputError: They are to be served, and nothing says whom to trust.
    """

    def authorities() -> str:
        return settings.permit_authorities or certificate.authorities

    # A certificate of our own making is not ready before its authority is known.
    if settings.sidecar_mode == API and certificate.ready and not authorities():
        raise InvalidInputError(
            f"--sidecar-mode=api: sidecars have to know whom to trust: there is no ca.crt in {settings.cert_dir}, "
            "nor --permit-authorities"
        )
    return authorities


def permit_servers(settings: Webhook, store: Store, authorities: Callable[[], str]) -> list[PermitServer]:
    """Make what serves sidecars; nothing where these go to the store themselves."""
    if settings.sidecar_mode != API:
        return []
    # Each sidecar keeps a connection, and some runtimes start processes with room for a thousand.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return [PermitServer(settings, store, authorities)]


class PermitServer:
    """Serves sidecars that are told of no store.

    Args:
        settings: The webhook's.
        store: Where semaphores live.
        authorities: Returns whom sidecars are to trust at the moment (PEM).
    """

    def __init__(self, settings: Webhook, store: Store, authorities: Callable[[], str]) -> None:
        audience = sidecar_template(settings).audience
        self._identities = Identities(TokenReviews(settings.kubeconfig, audience), audience)
        self.application: Application = permit_app(Permits(store, self._identities, authorities))

    async def close(self) -> None:
        """Let go of connections."""
        await self._identities.close()
