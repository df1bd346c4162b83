"""A look at the API server: the registration, what is behind its Service, rights, versions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from at_least_semaphore_pod_hook.console.doctor.registration import Behind, Registered
from at_least_semaphore_pod_hook.controller.connection import path_of
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from at_least_semaphore_pod_hook.console.doctor.registration import Service
    from at_least_semaphore_pod_hook.console.doctor.rights import Right
    from at_least_semaphore_pod_hook.controller.connection import Connection

T = TypeVar("T")

AUTHORIZATION = "authorization.k8s.io/v1"
SERVICE_LABEL = "kubernetes.io/service-name"


class _Configuration(msgspec.Struct):
    webhooks: list[Registered] = []


class _Port(msgspec.Struct):
    port: int


class _ServiceSpec(msgspec.Struct):
    ports: list[_Port] = []


class _Service(msgspec.Struct):
    spec: _ServiceSpec


class _Conditions(msgspec.Struct):
    ready: bool | None = None


class _Target(msgspec.Struct):
    name: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = []
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Target | None = None


class _Slice(msgspec.Struct):
    endpoints: list[_Endpoint] | None = None


class _Slices(msgspec.Struct):
    items: list[_Slice] = []


class _Container(msgspec.Struct):
    name: str = ""
    image: str = ""


class _PodSpec(msgspec.Struct):
    containers: list[_Container] = []


class _Pod(msgspec.Struct):
    spec: _PodSpec


class _Version(msgspec.Struct, rename="camel"):
    git_version: str = ""


class _ReviewStatus(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _ReviewStatus


class Cluster:
    """Asks the API server. Every method raises ApiUnavailableError where it does not answer, or not to us.

    Args:
        connection: To it.
        account: Namespace and name of the service account whose rights are asked for; None for whoever we are.
    """

    def __init__(self, connection: Connection, account: tuple[str, str] | None) -> None:
        self._connection = connection
        self._account = account

    async def version(self) -> str:
        """Return the API server's version."""
        return _decoded(await self._get("/version"), _Version).git_version

    async def registered(self, name: str) -> list[Registered] | None:
        """Return the webhooks of a MutatingWebhookConfiguration; None where there is none."""
        resource = "mutatingwebhookconfigurations"
        path = path_of("apis", "admissionregistration.k8s.io", "v1", resource, name)
        answer = await self._connection.request("GET", path)
        if answer.is_missing(resource, name):
            return None
        return _decoded(answer.done(f"mutatingwebhookconfiguration {name}"), _Configuration).webhooks

    async def behind(self, service: Service) -> Behind:
        """Look what is behind a Service."""
        path = path_of("api", "v1", "namespaces", service.namespace, "services", service.name)
        try:
            answer = await self._connection.request("GET", path)
            if answer.is_missing("services", service.name):
                return Behind(exists=False)
            ports = _decoded(answer.done(f"service {service.name}"), _Service).spec.ports
            slices = await self._get(
                path_of("apis", "discovery.k8s.io", "v1", "namespaces", service.namespace, "endpointslices"),
                {"labelSelector": f"{SERVICE_LABEL}={service.name}"},
            )
        except ApiUnavailableError as error:
            return Behind(str(error))
        endpoints = [each for one in _decoded(slices, _Slices).items for each in one.endpoints or ()]
        # No word on readiness counts as ready (Kubernetes API, EndpointConditions).
        ready = tuple(each.addresses[0] for each in endpoints if each.conditions.ready is not False and each.addresses)
        pods = tuple(each.target_ref.name for each in endpoints if each.target_ref)
        return Behind("", True, tuple(each.port for each in ports), ready, len(endpoints) - len(ready), pods)

    async def image(self, namespace: str, pod: str, container: str) -> str:
        """Return the image of a pod's container; an empty text where there is none of that name."""
        found = _decoded(await self._get(path_of("api", "v1", "namespaces", namespace, "pods", pod)), _Pod)
        return next((each.image for each in found.spec.containers if each.name == container), "")

    async def allowed(self, rights: Iterable[Right]) -> dict[Right, bool]:
        """Return which of these the account has."""
        wanted = list(rights)
        return dict(zip(wanted, await asyncio.gather(*map(self._may, wanted)), strict=True))

    async def _may(self, right: Right) -> bool:
        spec: dict[str, object] = {
            "resourceAttributes": {
                name: value for name, value in right._asdict().items() if value or name not in {"namespace", "name"}
            }
        }
        kind, resource = "SelfSubjectAccessReview", "selfsubjectaccessreviews"
        if self._account:
            namespace, name = self._account
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
            spec |= {"user": f"system:serviceaccount:{namespace}:{name}", "groups": groups}
            kind, resource = "SubjectAccessReview", "subjectaccessreviews"
        answer = await self._connection.request(
            "POST",
            f"/apis/{AUTHORIZATION}/{resource}",
            body={"apiVersion": AUTHORIZATION, "kind": kind, "spec": spec},
        )
        return _decoded(answer.done(resource), _Review).status.allowed

    async def _get(self, path: str, params: dict[str, str] | None = None) -> bytes:
        return (await self._connection.request("GET", path, params=params)).done(f"GET {path}")


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ApiUnavailableError(f"the API server's answer is not what was asked for: {error}") from error
