"""The etcd store with users, passwords and certificates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from at_least_semaphore_pod_hook.addresses import parse_store_url
from at_least_semaphore_pod_hook.errors import StoreUnavailableError
from at_least_semaphore_pod_hook.etcd import Client
from at_least_semaphore_pod_hook.semaphore.model import Outcome
from at_least_semaphore_pod_hook.stores.opening import open_store
from devcluster.certificates import Authority
from devcluster.stores import EtcdServer
from tests.contract.accounts import PASSWORD, ROOT, WEBHOOK, EtcdAdmin
from tests.contract.etcd.stores import create, until, wish
from tests.contract.lock_backends import address
from tests.contract.wishes import KEY, REDLOCK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.etcd.stores import Opener


async def forget_tokens(server: EtcdServer, user: str, password: str) -> None:
    """Have etcd refuse the tokens of a user, as it does when they have expired: it does so to a new password's user."""
    client = Client([address(server)._replace(username=ROOT, password=PASSWORD)])
    await client.exchange("/v3/auth/user/changepw", {"name": user, "password": password})
    await client.close()


async def test_a_user_with_the_shipped_role_logs_in_again(mortal_etcd_server: EtcdServer, tmp_path: Path) -> None:
    EtcdAdmin(mortal_etcd_server.port).let_in()
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    store = open_store(parse_store_url(f"etcd://{WEBHOOK}@127.0.0.1:{mortal_etcd_server.port}?password-file={file}"))
    changes = store.changes()
    step = await store.begin(KEY, REDLOCK)
    await store.set_length(KEY, 2, step.fence)
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    assert (await store.acquire(wish("a", 2, owner="Job/a"))).outcome is Outcome.GRANTED
    await store.keep(KEY, "a", "pod-a", "uid-a")
    await forget_tokens(mortal_etcd_server, WEBHOOK, PASSWORD)
    assert await store.renew(KEY, "a", "pod-a") == 60_000
    assert (await store.acquire(wish("b", 2))).outcome is Outcome.GRANTED
    assert (await store.acquire(wish("c", 2, owner="Job/c"))).outcome is Outcome.FULL
    assert (await store.state(KEY)).denied == ("Job/c",)
    assert (await store.version(), await store.mark(1)) == (0, 1)
    await store.forget_denied(KEY, "Job/c")
    assert await store.release(KEY, "a", ended=True) is True
    async with asyncio.timeout(8):
        assert await heard == KEY
    assert await store.renew(KEY, "a", "pod-a") == -1
    assert [key async for key in store.semaphores()] == [KEY]
    await forget_tokens(mortal_etcd_server, WEBHOOK, "other-word")
    with pytest.raises(StoreUnavailableError, match="invalid user ID or password"):
        await store.renew(KEY, "b")
    file.write_text("other-word\n")
    assert await store.renew(KEY, "b") == 60_000
    file.write_text("wrong-word")
    await forget_tokens(mortal_etcd_server, WEBHOOK, "other-word")
    with pytest.raises(StoreUnavailableError, match="invalid user ID or password") as caught:
        await store.renew(KEY, "b")
    assert "wrong-word" not in str(caught.value)
    file.unlink()
    with pytest.raises(StoreUnavailableError, match="No such file"):
        await store.renew(KEY, "b")
    await changes.aclose()  # type: ignore[attr-defined]
    await store.close()


async def test_who_only_listens_logs_in_again(mortal_etcd_server: EtcdServer, opened: Opener) -> None:
    EtcdAdmin(mortal_etcd_server.port).let_in()
    user = address(mortal_etcd_server)._replace(username=WEBHOOK, password=PASSWORD)
    listener, other = opened(user), opened(user)
    await create(other)
    await other.acquire(wish("a"))
    changes = listener.changes()
    heard = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.2)
    old = listener._client._token
    await forget_tokens(mortal_etcd_server, WEBHOOK, PASSWORD)
    mortal_etcd_server.restart()
    assert await other.release(KEY, "a") is True
    async with asyncio.timeout(8):
        assert await heard == KEY
    assert listener._client._token != old
    await changes.aclose()  # type: ignore[attr-defined]


async def test_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server("etcd.test", ["etcd.test"], also_client=True)
    client_certificate, client_key = authority.issue_client("client", "nobody", [])
    # etcd's own gateway is a client of it, and shows the server's certificate.
    server = EtcdServer(
        tmp_path,
        fsync=False,
        tls=(certificate, key),
        arguments=["--client-cert-auth", f"--trusted-ca-file={authority.ca_file}"],
    )
    server.process.start()
    try:
        options = f"ca-file={authority.ca_file}&server-name=etcd.test"
        own = f"cert-file={client_certificate}&key-file={client_key}"
        store = open_store(parse_store_url(f"etcds://127.0.0.1:{server.port}?{options}&{own}"))

        async def works() -> bool:
            try:
                await store.state(KEY)
            except StoreUnavailableError:
                return False
            return True

        await until(works, 10)
        step = await store.begin(KEY, REDLOCK)
        await store.set_length(KEY, 2, step.fence)
        assert (await store.acquire(wish("a", 2))).outcome is Outcome.GRANTED
        # Files that change are read again.
        fresh = authority.issue_client("fresh", "nobody", [])
        fresh[0].replace(client_certificate)
        fresh[1].replace(client_key)
        assert await store.renew(KEY, "a") == 60_000
        client_key.write_text("no key")
        with pytest.raises(StoreUnavailableError, match=r"client\.key"):
            await store.renew(KEY, "a")
        await store.close()
        for wrong, reason in (
            (options, "certificate|closed|reset|alert|disconnected"),
            (f"{own}&server-name=other.test&ca-file={authority.ca_file}", "client.key|mismatch"),
        ):
            stranger = open_store(parse_store_url(f"etcds://127.0.0.1:{server.port}?{wrong}"))
            with pytest.raises(StoreUnavailableError, match=f"(?i){reason}"):
                await stranger.state(KEY)
            await stranger.close()
    finally:
        server.process.kill()
