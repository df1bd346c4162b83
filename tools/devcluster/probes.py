"""What the stand-in kubelet probes: TCP ports of 127.0.0.1, where all that a pod really runs listens."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

Object = dict[str, Any]

_ADDRESS = "127.0.0.1"


class Probe(NamedTuple):
    """A tcpSocket probe, with Kubernetes' defaults; times are in seconds.

    `failures` in a row are one too many; `grace` is what lies between SIGTERM and SIGKILL then.
    """

    port: int
    delay: float
    period: float
    timeout: float
    failures: int
    grace: float


def read(container: Object, kind: str, grace: float) -> Probe | None:
    """Return a container's probe of a kind, such as "livenessProbe"; other ways to probe are taken for none.

    `grace` is the pod's own, where the probe has none.
    """
    probe = container.get(kind) or {}
    if "tcpSocket" not in probe:
        return None
    return Probe(
        int(probe["tcpSocket"]["port"]),
        probe.get("initialDelaySeconds", 0),
        probe.get("periodSeconds", 10),
        probe.get("timeoutSeconds", 1),
        probe.get("failureThreshold", 3),
        probe.get("terminationGracePeriodSeconds", grace),
    )


async def until_passed(probe: Probe) -> bool:
    """Probe until it passes; False where it has failed too often."""
    return await _until(probe, passed=True)


async def until_failed(probe: Probe) -> None:
    """Probe until it has failed too often."""
    await _until(probe, passed=False)


async def _until(probe: Probe, *, passed: bool) -> bool:
    await asyncio.sleep(probe.delay)
    failures = 0
    while True:
        if await _answers(probe):
            if passed:
                return True
            failures = 0
        else:
            failures += 1
            if failures >= probe.failures:
                return False
        await asyncio.sleep(probe.period)


async def _answers(probe: Probe) -> bool:
    try:
        async with asyncio.timeout(probe.timeout):
            _, writer = await asyncio.open_connection(_ADDRESS, probe.port)
    except OSError:
        return False
    writer.close()
    return True
