"""What the webhook's account may do at the API server: what it needs, and what it should not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from at_least_semaphore_pod_hook.console.doctor.findings import error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding
    from at_least_semaphore_pod_hook.settings import Webhook

CHECK = "rights"
LEASE = "at-least-semaphore-pod-hook"


class Right(NamedTuple):
    """Something that somebody may or may not do.

    Attributes:
        verb, group, resource: What.
        namespace: Where; empty for everywhere.
        name: On which object alone; empty for all.
        subresource: Of the resource.
    """

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        """What a rule would say."""
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        named = f" {self.name}" if self.name else ""
        return f"{self.verb} {resource}{named} {f'in {self.namespace}' if self.namespace else 'in all namespaces'}"


EVERYTHING = Right("*", "*", "*")


def needed(settings: Webhook, namespace: str) -> dict[Right, str]:
    """Return what the product does, and what does not work without it where that is not everything."""
    lease = f"{settings.variant}-{LEASE}" if settings.variant else LEASE
    rights = {Right(verb, "", "pods"): "" for verb in ("get", "list", "watch")}
    coordination = "coordination.k8s.io"
    rights |= {Right("create", coordination, "leases", namespace): ""}
    rights |= {Right(verb, coordination, "leases", namespace, lease): "" for verb in ("get", "patch")}
    if settings.certificate_secret:
        secret, configuration = settings.certificate_secret, settings.webhook_configuration
        registration = ("admissionregistration.k8s.io", "mutatingwebhookconfigurations")
        rights |= {Right(verb, "", "secrets", namespace, secret): "" for verb in ("get", "patch")}
        rights |= {Right(verb, *registration, "", configuration): "" for verb in ("get", "patch")}
        rights |= {Right("create", "", "secrets", namespace): "the Secret has to exist beforehand"}
    rights[Right("patch", "", "pods")] = "" if settings.when_full == "gate" else "no pod can wait behind a gate"
    rights[Right("get", "", "nodes")] = "a silent sidecar's permit is not kept"
    rights[Right("create", "events.k8s.io", "events")] = "there are no Events"
    if settings.wake_owners:
        for group, resource in (
            ("apps", "replicasets"),
            ("apps", "statefulsets"),
            ("batch", "jobs"),
            ("", "replicationcontrollers"),
        ):
            rights[Right("patch", group, resource)] = "owners of denied pods are not woken"
    return rights


def excessive(namespace: str) -> tuple[Right, ...]:
    """Return what the manifests do not grant, and what would matter most in another's hands."""
    return (
        EVERYTHING,
        Right("create", "", "pods"),
        Right("update", "", "pods"),
        Right("delete", "", "pods"),
        Right("create", "", "pods", subresource="exec"),
        Right("get", "", "secrets"),
        Right("list", "", "secrets", namespace),
        Right("patch", "apps", "deployments"),
        Right("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    )


def judge(
    who: str, wanted: Mapping[Right, str], allowed: Mapping[Right, bool], wide: Mapping[Right, bool]
) -> Iterator[Finding]:
    """Judge what somebody may do.

    Args:
        who: Of whom it was asked.
        wanted: What is needed, and what does not work without; empty where that is the whole controller.
        allowed: The answers to that.
        wide: The answers to what should not be.
    """
    missing = [right for right in wanted if not allowed[right]]
    apply = "apply rbac.yaml of the manifests"
    for right in missing:
        loss = wanted[right]
        if loss:
            yield warning(CHECK, f"{who} may not {right}: {loss}", apply)
        else:
            yield error(CHECK, f"{who} may not {right}", apply)
    if not missing:
        yield ok(CHECK, f"{who} may do all {len(wanted)} things that are needed")
    more = [right for right in wide if wide[right]]
    if EVERYTHING in more:
        yield warning("rights beyond need", f"{who} may do everything", "run it under the account of the manifests")
    elif more:
        seen = f"{who} may {', '.join(map(str, more))}"
        yield warning("rights beyond need", seen, "take these rights away: the manifests do not grant them")
    else:
        yield ok("rights beyond need", f"none of {len(wide)} that were asked for")
