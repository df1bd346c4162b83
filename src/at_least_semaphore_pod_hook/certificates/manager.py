"""Sees to it that there is a certificate, that it is renewed in time, and that the API server trusts it.

Every replica does it. They need not agree on which of them: each write names the version of the object that it was
decided on, so of two that are made at once, and of one that was held up, the later is refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from at_least_semaphore_pod_hook.certificates import issue
from at_least_semaphore_pod_hook.certificates.decide import Contents, Pair, Seen, Step, decide, kept, serves
from at_least_semaphore_pod_hook.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from at_least_semaphore_pod_hook.certificates.decide import Authority
    from at_least_semaphore_pod_hook.certificates.objects import ConfigurationView, SecretView

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
REPLACE_PAUSE_SECONDS = 10.0
"""How long a replica leaves a pair alone that it has replaced.

Replicas whose clocks are a certificate's life apart would not agree on what holds."""
CURRENT, CURRENT_KEY, NEXT, NEXT_KEY, AUTHORITIES = "tls.crt", "tls.key", "next-tls.crt", "next-tls.key", "ca.crt"


class Store(Protocol):
    """Where the Secret and the configuration are; `objects.Objects` is one. Each method raises ApiUnavailableError."""

    async def get_secret(self) -> SecretView | None:
        """See `Objects`."""

    async def write_secret(self, version: str | None, data: Mapping[str, bytes | None]) -> bool:
        """See `Objects`."""

    async def get_configuration(self) -> ConfigurationView | None:
        """See `Objects`."""

    async def write_bundle(self, version: str, webhooks: Sequence[str], bundle: bytes) -> bool:
        """See `Objects`."""


class Listener(Protocol):
    """Is told of what happens; nothing of it may raise, or wait."""

    def serve(self, pair: Pair) -> None:
        """Serve this pair to new connections from now on."""

    def known(self, authorities: bytes) -> None:
        """These (PEM) vouch for what is served, by now or soon."""

    def trusted(self, yes: bool) -> None:
        """Whether the API server is told to trust what is served."""

    def rotated(self) -> None:
        """We have put another certificate in its predecessor's place."""

    def replaced(self, secret: SecretView) -> None:
        """We have replaced what was of no use in this Secret."""


class Settings(NamedTuple):
    """What is wanted.

    Attributes:
        names: The DNS names of the certificate.
        lifetime_seconds: How long it holds; it is renewed when two thirds of that are over.
        settle_seconds: How long API servers and replicas get to hear of a change.
    """

    names: tuple[str, ...]
    lifetime_seconds: float
    settle_seconds: float


class Observed(NamedTuple):
    """What was seen.

    Attributes:
        at: When, by the steady clock.
        configuration: Read before the Secret, so that what is written to it is never older than what it says.
    """

    at: float
    configuration: ConfigurationView | None
    secret: SecretView | None


class Manager:
    """A replica's part.

    Args:
        store: Where the objects are.
        settings: What is wanted.
        listener: Told of what happens.
        clock: Seconds, only ever rising.
        wall_clock: Seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        listener: Listener,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._listener = listener
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen = Seen(max(settings.settle_seconds, 2 * LOOK_SECONDS))
        self._replaced_at = -REPLACE_PAUSE_SECONDS
        self._troubles = ""
        self.serving: Pair | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        pause = min(LOOK_SECONDS, self._settings.settle_seconds / 5)
        while True:
            wrote = False
            try:
                wrote = await self.act(await self.observe())
            except UnavailableError as error:
                self._trouble("certificates not seen to", str(error))
            except Exception:
                logger.exception("certificates not seen to")
            # Jitter, so that replicas do not write at the same time over and over.
            await asyncio.sleep((pause / 5 if wrote else pause) * (0.8 + 0.2 * random.random()))  # noqa: S311

    async def observe(self) -> Observed:
        """Read both objects."""
        at = self._clock()
        configuration = await self._store.get_configuration()
        return Observed(at, configuration, await self._store.get_secret())

    async def act(self, observed: Observed) -> bool:
        """Take up what is to be served, and do the next step; returns whether one was tried."""
        if self._clock() - observed.at > self._settings.settle_seconds:
            return False  # we were held up: look again
        now, settle = self._wall_clock(), self._settings.settle_seconds
        contents = self._read(observed.secret)
        if contents and contents.current:
            self._listener.known(_pem(contents.authorities))
        bundles = _bundles(observed.configuration)
        wanted = {authority.pem for authority in contents.authorities} if contents else set()
        in_step = bool(bundles) and all({each.pem for each in bundle} == wanted for bundle in bundles)
        common = set.intersection(*({each.pem for each in bundle} for bundle in bundles)) if bundles else set()
        settled = ("settled", contents and contents.current, frozenset(wanted))
        seen = self._seen.look([*common, settled] if in_step else common, observed.at)
        trusted = {pem: seen[pem] for pem in common}
        if contents and serves(contents.current, self.serving, now, trusted, settle) and contents.current:
            self.serving = contents.current
            self._listener.serve(contents.current)
            logger.info("certificate taken up", extra={"expires": _date(contents.current.not_after)})
        self._listener.trusted(self.serving is not None and self.serving.authority.pem in trusted)
        if not bundles:
            self._trouble("nobody is told to trust the certificate", "no such MutatingWebhookConfiguration")
        step = decide(contents, in_step, now, trusted, seen.get(settled, 0), settle)
        if step is Step.NONE or (step is Step.TRUST and not bundles):
            if bundles:
                self._troubles = ""
            return False
        return await self._carry_out(step, observed, contents, bundles)

    async def _carry_out(
        self, step: Step, observed: Observed, contents: Contents | None, bundles: Sequence[Sequence[Authority]]
    ) -> bool:
        if step is Step.REPLACE and observed.at - self._replaced_at < REPLACE_PAUSE_SECONDS:
            return False
        if step is Step.TRUST:
            await self._trust(observed.configuration, contents.authorities if contents else ())
            return True
        known = [each for bundle in bundles for each in bundle]
        data = self._entries(step, contents, known)
        if not await self._store.write_secret(observed.secret.version if observed.secret else None, data):
            return True
        logger.info("certificate's Secret written", extra={"step": step.value})
        if step is Step.REPLACE:
            self._replaced_at = observed.at
            if observed.secret and any(observed.secret.data.values()):
                logger.warning("the Secret held no usable certificate; it was replaced")
                self._listener.replaced(observed.secret)
        if step in {Step.REPLACE, Step.PROMOTE}:
            self._listener.rotated()
        return True

    async def _trust(self, configuration: ConfigurationView | None, authorities: Sequence[Authority]) -> None:
        if configuration and await self._store.write_bundle(
            configuration.version, list(configuration.bundles), _pem(authorities)
        ):
            logger.info("authorities told to the API server", extra={"count": len(authorities)})

    def _entries(self, step: Step, contents: Contents | None, known: Iterable[Authority]) -> Mapping[str, bytes | None]:
        """Return what a step writes into the Secret; `known` is what the API server is told to trust."""
        now = self._wall_clock()
        current, staged, authorities, _ = contents or Contents(None, None, ())
        if step is Step.STAGE:
            pair = self._issue()
            return {NEXT: pair.certificate, NEXT_KEY: pair.key, AUTHORITIES: _pem([*authorities, pair.authority])}
        data: dict[str, bytes | None] = {NEXT: None, NEXT_KEY: None}
        if step is Step.RETIRE and current:
            return data | {AUTHORITIES: _pem([current.authority])}
        if step is Step.PROMOTE and staged:
            # What is served somewhere stays trusted until all have changed over.
            trusted = kept([staged.authority, *authorities], now)
            return data | _current(staged) | {AUTHORITIES: _pem(trusted)}
        pair = self._issue()
        own = [self.serving.authority] if self.serving else []
        return data | _current(pair) | {AUTHORITIES: _pem(kept([pair.authority, *own, *authorities, *known], now))}

    def _issue(self) -> Pair:
        settings = self._settings
        return issue.issue(settings.names, settings.lifetime_seconds, self._wall_clock())

    def _read(self, secret: SecretView | None) -> Contents | None:
        if secret is None:
            return None
        data, names = secret.data, self._settings.names
        authorities = issue.read_authorities(data.get(AUTHORITIES, b""))
        current = issue.read_pair(data.get(CURRENT, b""), data.get(CURRENT_KEY, b""), authorities, names)
        staged = issue.read_pair(data.get(NEXT, b""), data.get(NEXT_KEY, b""), authorities, names)
        return Contents(current, staged, authorities, secret.asked)

    def _trouble(self, message: str, reason: str) -> None:
        if self._troubles != message + reason:
            self._troubles = message + reason
            logger.warning(message, extra={"reason": reason})


def _bundles(configuration: ConfigurationView | None) -> list[tuple[Authority, ...]]:
    return [issue.read_authorities(bundle) for bundle in configuration.bundles.values()] if configuration else []


def _current(pair: Pair) -> dict[str, bytes | None]:
    return {CURRENT: pair.certificate, CURRENT_KEY: pair.key}


def _pem(authorities: Iterable[Authority]) -> bytes:
    return "".join(authority.pem for authority in authorities).encode()


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
