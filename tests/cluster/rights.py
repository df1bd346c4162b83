"""The rights that are shipped, read from the manifests, beside what an API server was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import yaml

from devcluster.webhook import SHIPPED_ACCOUNT, shipped_rules
from tests.cluster.charts import EXTERNAL, rendered
from tests.cluster.watching import ACCOUNT, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devcluster.audit import Asked
    from tests.cluster.manifests import Object

COMPONENTS = ("", "self-managed-certificates", "sidecar-api", "metrics-auth")
CHARTS = ((), ("certificates.mode=cert-manager", *EXTERNAL))
RELEASE_GATES = f"{SHIPPED_ACCOUNT}-release-gates"
USERS = {
    f"system:serviceaccount:default:{SHIPPED_ACCOUNT}": SHIPPED_ACCOUNT,
    f"system:serviceaccount:default:{RELEASE_GATES}": RELEASE_GATES,
    f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}": SHIPPED_ACCOUNT,
}
"""Whose account of the manifests the tests' users have."""
AUDITED = tuple(USERS)


class Right(NamedTuple):
    """What an account may do; each is one verb with one resource.

    Attributes:
        account: Which of the manifests' accounts.
        everywhere: Whether it may so in all namespaces.
        verb: The verb.
        group: The API group; empty for the core's.
        resource: The resource, `pods/exec` for a subresource.
        names: To which objects it is confined; empty for all.
    """

    account: str
    everywhere: bool
    verb: str
    group: str
    resource: str
    names: frozenset[str] = frozenset()

    @property
    def kind(self) -> Right:
        """The same without the names, which differ between the ways of installation."""
        return self._replace(names=frozenset())

    def __str__(self) -> str:
        where = "" if self.everywhere else " in its own namespace"
        group = f".{self.group}" if self.group else ""
        return f"{self.account}: {self.verb} {self.resource}{group}{where}"

    def covers(self, asked: Asked) -> bool:
        """Say whether a request is one that it is for."""
        return (
            USERS.get(asked.user) == self.account
            and (asked.verb, asked.group, asked.resource) == (self.verb, self.group, self.resource)
            and (not self.names or asked.name in self.names)
        )


def shipped() -> frozenset[Right]:
    """Return all rights of the kustomize base, its components, and the Helm chart, hooks included."""
    sets: list[list[Object]] = [list(yaml.safe_load_all(shipped_rules(component))) for component in COMPONENTS]
    sets += [rendered(*values) for values in CHARTS]
    return frozenset(right for found in sets for right in rights(found))


def rights(found: Iterable[Object]) -> Iterator[Right]:
    """Yield the rights that the bindings among some objects give to service accounts."""
    objects = list(found)
    roles = {(each["kind"], each["metadata"]["name"]): each for each in objects if "rules" in each}
    for binding in (each for each in objects if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}):
        role = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        for account in binding["subjects"]:
            for rule in role["rules"]:
                yield from (
                    Right(
                        account["name"],
                        binding["kind"] == "ClusterRoleBinding",
                        verb,
                        group,
                        resource,
                        frozenset(rule.get("resourceNames", ())),
                    )
                    for verb in rule["verbs"]
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                )
