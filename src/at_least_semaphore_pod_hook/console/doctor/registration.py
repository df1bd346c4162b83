"""What is to be said of the webhook's registration at the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.console.doctor.findings import error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding

CHECK = "registration"
OPT_IN = "at-least-semaphore-pod"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
SHORT_SECONDS, LONG_SECONDS = 5, 30
AS_SHIPPED = "as in the manifests"


class Service(msgspec.Struct):
    """The Service that the API server calls."""

    name: str
    namespace: str
    path: str = ""
    port: int = 443


class ClientConfig(msgspec.Struct, rename="camel"):
    """Where and how the API server calls."""

    ca_bundle: bytes = b""
    service: Service | None = None
    url: str = ""


class Rule(msgspec.Struct, rename="camel"):
    """For what it calls."""

    operations: list[str] = []
    resources: list[str] = []


class MatchCondition(msgspec.Struct):
    """For which objects it calls."""

    name: str = ""
    expression: str = ""


class Requirement(msgspec.Struct):
    """One requirement of a selector."""

    key: str = ""
    operator: str = ""
    values: list[str] = []


class Selector(msgspec.Struct, rename="camel"):
    """In which namespaces it calls."""

    match_expressions: list[Requirement] = []


class Registered(msgspec.Struct, rename="camel"):
    """One webhook of a MutatingWebhookConfiguration."""

    name: str
    client_config: ClientConfig
    rules: list[Rule] = []
    failure_policy: str = "Fail"
    timeout_seconds: int = 10
    match_conditions: list[MatchCondition] = []
    namespace_selector: Selector = msgspec.field(default_factory=Selector)
    side_effects: str = ""


class Behind(NamedTuple):
    """What is behind the Service.

    Attributes:
        trouble: Why it cannot be seen.
        exists: Whether there is such a Service.
        ports: Its ports.
        ready: The ready endpoints' addresses.
        unready: How many others there are.
        pods: The pods of all of them.
    """

    trouble: str = ""
    exists: bool = True
    ports: tuple[int, ...] = ()
    ready: tuple[str, ...] = ()
    unready: int = 0
    pods: tuple[str, ...] = ()


def caller_name(registered: Registered) -> str:
    """Return as whom the API server calls: what the certificate has to be for."""
    if registered.client_config.service:
        service = registered.client_config.service
        return f"{service.name}.{service.namespace}.svc"
    host = registered.client_config.url.partition("://")[2].partition("/")[0]
    return host.rpartition(":")[0].strip("[]") if ":" in host else host


def judge(registered: Registered, prefix: str, own_namespace: str) -> Iterator[Finding]:
    """Judge one webhook of the configuration.

    Args:
        registered: What the API server has.
        prefix: What our annotations begin with.
        own_namespace: The webhook's, whose pods must not need it.
    """
    if not any(
        {"CREATE", "*"} & set(rule.operations) and {"pods", "*"} & set(rule.resources) for rule in registered.rules
    ):
        yield error(CHECK, f"{registered.name}: no rule is for CREATE of pods", f"give it the rules {AS_SHIPPED}")
    else:
        yield ok(CHECK, f"{registered.name}: CREATE of pods")
    if registered.failure_policy == "Ignore":
        yield warning(
            "failurePolicy", "Ignore: while the webhook does not answer, pods run without a permit", "set it to Fail"
        )
    else:
        yield ok("failurePolicy", registered.failure_policy)
    seconds = registered.timeout_seconds
    if SHORT_SECONDS <= seconds <= LONG_SECONDS:
        yield ok("timeoutSeconds", str(seconds))
    else:
        yield warning(
            "timeoutSeconds", f"{seconds}: a failover of the store takes longer", f"set it to 10, {AS_SHIPPED}"
        )
    if registered.side_effects == "NoneOnDryRun":
        yield ok("sideEffects", registered.side_effects)
    else:
        seen = f"{registered.side_effects}: what a dry run may call is told wrongly"
        yield warning("sideEffects", seen, "set it to NoneOnDryRun")
    yield from _judge_conditions(registered.match_conditions, prefix)
    yield from _judge_selector(registered.namespace_selector.match_expressions, own_namespace)


def _judge_conditions(conditions: Sequence[MatchCondition], prefix: str) -> Iterator[Finding]:
    shipped = f"has(object.metadata.annotations) && '{prefix}{OPT_IN}' in object.metadata.annotations"
    others = [each.name for each in conditions if " ".join(each.expression.split()) != shipped]
    if not conditions:
        yield warning("matchConditions", "none: every pod's creation calls the webhook", f"set them {AS_SHIPPED}")
    elif others:
        seen = f"other than {AS_SHIPPED}: {', '.join(others)}"
        yield warning("matchConditions", seen, f"see that whoever has {prefix}{OPT_IN} matches")
    else:
        yield ok("matchConditions", AS_SHIPPED)


def _judge_selector(requirements: Sequence[Requirement], own_namespace: str) -> Iterator[Finding]:
    excluded = {
        value
        for each in requirements
        if (each.key, each.operator) == (NAMESPACE_LABEL, "NotIn")
        for value in each.values
    }
    missing = sorted({"kube-system", own_namespace} - excluded)
    if missing:
        seen = f"does not exclude {', '.join(missing)}: pods there may wait for a webhook that needs them"
        yield warning("namespaceSelector", seen, f"set it {AS_SHIPPED}")
    else:
        yield ok("namespaceSelector", f"excludes {', '.join(sorted(excluded))}")


def judge_behind(service: Service, behind: Behind) -> Iterator[Finding]:
    """Judge whether somebody answers behind the Service."""
    name = f"{service.namespace}/{service.name}"
    if behind.trouble:
        yield warning(
            "service", f"{name} cannot be seen: {behind.trouble}", "run doctor as somebody who may, --kubeconfig"
        )
    elif not behind.exists:
        yield error("service", f"there is no Service {name}", "create it, or correct clientConfig of the registration")
    elif service.port not in behind.ports:
        ports = ", ".join(map(str, behind.ports))
        yield error("service", f"{name} has ports {ports}, and the API server calls {service.port}", "correct either")
    elif not behind.ready:
        seen = f"{name}: none of {behind.unready} endpoints is ready: no opted-in pod can be created"
        yield error("service", seen, "see the webhook's pods and logs")
    elif len(behind.ready) == 1:
        yield warning("service", f"{name}: 1 ready endpoint, {behind.unready} others", "run two replicas or more")
    else:
        yield ok("service", f"{name}: {len(behind.ready)} ready endpoints, {behind.unready} others")
