"""What `Store`'s docstrings promise, over every store: renewals and releases of pods that have shown who they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.errors import NotHolderError
from tests.contract.wishes import KEY, create, wish

if TYPE_CHECKING:
    from tests.contract.subjects import Subject

GENERATED = "application-with-a-rather-long-name-of-which-the-end-goes-away-"


async def test_the_first_to_renew_has_its_uid_noted(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a")._replace(pod="web-*"))
    assert await subject.store.renew(KEY, "a", "web-x2x9k", "uid-1") == 60_000
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.pod, holder.uid, holder.confirmed) == ("web-x2x9k", "uid-1", True)
    assert await subject.store.renew(KEY, "a", "web-x2x9k", "uid-1") == 60_000
    assert await subject.store.release(KEY, "a", "web-x2x9k", uid="uid-1") is True


async def test_the_name_that_was_shown_last_is_noted(subject: Subject) -> None:
    await create(subject)
    await subject.store.acquire(wish("a")._replace(uid="uid-1"))
    await subject.store.renew(KEY, "a", "web-0")
    await subject.store.renew(KEY, "a", "web-1", "uid-1")
    (holder,) = (await subject.store.state(KEY)).holders
    assert (holder.pod, holder.uid) == ("web-1", "uid-1")


@pytest.mark.parametrize(
    ("reserved", "confirmed", "noted", "pod", "uid"),
    [
        ("web-0", "", "", "web-1", "uid-2"),
        ("web-*", "", "", "other-x2x9k", "uid-2"),
        ("web-*", "web-x2x9k", "", "web-ztr4c", "uid-2"),
        # A pod of the same name has come after it.
        ("web-0", "web-0", "uid-1", "web-0", "uid-2"),
        ("web-0", "", "uid-1", "web-0", "uid-2"),
    ],
)
async def test_another_pods_permit_is_neither_renewed_nor_given_back(
    subject: Subject, reserved: str, confirmed: str, noted: str, pod: str, uid: str
) -> None:
    await create(subject)
    await subject.store.acquire(wish("a")._replace(pod=reserved))
    if confirmed:
        await subject.store.renew(KEY, "a", confirmed)
    if noted:
        await subject.store.keep(KEY, "a", confirmed or reserved, noted)
    subject.advance(1)
    before = subject.dump()
    with pytest.raises(NotHolderError, match=f"permit a is not the one of pod {pod}"):
        await subject.store.renew(KEY, "a", pod, uid)
    for ended in (False, True):
        with pytest.raises(NotHolderError):
            await subject.store.release(KEY, "a", pod, uid=uid, ended=ended)
    assert subject.dump() == before


@pytest.mark.parametrize("reserved", ["", "web-x2x9k", "web-*", "*", f"{GENERATED}*"])
async def test_a_reservation_is_for_whom_it_fits(subject: Subject, reserved: str) -> None:
    await create(subject)
    await subject.store.acquire(wish("a")._replace(pod=reserved))
    pod = f"{GENERATED[:58]}x2x9k" if reserved.startswith(GENERATED) else "web-x2x9k"
    assert await subject.store.renew(KEY, "a", pod, "uid-1") == 60_000


async def test_a_permit_that_is_not_held_is_nobodys(subject: Subject) -> None:
    await create(subject)
    assert await subject.store.renew(KEY, "a", "web-0", "uid-1") == 0
    assert await subject.store.release(KEY, "a", "web-0", uid="uid-1") is False
    await subject.store.acquire(wish("a"))
    await subject.store.release(KEY, "a", ended=True)
    assert await subject.store.renew(KEY, "a", "web-0", "uid-1") == -1
