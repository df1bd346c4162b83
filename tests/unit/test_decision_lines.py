"""One line a decision, of admission, controller and service, with the same fields, as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook.admission.annotations import WhenFull
from at_least_semaphore_pod_hook.semaphore.model import Adoptee, SemaphoreKey
from at_least_semaphore_pod_hook.semaphore.service import SemaphoreService
from at_least_semaphore_pod_hook.server.logs import JsonFormatter
from tests.unit.cluster_double import Cluster
from tests.unit.fakes import FaultyStore, LocalLock, notes, pod
from tests.unit.test_controller import simulated, until
from tests.unit.webhook import KEY, Webhook, permit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELDS = ("semaphore", "namespace", "key", "pod", "permit", "outcome", "milliseconds")


@pytest.fixture(autouse=True)
def informed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def decisions(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the lines on decisions, as they are written."""
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    return [line for line in lines if "outcome" in line]


def told(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return message, outcome and pod of each, once every field has been looked for."""
    for line in lines:
        assert set(FIELDS) <= set(line)
        assert line["milliseconds"] >= 0
    return [(line["message"], line["outcome"], line["pod"]) for line in lines]


async def test_each_admission_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    webhook = Webhook()
    created = await webhook.create(pod("a", metadata={"annotations": notes(length="1")}))
    await webhook.create(created)
    await webhook.ask(pod("b", metadata={"annotations": notes(length="1")}))
    await webhook.ask(pod("c", metadata={"annotations": notes(length="many")}))
    webhook.store.faults["acquire"] = ["fail before"]
    await webhook.ask(pod("d"))
    await webhook.ask(pod("e", metadata={"annotations": {}}))
    lines = decisions(caplog)
    assert told(lines) == [
        ("pod admitted", "granted", "a"),
        ("pod admitted", "resumed", "a"),
        ("pod denied", "denied", "b"),
        ("pod refused", "refused", ""),
        ("admission failed", "failed", "d"),
    ]
    assert {line["namespace"] for line in lines} == {"default"}
    known = [line for line in lines if line["key"]]
    assert {(line["semaphore"], line["key"]) for line in known} == {(str(KEY), KEY.key)}
    assert [line["permit"] for line in lines] == [permit_of(created), permit_of(created), "", "", ""]


async def test_a_gated_pod_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    await Webhook(when_full=WhenFull.GATE).create(pod("a"))
    assert told(decisions(caplog)) == [("pod gated", "gated", "a")]


def test_what_the_controller_grants_and_takes_back_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.start()
        cluster.create("a", length=1)
        await until(lambda: cluster.let_in == ["a"])
        cluster.create("b", length=1)
        await asyncio.sleep(1)
        cluster.finish("a")
        await until(lambda: cluster.let_in == ["a", "b"])
        await asyncio.sleep(1)

    simulated(story)
    lines = decisions(caplog)
    assert told(lines) == [
        ("pod let in", "granted", "a"),
        ("permit reclaimed", "reclaimed", "a"),
        ("pod let in", "granted", "b"),
    ]
    assert all(line["permit"] for line in lines)
    assert lines[0]["permit"] == lines[1]["permit"] != lines[2]["permit"]


async def test_who_is_adopted_and_what_is_undone_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def survey(_key: SemaphoreKey) -> list[Adoptee]:
        return [Adoptee(f"p{number}", f"pod-{number}", f"uid-{number}", number, 60) for number in (1, 2)]

    store = FaultyStore()
    service = SemaphoreService(store, LocalLock(), survey=survey)
    await service.resize(KEY, 3, 1)
    assert told(decisions(caplog)) == [("permit adopted", "adopted", "pod-1"), ("permit adopted", "adopted", "pod-2")]
    # Those that the store still has are not told again.
    caplog.clear()
    store.epoch += 1
    await store.release(KEY, "p1")
    await service.resize(KEY, 3, 1)
    assert told(decisions(caplog)) == [("permit adopted", "adopted", "pod-1")]
    caplog.clear()
    service.give_back(KEY, "p2")
    await service.close()
    assert told(decisions(caplog)) == [("permit of a failed admission given back", "undone", "")]
