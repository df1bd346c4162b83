"""The admission handler over a memory store, driven as the API server drives it."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from typing import Any

from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.admission.handler import AdmissionHandler
from at_least_semaphore_pod_hook.admission.inject import SIDECAR_NAME, SidecarTemplate
from at_least_semaphore_pod_hook.semaphore.model import SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from tests.unit.fakes import PREFIX, FaultyStore, LocalLock, review

KEY = SemaphoreKey("default", "resource-name")
TEMPLATE = SidecarTemplate(SIDECAR_NAME, "image:1", "IfNotPresent", "32Mi", ("--log-level=info",), native=False)


class Webhook:
    """A handler over a memory store, driven as the API server drives it."""

    def __init__(
        self,
        *,
        native: bool = False,
        when_full: WhenFull = WhenFull.DENY,
        confirm_port: int = 0,
        fence: bool = False,
        secret: str = "",
        audience: str = "",
    ) -> None:
        self.authorities = "-----BEGIN CERTIFICATE-----\n"
        self.now = 1_800_000_000.0
        self.store = FaultyStore(lambda: self.now)
        self.service = SemaphoreService(self.store, LocalLock())
        self.granted: list[SemaphoreKey] = []
        self.denied: list[SemaphoreKey] = []
        self.handler = AdmissionHandler(
            self.service,
            TEMPLATE._replace(native=native, confirm_port=confirm_port, fence=fence, secret=secret, audience=audience),
            PREFIX,
            when_full=when_full,
            on_granted=self.granted.append,
            on_denied=self.denied.append,
            authorities=lambda: self.authorities,
            clock=lambda: self.now,
        )

    async def ask(self, object_: Any, **request: Any) -> dict[str, Any]:
        sent = review(object_, **request)
        answer = await self.handler.handle(json.dumps(sent).encode(), 1)
        response = json.loads(answer.body)["response"]
        assert response["uid"] == sent["request"]["uid"]
        return dict(response) | {"decision": answer.decision}

    async def create(self, object_: dict[str, Any], **request: Any) -> dict[str, Any]:
        response = await self.ask(object_, **request)
        assert response["allowed"], response
        return apply(object_, response)

    async def held(self, key: SemaphoreKey = KEY) -> list[str]:
        return [holder.permit for holder in (await self.store.state(key)).holders]


def apply(object_: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """Apply a response's JSON patch: the operations and paths that we use, checked as RFC 6902 wants them."""
    changed = copy.deepcopy(object_)
    for operation in json.loads(b64decode(response.get("patch", b64encode_empty()))):
        *path, last = operation["path"].removeprefix("/").split("/")
        target = changed
        for part in path:
            target = target[int(part) if isinstance(target, list) else part]
        if isinstance(target, list):
            index = len(target) if last == "-" else int(last)
            if operation["op"] == "add":
                assert index <= len(target)
                target.insert(index, operation["value"])
            elif operation["op"] == "replace":
                target[index] = operation["value"]
            else:
                assert operation["op"] == "remove"
                del target[index]
        else:
            name = last.replace("~1", "/")
            if operation["op"] == "add":
                target[name] = operation["value"]
            else:
                assert operation["op"] == "remove"
                del target[name]
    return changed


def b64encode_empty() -> str:
    return "W10="


def sidecars(object_: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (section, container)
        for section in ("initContainers", "containers")
        for container in object_["spec"].get(section) or []
        if container["name"] == SIDECAR_NAME
    ]


def permit_of(object_: dict[str, Any]) -> str:
    ((_, sidecar),) = sidecars(object_)
    assert sidecar["args"][0] == "sidecar"
    assert sidecar["args"][-2] == "default/resource-name"
    return str(sidecar["args"][-1])
