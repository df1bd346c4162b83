"""What is to be said of the versions that run together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from at_least_semaphore_pod_hook.console.doctor.findings import error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from at_least_semaphore_pod_hook.console.doctor.findings import Finding

SUPPORTED = (1, 30)
"""What the manifests need."""
NATIVE = (1, 29)
"""Since when the kubelet starts native sidecars unless told not to."""


def judge_api_server(text: str, *, native: bool) -> Finding:
    """Judge the API server's version, such as `v1.34.4`; `native` is whether native sidecars are injected."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    check = "API server"
    if found is None:
        return warning(check, f"its version is {text!r}", "see whether it is 1.30 or later")
    version = (int(found[1]), int(found[2]))
    if native and version < NATIVE:
        return error(
            check, f"{text}, which has no native sidecars", "leave --enable-sidecar-containers out, or upgrade"
        )
    if version < SUPPORTED:
        return warning(check, f"{text}, which this was not tested with", "upgrade to 1.30 or later")
    return ok(check, text)


def judge_images(sidecar: str, webhooks: Mapping[str, str]) -> Iterator[Finding]:
    """Judge whether webhook and sidecars are of one image.

    Args:
        sidecar: What is injected.
        webhooks: The image of each of the webhook's pods, by name.
    """
    images = sorted(set(webhooks.values()))
    if not images:
        return
    if images == [sidecar]:
        yield ok("images", f"webhook and sidecars: {sidecar}")
    else:
        seen = f"webhook: {', '.join(images)}; sidecars: {sidecar}"
        yield warning("images", seen, "wait for the rollout's end, or set --sidecar-image to the webhook's image")
