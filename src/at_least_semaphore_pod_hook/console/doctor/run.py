"""The subcommand `doctor`: look at everything, judge it, show it."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.admission.annotations import annotation_prefix
from at_least_semaphore_pod_hook.console.doctor import (
    asking,
    certificate,
    port,
    registration,
    rights,
    servers,
    versions,
)
from at_least_semaphore_pod_hook.console.doctor.cluster import Cluster
from at_least_semaphore_pod_hook.console.doctor.findings import error, exit_code, render, warning
from at_least_semaphore_pod_hook.console.status import colourful
from at_least_semaphore_pod_hook.controller.configuration import own_namespace
from at_least_semaphore_pod_hook.controller.connection import Connection
from at_least_semaphore_pod_hook.errors import ApiUnavailableError, InvalidInputError

if TYPE_CHECKING:
    from typing import TextIO

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding
    from at_least_semaphore_pod_hook.console.doctor.registration import Registered
    from at_least_semaphore_pod_hook.console.options import Doctor

CONTAINER = "webhook"
AS_ANOTHER = "run doctor as somebody who may, with --kubeconfig"


async def run(settings: Doctor, out: TextIO = sys.stdout) -> int:
    """Look, and show what there is to say. Returns the exit code: 1 where there is an error."""
    found = await examine(settings)
    out.write(render(found, settings.output, colour=colourful(settings.colour, out)))
    out.flush()
    return exit_code(found)


async def examine(settings: Doctor) -> list[Finding]:
    """Look at everything, and judge it."""
    kubeconfig = settings.webhook.kubeconfig
    try:
        connection = Connection.open(kubeconfig)
    except ApiUnavailableError as caught:
        if kubeconfig:
            raise InvalidInputError(f"--kubeconfig: {caught}") from caught
        missing = error("API server", str(caught), "run doctor in the webhook's container, or with --kubeconfig")
        return [missing, *await _certificate(settings, None), *await _servers(settings)]
    try:
        cluster = Cluster(connection, settings.account)
        findings = [*await _api_server(settings, cluster), *await _rights(settings, cluster)]
        found, registered = await _registration(settings, cluster)
    finally:
        await connection.close()
    return [*findings, *found, *await _certificate(settings, registered), *await _servers(settings)]


async def _servers(settings: Doctor) -> list[Finding]:
    """Judge store and lock."""
    common = settings.webhook.common
    url = common.queue
    if url.kind == "memory":
        seen = "the webhook's own memory, which nobody else sees"
        findings = [warning("store", seen, "name a store by --queue-url: this is for trying out")]
    else:
        data, stores = await asyncio.gather(asking.look_at_data(url), asking.look_at_store(url))
        fails_over = url.kind in {"sentinel", "cluster"}
        findings = list(servers.judge_data(str(url), data))
        findings += servers.judge_store(stores, fails_over=fails_over, wait_replicas=url.wait_replicas)
    if common.lock_mode == "etcd":
        return [*findings, *servers.judge_lock("etcd", await asking.look_at_all_etcd(common.etcd_addresses))]
    return [*findings, *servers.judge_lock("redlock", await asking.look_at_all_redis(common.redis_addresses))]


async def _api_server(settings: Doctor, cluster: Cluster) -> list[Finding]:
    try:
        version = await cluster.version()
    except ApiUnavailableError as caught:
        return [error("API server", str(caught), "see whether it answers, and who we are there")]
    return [versions.judge_api_server(version, native=settings.webhook.enable_sidecar_containers)]


async def _rights(settings: Doctor, cluster: Cluster) -> list[Finding]:
    namespace = settings.account[0] if settings.account else _namespace(settings)
    wanted, more = rights.needed(settings.webhook, namespace), rights.excessive(namespace)
    try:
        allowed, wide = await asyncio.gather(cluster.allowed(wanted), cluster.allowed(more))
    except ApiUnavailableError as caught:
        return [warning(rights.CHECK, f"they cannot be seen: {caught}", AS_ANOTHER)]
    who = "/".join(settings.account) if settings.account else "whoever runs doctor"
    return list(rights.judge(who, wanted, allowed, wide))


async def _registration(settings: Doctor, cluster: Cluster) -> tuple[list[Finding], Registered | None]:
    """Judge the registration, and return it as well; None where it is not known."""
    name = settings.webhook.webhook_configuration
    try:
        registered = next(iter(await cluster.registered(name) or ()), None)
    except ApiUnavailableError as caught:
        return [warning(registration.CHECK, f"it cannot be seen: {caught}", AS_ANOTHER)], None
    if registered is None:
        todo = "apply the manifests, or name it by --webhook-configuration: nothing is asked of the webhook"
        return [
            error(registration.CHECK, f"there is no MutatingWebhookConfiguration {name} with a webhook", todo)
        ], None
    prefix = annotation_prefix(settings.webhook.variant)
    findings = list(registration.judge(registered, prefix, _namespace(settings)))
    return [*findings, *await _behind(settings, cluster, registered)], registered


async def _behind(settings: Doctor, cluster: Cluster, registered: Registered) -> list[Finding]:
    service = registered.client_config.service
    if service is None:
        seen = f"{registered.client_config.url}, and no Service: who is behind it cannot be seen"
        return [warning("service", seen, "see the certificate's line on whether somebody answers")]
    behind = await cluster.behind(service)
    findings = list(registration.judge_behind(service, behind))
    try:
        images = {pod: await cluster.image(service.namespace, pod, CONTAINER) for pod in behind.pods}
    except ApiUnavailableError as caught:
        return [*findings, warning("images", f"the webhook's cannot be seen: {caught}", AS_ANOTHER)]
    return [*findings, *versions.judge_images(settings.webhook.sidecar_image, images)]


async def _certificate(settings: Doctor, registered: Registered | None) -> list[Finding]:
    name = registration.caller_name(registered) if registered else ""
    bundle = registered.client_config.ca_bundle if registered else b""
    served = await port.look(settings.address, name, bundle)
    return list(
        certificate.judge(
            served,
            name or f"{settings.webhook.service_name}.{_namespace(settings)}.svc",
            time.time(),
            managed=bool(settings.webhook.certificate_secret),
            bundle_known=registered is not None,
        )
    )


def _namespace(settings: Doctor) -> str:
    return settings.namespace or own_namespace()
