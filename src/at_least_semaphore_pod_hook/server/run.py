"""The webhook process: settings in, servers and background work up, everything down in order at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, cast

import uvicorn
import uvloop

from at_least_semaphore_pod_hook import __version__
from at_least_semaphore_pod_hook.admission.annotations import WhenFull, annotation_prefix
from at_least_semaphore_pod_hook.admission.handler import AdmissionHandler
from at_least_semaphore_pod_hook.controller import runner
from at_least_semaphore_pod_hook.controller.release_gates import release_gates
from at_least_semaphore_pod_hook.controller.survey import Survey
from at_least_semaphore_pod_hook.errors import DataVersionError, InvalidInputError
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.server import app, logs, metrics
from at_least_semaphore_pod_hook.server.callers import Callers
from at_least_semaphore_pod_hook.server.certificates import ServingCertificate
from at_least_semaphore_pod_hook.server.farewell import say_farewell
from at_least_semaphore_pod_hook.server.intake import Intake, Limits
from at_least_semaphore_pod_hook.server.listening import Listener, bind
from at_least_semaphore_pod_hook.server.protocol import WebhookProtocol
from at_least_semaphore_pod_hook.server.semaphore_metrics import SEMAPHORES
from at_least_semaphore_pod_hook.server.sidecars import authorities_of, permit_servers, sidecar_template
from at_least_semaphore_pod_hook.server.sweeping import open_understood, raise_ended, sweep

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import Any

    from at_least_semaphore_pod_hook.addresses import Address
    from at_least_semaphore_pod_hook.overview.feed import Feed
    from at_least_semaphore_pod_hook.semaphore.contracts import Lock, Store
    from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
    from at_least_semaphore_pod_hook.server.app import Application
    from at_least_semaphore_pod_hook.server.certificates import Certificate
    from at_least_semaphore_pod_hook.server.scrapers import Scrapers
    from at_least_semaphore_pod_hook.settings import Webhook

logger = logging.getLogger(__name__)

LEASE = "at-least-semaphore-pod-hook"
DRAIN_SECONDS = 12
"""How long admissions under way may take at the end. With the pod's preStop pause, and what is given back after it, it
stays within a grace period of 30 s."""

GC_THRESHOLD = 5_000
PERMIT_LIMITS = Limits(connections=16_384, unfinished=1024, request_bytes=64 * 1024)
"""Each sidecar keeps a connection, and asks for little on it; after a restart all of them come at once."""
KEEP_ALIVE_SECONDS = 120
"""Longer than the API server keeps an idle connection (90 s), so that it is never the server that closes first."""


def main(settings: Webhook) -> int:
    """Run the webhook until SIGTERM or SIGINT, or let all waiting pods go. Returns the exit code."""
    log = logs.set_up(settings.common.log_level, settings.common.log_format)
    if settings.release_gates:
        prefix = annotation_prefix(settings.variant)
        return 0 if uvloop.run(release_gates(settings.kubeconfig, prefix, sidecar_template(settings).name)) else 1

    async def serve() -> None:
        log.attach(asyncio.get_running_loop())
        try:
            await _serve(settings)
        finally:
            log.attach(None)

    try:
        uvloop.run(serve())
    except InvalidInputError as error:
        sys.stderr.write(f"at-least-semaphore-pod-hook: {error}\n")
        return 2
    except DataVersionError as error:
        logger.error("store refused", extra={"reason": str(error)})  # noqa: TRY400 - the reason is all there is to say
        return 1
    except OSError as error:
        logger.error("not started", extra={"reason": str(error)})  # noqa: TRY400 - the reason is all there is to say
        return 1
    return 0


class _Server(uvicorn.Server):
    """A server that leaves signals to the process, which has several servers to stop."""

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._limits = limits

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, within the limits; raises OSError where that is not possible."""
        config = self.config
        try:
            listening = sockets or await bind(config.host, config.port, config.backlog)
        except OSError as error:
            raise OSError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from error
        intake = Intake(self._limits)
        protocol = partial(WebhookProtocol, config, self.server_state, {}, intake)
        self.servers = [cast("asyncio.Server", Listener(listening, config.ssl, protocol, intake))]
        self.started = True


def make_server(
    application: Application,
    host: str,
    port: int,
    context: ssl.SSLContext | None = None,
    limits: Limits = Limits(),  # noqa: B008 - it does not change
) -> uvicorn.Server:
    """Set a server up for an ASGI application, with TLS where there is a context for it; `serve` runs it."""
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http=WebhookProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_context_factory=(lambda _config, _default: context) if context else None,
    )
    return _Server(config, limits)


def make_lock(settings: Webhook) -> Lock:
    """Open the lock that `--lock-mode` names."""
    if settings.common.lock_mode == "etcd":
        from at_least_semaphore_pod_hook.locks.etcd import EtcdLock  # noqa: PLC0415 - only one mode's client is loaded

        return EtcdLock(settings.common.etcd_addresses)
    from at_least_semaphore_pod_hook.locks.redlock import Redlock  # noqa: PLC0415

    try:
        return Redlock(settings.common.redis_addresses)
    except InvalidInputError as error:
        raise InvalidInputError(f"--redis-addresses: {error}") from error


def _certificate(settings: Webhook) -> Certificate:
    if settings.certificate_secret:
        from at_least_semaphore_pod_hook.server.managed import ManagedCertificate  # noqa: PLC0415 - cryptography is large

        return ManagedCertificate(settings)
    certificate = ServingCertificate(settings.cert_dir)
    certificate.load()
    return certificate


def _callers(settings: Webhook, certificate: Certificate) -> list[Callers]:
    if not settings.client_ca_file:
        return []
    callers = Callers(settings.client_ca_file, certificate.context)
    callers.load()
    return [callers]


async def _serve(settings: Webhook) -> None:
    certificate = _certificate(settings)
    callers = _callers(settings, certificate)
    authorities = authorities_of(settings, certificate)
    versioned = await open_understood(settings.common.queue)
    store = versioned.store
    survey = Survey(annotation_prefix(settings.variant))
    service = SemaphoreService(store, make_lock(settings), survey=survey, on_reclaim=_count_reclaimed)
    handler = AdmissionHandler(
        service,
        sidecar_template(settings),
        annotation_prefix(settings.variant),
        when_full=WhenFull(settings.when_full),
        on_granted=SEMAPHORES.granted,
        on_denied=SEMAPHORES.denied,
        authorities=authorities,
    )
    permits = permit_servers(settings, store, authorities)
    started, stopping = asyncio.Event(), asyncio.Event()

    def ready() -> tuple[int, bytes, bytes]:
        if stopping.is_set() or not started.is_set():
            return 503, b"text/plain", b"stopping\n" if stopping.is_set() else b"starting\n"
        if not certificate.ready:
            return 503, b"text/plain", b"waiting for a certificate that the API server trusts\n"
        return 200, b"text/plain", b"ok\n"

    probes = {"/healthz": lambda: (200, b"text/plain", b"ok\n"), "/readyz": ready}
    admissions = make_server(
        app.admission_app(handler, settings.client_names), settings.host, settings.port, certificate.context
    )
    feed = _status_feed(settings, store, survey)
    served = [
        make_server(one.application, settings.host, settings.permit_port, certificate.open_context, PERMIT_LIMITS)
        for one in permits
    ]
    scrapers = _scrapers(settings)
    servers = [admissions, *served, *_side_servers(settings, probes, feed, scrapers, certificate.open_context)]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    background = [
        asyncio.create_task(work)
        for work in (
            certificate.follow(),
            _control(settings, store, service, survey),
            *([feed.run()] if feed else []),
            *(each.follow() for each in callers),
        )
    ]
    sweeping = asyncio.create_task(sweep(service, versioned))
    serving = [asyncio.create_task(server.serve()) for server in servers]
    stopped = asyncio.create_task(stopping.wait())
    try:
        if await _started(servers, serving):
            started.set()
            _settle()
            logger.info(
                "webhook serves",
                extra={
                    "version": __version__,
                    "address": _listening(admissions),
                    "lock_mode": settings.common.lock_mode,
                    "store": str(settings.common.queue),
                },
            )
        await asyncio.wait([stopped, sweeping, *serving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        for task in (sweeping, *background):
            task.cancel()
        await say_farewell(admissions)
        # Probes and metrics are served until the last admission is answered.
        results: list[BaseException | None] = []
        for server, task in zip(servers, serving, strict=True):
            server.should_exit = True
            results += await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(stopped, sweeping, *background, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in permits), *(one.close() for one in scrapers))
        await service.close()
        logger.info("webhook stopped")
    for result in results:
        if isinstance(result, BaseException):
            raise result
    raise_ended(sweeping)


def _status_feed(settings: Webhook, store: Store, survey: Survey) -> Feed | None:
    """Make what the status page shows; None where there is none."""
    if not settings.status_page:
        return None
    from at_least_semaphore_pod_hook.overview.feed import Feed  # noqa: PLC0415 - who does not want it does not pay
    from at_least_semaphore_pod_hook.overview.reading import Reader  # noqa: PLC0415

    return Feed(Reader(store, annotation_prefix(settings.variant), lambda: survey.kube))


def _scrapers(settings: Webhook) -> list[Scrapers]:
    """Return who says who may read metrics; nobody where everybody may."""
    if settings.metrics_auth == "none":
        return []
    from at_least_semaphore_pod_hook.server.scrapers import Reviews, Scrapers  # noqa: PLC0415 - as above

    return [Scrapers(Reviews(settings.kubeconfig))]


def _side_servers(
    settings: Webhook,
    probes: dict[str, Callable[[], tuple[int, bytes, bytes]]],
    feed: Feed | None,
    scrapers: Sequence[Scrapers],
    context: ssl.SSLContext,
) -> list[uvicorn.Server]:
    """Serve metrics and probes, on one port where their addresses are the same; the status page with the metrics.

    Where there are `scrapers`, metrics are for them, by TLS of the context.
    """
    pages: dict[Address, dict[str, Callable[[], tuple[int, bytes, bytes]]]] = {}
    pages.setdefault(settings.metrics_bind_address, {})["/metrics"] = app.metrics_page
    pages.setdefault(settings.health_probe_bind_address, {}).update(probes)
    applications = {address: app.pages_app(served) for address, served in pages.items()}
    if feed is not None:
        from at_least_semaphore_pod_hook.server.status_page import status_app  # noqa: PLC0415

        metrics_address = settings.metrics_bind_address
        applications[metrics_address] = status_app(feed, applications[metrics_address])
    contexts: dict[Address, ssl.SSLContext] = {}
    for one in scrapers:
        contexts[settings.metrics_bind_address] = context
        applications[settings.metrics_bind_address] = one.guard(applications[settings.metrics_bind_address])
    return [
        make_server(served, address.host, address.port, contexts.get(address))
        for address, served in applications.items()
    ]


async def _started(servers: list[uvicorn.Server], serving: list[asyncio.Task[None]]) -> bool:
    """Wait until all servers listen. Returns False where one has ended before."""
    while not all(server.started for server in servers):
        if any(task.done() for task in serving):
            return False
        await asyncio.sleep(0.01)
    return True


def _settle() -> None:
    # What exists by now stays: there is no point in looking through it again at each collection.
    gc.collect()
    gc.freeze()
    # Next to nothing of an admission is in a cycle, so that looking for cycles so often is in vain.
    gc.set_threshold(GC_THRESHOLD)


def _listening(server: uvicorn.Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"{host}:{port}"


def _count_reclaimed(_key: SemaphoreKey, count: int) -> None:
    metrics.RECLAIMED.inc(count)


def _control(settings: Webhook, store: Store, service: SemaphoreService, survey: Survey) -> Coroutine[Any, Any, None]:
    options = runner.Options(
        kubeconfig=settings.kubeconfig,
        prefix=annotation_prefix(settings.variant),
        sidecar_name=sidecar_template(settings).name,
        lease=f"{settings.variant}-{LEASE}" if settings.variant else LEASE,
        wake_owners=settings.wake_owners,
    )
    return runner.run(
        options,
        store,
        service,
        survey,
        on_up=metrics.KUBERNETES_UP.set,
        on_leading=metrics.LEADING.set,
        meter=SEMAPHORES,
    )
