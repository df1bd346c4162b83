"""Pods for the controller's unit tests."""

from __future__ import annotations

from typing import Any

import msgspec

from at_least_semaphore_pod_hook.controller.pod_decoder import PodDecoder
from at_least_semaphore_pod_hook.controller.pods import PodView
from tests.unit.fakes import PREFIX

SIDECAR = "at-least-semaphore-pod-sidecar"
DECODER = PodDecoder(PREFIX, SIDECAR)


def document(name: str = "web-0", *, uid: str = "u", version: int = 1, **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version)}
    metadata |= {"creationTimestamp": "2026-01-02T03:04:05Z"} | parts.pop("metadata", {})
    spec = {"containers": [{"name": "main", "image": "busybox"}], "restartPolicy": "Always"} | parts.pop("spec", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, **parts}


def pod_view(name: str = "web-0", *, uid: str = "u", version: int = 1, **parts: Any) -> PodView:
    return DECODER.pod(msgspec.json.encode(document(name, uid=uid, version=version, **parts)))
