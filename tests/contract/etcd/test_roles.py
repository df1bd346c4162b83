"""The shipped roles of etcd (`deploy/store/etcd-roles.sh`): each permission is needed, and nothing else is allowed.

That they are enough is shown by the whole contract suite, whose stores have them.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from at_least_semaphore_pod_hook import etcd_permits
from at_least_semaphore_pod_hook.errors import UnavailableError
from at_least_semaphore_pod_hook.etcd import Client, EtcdRefusedError
from at_least_semaphore_pod_hook.etcd_permits import EXACT, encoded, head_key
from at_least_semaphore_pod_hook.locks.etcd import EtcdLock
from at_least_semaphore_pod_hook.semaphore.model import Outcome
from at_least_semaphore_pod_hook.stores.etcd.store import open_etcd_store
from tests.contract.accounts import PASSWORD, SIDECAR, WEBHOOK, EtcdAdmin, Permission, permissions
from tests.contract.etcd.stores import create, wish
from tests.contract.lock_backends import address
from tests.contract.wishes import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from at_least_semaphore_pod_hook.addresses import Address
    from devcluster.stores import EtcdServer

DENIED = "permission denied"
GRANTED = permissions()
PERMIT = "a"


@pytest.fixture
def admin(mortal_etcd_server: EtcdServer) -> EtcdAdmin:
    admin = EtcdAdmin(mortal_etcd_server.port)
    admin.let_in()
    return admin


def user(server: EtcdServer, name: str) -> Address:
    return address(server)._replace(username=name, password=PASSWORD)


async def as_webhook(server: EtcdServer, admin: EtcdAdmin) -> None:
    """Do what a webhook does, from a store without anything."""
    admin.post("/v3/kv/deleterange", {"key": encoded("\0"), "range_end": encoded("\0")})
    store, lock = open_etcd_store([user(server, WEBHOOK)]), EtcdLock([user(server, WEBHOOK)])
    try:
        async with lock.hold(str(KEY), 5):
            await create(store, 1)
        changes = store.changes()
        async with asyncio.timeout(10), aclosing(changes), heard(changes) as done:  # type: ignore[type-var]
            while not done():
                assert (await store.acquire(wish(PERMIT, 1))).outcome is Outcome.GRANTED
                assert (await store.acquire(wish("b", 1, owner="Job/b"))).outcome is Outcome.FULL
                assert await store.release(KEY, PERMIT, ended=True)
                await asyncio.sleep(0.1)
        assert (await store.state(KEY)).denied == ("Job/b",)
    finally:
        await lock.close()
        await store.close()


@asynccontextmanager
async def heard(changes: AsyncIterator[Any]) -> AsyncIterator[Callable[[], bool]]:
    """Listen, and say whether anything was heard; nobody listens any more after it."""
    listening = asyncio.ensure_future(anext(changes))
    try:
        yield listening.done
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def as_sidecar(server: EtcdServer, admin: EtcdAdmin) -> None:
    """Do what a sidecar does with a permit of a semaphore so large that its holders are not counted any more."""
    admin.post("/v3/kv/deleterange", {"key": encoded("\0"), "range_end": encoded("\0")})
    store = open_etcd_store([user(server, WEBHOOK)])
    try:
        await create(store, EXACT * 2)
        assert (await store.acquire(wish(PERMIT, EXACT * 2))).outcome is Outcome.GRANTED
    finally:
        await store.close()
    (head,) = admin.post("/v3/kv/range", {"key": encoded(head_key(str(KEY)))})["kvs"]
    many = base64.b64decode(head["value"]).decode().replace('"held":1', f'"held":{EXACT + 1}')
    assert f'"held":{EXACT + 1}' in many
    admin.post("/v3/kv/put", {"key": head["key"], "value": encoded(many)})
    client = Client([user(server, SIDECAR)])
    try:
        assert (await driven(client, etcd_permits.renew(str(KEY), PERMIT, f"pod-{PERMIT}"))).lease_ms == 60_000
        assert (await driven(client, etcd_permits.release(str(KEY), PERMIT, f"pod-{PERMIT}"))).released
        assert (await driven(client, etcd_permits.renew(str(KEY), PERMIT, f"pod-{PERMIT}"))).lease_ms == 0
    finally:
        await client.close()


async def driven(client: Client, flow: etcd_permits.Flow) -> Any:
    """Send the sidecar's very requests."""
    try:
        path, body = next(flow)
        while True:
            path, body = flow.send(await client.exchange(path, body))
    except StopIteration as end:
        return end.value


DOES: dict[str, Callable[[EtcdServer, EtcdAdmin], Awaitable[None]]] = {WEBHOOK: as_webhook, SIDECAR: as_sidecar}


@pytest.mark.parametrize("role", [WEBHOOK, SIDECAR])
async def test_every_permission_is_needed(mortal_etcd_server: EtcdServer, admin: EtcdAdmin, role: str) -> None:
    own = [permission for permission in GRANTED if permission.role == role]
    assert own
    await DOES[role](mortal_etcd_server, admin)
    # A sidecar writes below queue/ only so: where that is not checked, it would get by without the right.
    unchecked = {"queue/"} if role == SIDECAR and await nested_unchecked(mortal_etcd_server) else set()
    for permission in own:
        admin.revoke(permission)
        await refused(mortal_etcd_server, admin, permission)
        if permission.kind == "READWRITE" and permission.key not in unchecked:
            admin.grant(permission._replace(kind="READ"))
            await refused(mortal_etcd_server, admin, permission)
            admin.revoke(permission)
        admin.grant(permission)
    await DOES[role](mortal_etcd_server, admin)


async def refused(server: EtcdServer, admin: EtcdAdmin, without: Permission) -> None:
    """Expect that a role does not do without a permission; who listens tries again and again."""
    with pytest.raises((UnavailableError, EtcdRefusedError, TimeoutError), match=f"{DENIED}|^$"):
        await DOES[without.role](server, admin)


async def nested_unchecked(server: EtcdServer) -> bool:
    """Say whether this etcd lets anybody write anything from within a transaction of a transaction."""
    client = Client([user(server, SIDECAR)])
    put = {"request_put": {"key": encoded("denied/probe"), "value": encoded("x")}}
    try:
        await client.exchange(etcd_permits.TXN, {"success": [{"request_txn": {"success": [put]}}]})
    except EtcdRefusedError:
        return False
    finally:
        await client.close()
    return True


@pytest.fixture
async def clients(mortal_etcd_server: EtcdServer, admin: EtcdAdmin) -> AsyncIterator[dict[str, Client]]:
    admin.post("/v3/kv/put", {"key": encoded("other"), "value": encoded("secret")})
    made = {role: Client([user(mortal_etcd_server, role)]) for role in DOES}
    yield made
    for client in made.values():
        await client.close()


@pytest.mark.parametrize("role", [WEBHOOK, SIDECAR])
async def test_everything_else_is_refused(clients: dict[str, Client], admin: EtcdAdmin, role: str) -> None:
    put, everything = {"value": encoded("x")}, {"key": encoded("\0"), "range_end": encoded("\0")}
    others = ["other", "queue", "epoch-2", "registry/pods", "lockx"]
    others += ["denied/a", "lock/a", "epoch"] if role == SIDECAR else []
    requests: list[tuple[str, dict[str, Any]]] = [
        *(("/v3/kv/put", {"key": encoded(key), **put}) for key in others),
        *(("/v3/kv/range", {"key": encoded(key)}) for key in others),
        *(("/v3/kv/deleterange", {"key": encoded(key)}) for key in others),
        *(("/v3/kv/txn", {"success": [{"request_range": {"key": encoded(key)}}]}) for key in others),
        *((f"/v3/kv/{what}", everything) for what in ("range", "deleterange")),
        ("/v3/auth/user/add", {"name": "more", "password": "more"}),
        ("/v3/auth/user/changepw", {"name": "root", "password": "mine"}),
        ("/v3/auth/role/grant", {"name": role, "perm": {"permType": "READWRITE", **everything}}),
        ("/v3/auth/disable", {}),
        ("/v3/maintenance/snapshot", {}),
        ("/v3/maintenance/defragment", {}),
        ("/v3/cluster/member/remove", {"ID": "1"}),
    ]
    if role == SIDECAR:
        requests.append(("/v3/kv/put", {"key": encoded("ended/a/b/c"), **put}))
    for path, body in requests:
        with pytest.raises((UnavailableError, EtcdRefusedError)):
            await clients[role].exchange(path, body)
    assert [kv["value"] for kv in admin.post("/v3/kv/range", {"key": encoded("other")})["kvs"]] == [encoded("secret")]
