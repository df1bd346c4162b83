"""The Secret and the MutatingWebhookConfiguration, as the API server keeps them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from at_least_semaphore_pod_hook.controller.connection import path_of
from at_least_semaphore_pod_hook.controller.status import CONFLICT
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from at_least_semaphore_pod_hook.controller.connection import Connection

MERGE = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
SECRET_TYPE = "kubernetes.io/tls"  # noqa: S105 - a type


@dataclass(frozen=True, slots=True)
class SecretView:
    """A Secret.

    Attributes:
        version: Changes with every write.
        uid: Its identity.
        data: What is in it.
        asked: Whether its annotation asks for a rotation.
    """

    version: str
    uid: str
    data: Mapping[str, bytes] = field(repr=False)
    asked: bool = False


class ConfigurationView(NamedTuple):
    """A MutatingWebhookConfiguration.

    Attributes:
        version: Changes with every write.
        bundles: What the API server is told to trust (PEM), by webhook.
    """

    version: str
    bundles: Mapping[str, bytes]


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None


class _Secret(msgspec.Struct):
    metadata: _Metadata
    data: dict[str, bytes] | None = None  # msgspec reads Base64


class _ClientConfig(msgspec.Struct, rename="camel"):
    ca_bundle: bytes | None = None


class _Webhook(msgspec.Struct, rename="camel"):
    name: str
    client_config: _ClientConfig


class _Configuration(msgspec.Struct):
    metadata: _Metadata
    webhooks: list[_Webhook] | None = None


_secret = msgspec.json.Decoder(_Secret)
_configuration = msgspec.json.Decoder(_Configuration)


class Objects:
    """Reads and writes the two. Every write names the version that it was decided on, and is refused on any other.

    Every method raises ApiForbiddenError where a rule of RBAC is missing, and ApiUnavailableError where there is no
    answer in time.

    Args:
        connection: To the cluster.
        namespace, secret: Where the Secret is.
        configuration: The MutatingWebhookConfiguration's name.
        annotation: What asks for a rotation, set on the Secret to anything but an empty value.
    """

    def __init__(
        self, connection: Connection, namespace: str, secret: str, configuration: str, annotation: str
    ) -> None:
        self._connection = connection
        self._collection = path_of("api", "v1", "namespaces", namespace, "secrets")
        self._secret = secret
        self._namespace = namespace
        self._path = path_of(
            "apis", "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", configuration
        )
        self._configuration = configuration
        self._annotation = annotation

    async def get_secret(self) -> SecretView | None:
        """Read the Secret; None where there is none."""
        answer = await self._connection.request("GET", f"{self._collection}{path_of(self._secret)}")
        if answer.is_missing("secrets", self._secret):
            return None
        try:
            secret = _secret.decode(answer.done(f"secret {self._namespace}/{self._secret}"))
        except ValueError as error:
            # The error's own text may quote what must not be logged.
            raise ApiUnavailableError(f"the API server's answer is no Secret: {type(error).__name__}") from None
        asked = bool((secret.metadata.annotations or {}).get(self._annotation))
        return SecretView(secret.metadata.resource_version, secret.metadata.uid, secret.data or {}, asked)

    async def write_secret(self, version: str | None, data: Mapping[str, bytes | None]) -> bool:
        """Create the Secret, or write these of its entries, without those that are None; what asks for a rotation goes.

        Returns:
            False where the Secret is not what `version` says; None says that there is none.
        """
        entries = {name: None if value is None else base64.b64encode(value).decode() for name, value in data.items()}
        if version is None:
            body: dict[str, Any] = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": SECRET_TYPE,
                "metadata": {"name": self._secret, "namespace": self._namespace},
                "data": {name: value for name, value in entries.items() if value is not None},
            }
            answer = await self._connection.request("POST", self._collection, body=body)
        else:
            metadata = {"resourceVersion": version, "annotations": {self._annotation: None}}
            body = {"metadata": metadata, "data": entries}
            path = f"{self._collection}{path_of(self._secret)}"
            answer = await self._connection.request("PATCH", path, body=body, content_type=MERGE)
        if (answer.status and answer.status.code == CONFLICT) or answer.is_missing("secrets", self._secret):
            return False
        answer.done(f"secret {self._namespace}/{self._secret}")
        return True

    async def get_configuration(self) -> ConfigurationView | None:
        """Read the configuration; None where there is none."""
        answer = await self._connection.request("GET", self._path)
        if answer.is_missing("mutatingwebhookconfigurations", self._configuration):
            return None
        try:
            found = _configuration.decode(answer.done(f"mutatingwebhookconfiguration {self._configuration}"))
        except ValueError as error:
            raise ApiUnavailableError(f"the API server's answer is no configuration: {error}") from error
        bundles = {each.name: each.client_config.ca_bundle or b"" for each in found.webhooks or ()}
        return ConfigurationView(found.metadata.resource_version, bundles)

    async def write_bundle(self, version: str, webhooks: Sequence[str], bundle: bytes) -> bool:
        """Have the API server trust these authorities (PEM), whichever of the webhooks it asks.

        Returns:
            False where the configuration is not what `version` says.
        """
        encoded = base64.b64encode(bundle).decode()
        body = {
            "metadata": {"resourceVersion": version},
            "webhooks": [{"name": name, "clientConfig": {"caBundle": encoded}} for name in webhooks],
        }
        answer = await self._connection.request("PATCH", self._path, body=body, content_type=STRATEGIC_MERGE)
        if answer.status and answer.status.code == CONFLICT:
            return False
        answer.done(f"mutatingwebhookconfiguration {self._configuration}")
        return True
