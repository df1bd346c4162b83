"""What is to be said of the certificate that the webhook serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.console.doctor.findings import error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding

CHECK, TRUST, CALLERS = "certificate", "certificate trusted", "webhook's callers"
DAY = 86_400
SOON_DAYS = 7
"""As the alert `SemaphoreCertificateEndsSoon` has it."""


class Served(NamedTuple):
    """What was seen at the webhook's port.

    Attributes:
        address: Where.
        trouble: Why nothing was seen; empty where something was.
        names: What the certificate is for.
        begin, end: From when and until when it holds, in seconds since the epoch.
        distrust: Why somebody who trusts `caBundle` alone does not trust it for the name that the API server asks for;
            None where it does, or where `caBundle` is not known.
        answers_strangers: Whether a request without a client certificate was answered.
    """

    address: str
    trouble: str = ""
    names: tuple[str, ...] = ()
    begin: float = 0.0
    end: float = 0.0
    distrust: str | None = None
    answers_strangers: bool = False


def judge(served: Served, name: str, now: float, *, managed: bool, bundle_known: bool) -> Iterator[Finding]:
    """Judge a certificate.

    Args:
        served: What was seen.
        name: As whom the API server calls the webhook.
        now: Seconds since the epoch.
        managed: Whether the webhook makes it itself.
        bundle_known: Whether `caBundle` could be read.
    """
    at = f"at {served.address}"
    if served.trouble:
        yield error(CHECK, f"{at}: {served.trouble}", "see whether the webhook runs, and name it by --webhook-address")
        return
    whose = "self-managed" if managed else "from --certDir"
    renew = "see the webhook's log" if managed else "renew it: see cert-manager's Certificate, or replace the Secret"
    left = (served.end - now) / DAY
    if now < served.begin:
        yield error(CHECK, f"{at}: it begins only in {(served.begin - now) / DAY:.1f} days", "compare the clocks")
    elif left <= 0:
        yield error(CHECK, f"{at}: it ended {-left:.1f} days ago ({whose})", renew)
    elif left < SOON_DAYS:
        yield warning(CHECK, f"{at}: it ends in {left:.1f} days ({whose})", renew)
    else:
        yield ok(CHECK, f"{at}: it ends in {left:.0f} days ({whose})")
    names = ", ".join(served.names) or "no name"
    if name in served.names:
        yield ok("certificate's names", names)
    else:
        yield error("certificate's names", f"{names}; the API server asks for {name}", "issue it for that name")
    if not bundle_known:
        yield warning(TRUST, "caBundle cannot be seen", "see the line on the registration")
    elif served.distrust:
        yield error(
            TRUST, f"not by caBundle: {served.distrust}", "let cert-manager's CA injector or the webhook fill it"
        )
    else:
        yield ok(TRUST, f"by caBundle, for {name}")
    if served.answers_strangers:
        yield warning(
            CALLERS,
            f"{served.address} answers without a client certificate, seen from where doctor runs",
            "let only the API server in, by a NetworkPolicy: whoever reaches the port can take permits",
        )
    else:
        yield ok(CALLERS, f"{served.address} answers nobody without a client certificate, seen from where doctor runs")
