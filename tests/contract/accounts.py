"""The shipped accounts of stores (`deploy/store`), put into servers and tried out."""

from __future__ import annotations

import functools
import http.client
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from at_least_semaphore_pod_hook.etcd_permits import LOGIN_AGAIN, encoded
from devcluster.topologies import client

if TYPE_CHECKING:
    from devcluster.topologies import RedisCluster, SentinelGroup

SHIPPED = Path(__file__).resolve().parents[2] / "deploy/store"
WEBHOOK, SIDECAR = "webhook", "sidecar"
PASSWORD = "of-the-test"
ROOT = "root"


def rights(file: str) -> dict[str, list[str]]:
    """Return the rights of each user of a shipped ACL file, without password, and without who names nobody."""
    lines = [line.split() for line in (SHIPPED / file).read_text().splitlines()]
    return {name: given for _, name, _, _, *given in lines if name != "default"}


def commands(given: list[str]) -> set[str]:
    """Return the commands among a user's rights."""
    return {right[1:] for right in given if right[0] == "+"}


def let_in(admin: Any, file: str) -> None:
    """Make the users of a shipped ACL file."""
    for name, given in rights(file).items():
        admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *given)


def into_sentinels(group: SentinelGroup, user: str = WEBHOOK) -> str:
    """Make the users of a group's servers and Sentinels; returns the URL that a user has of it."""
    for server in group.servers:
        with group.client(server) as admin:
            let_in(admin, "users-sentinel.acl")
    for sentinel in group.sentinels:
        with client(sentinel.port) as admin:
            let_in(admin, "sentinels.acl")
    places = group.url.partition("@")[2]
    return f"redis+sentinel://{user}:{PASSWORD}@{places}?sentinel-username={user}&sentinel-password={PASSWORD}"


def into_cluster(cluster: RedisCluster, user: str = WEBHOOK) -> str:
    """Make the users of a cluster's nodes; returns the URL that a user has of it."""
    for server in cluster.servers:
        with client(server.port) as admin:
            let_in(admin, "users-cluster.acl")
    return cluster.url.replace("://", f"://{user}:{PASSWORD}@")


class Permission(NamedTuple):
    """What a role may do in etcd: `kind` is READ or READWRITE, of one key or of all that begin with it."""

    role: str
    kind: str
    key: str
    prefix: bool

    @property
    def range_end(self) -> str:
        """The key after the last that it is for; empty where it is one."""
        return self.key[:-1] + chr(ord(self.key[-1]) + 1) if self.prefix else ""


def permissions() -> list[Permission]:
    """Return what the shipped script grants in etcd."""
    found = []
    for line in (SHIPPED / "etcd-roles.sh").read_text().splitlines():
        match shlex.split(line, comments=True):
            case ["etcdctl", "role", "grant-permission", "--prefix=true", role, kind, key]:
                found.append(Permission(role, kind.upper(), key, prefix=True))
            case ["etcdctl", "role", "grant-permission", role, kind, key]:
                found.append(Permission(role, kind.upper(), key, prefix=False))
            case ["etcdctl", "role", "add", _] | ["set", "-eu"] | []:
                pass
            case other:
                raise AssertionError(f"the script does something else: {other}")
    return found


@functools.cache
def etcd_admin(port: int) -> EtcdAdmin:
    """Return the administrator of an etcd; the same one each time."""
    return EtcdAdmin(port)


class EtcdAdmin:
    """The administrator of an etcd, over plain HTTP; logs in where authentication is on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tokens: dict[str, str] = {}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask etcd, and return what it answers."""
        answer = self._exchange(path, body, self._tokens.get(ROOT, ""))
        if any(text in str(answer.get("error", "")) for text in LOGIN_AGAIN):
            answer = self._exchange(path, body, self.token_of(ROOT))
        return answer

    def let_in(self) -> None:
        """Make the shipped roles, a user of each, and turn authentication on."""
        self.add(ROOT)
        for role in {permission.role for permission in permissions()}:
            self.add(role)
        for permission in permissions():
            self.grant(permission)
        self._must("/v3/auth/enable", {})

    def add(self, name: str) -> None:
        """Make a user and a role of one name."""
        self._must("/v3/auth/role/add", {"name": name})
        self._must("/v3/auth/user/add", {"name": name, "password": PASSWORD})
        self._must("/v3/auth/user/grant", {"user": name, "role": name})

    def grant(self, permission: Permission) -> None:
        """Give a role a permission, in the place of one of the same keys."""
        perm = {
            "permType": permission.kind,
            "key": encoded(permission.key),
            "range_end": encoded(permission.range_end),
        }
        self._must("/v3/auth/role/grant", {"name": permission.role, "perm": perm})

    def revoke(self, permission: Permission) -> None:
        """Take a permission from a role."""
        key, end = encoded(permission.key), encoded(permission.range_end)
        self._must("/v3/auth/role/revoke", {"role": permission.role, "key": key, "range_end": end})

    def token_of(self, user: str) -> str:
        """Return a token of a user that etcd knows; logging in takes it a while, so it is done as seldom as need be."""
        known = self._tokens.get(user)
        if known is None or "error" in self._exchange("/v3/kv/range", {"key": encoded("queue/")}, known):
            self._tokens[user] = str(
                self._exchange("/v3/auth/authenticate", {"name": user, "password": PASSWORD})["token"]
            )
        return self._tokens[user]

    def _must(self, path: str, body: dict[str, Any]) -> None:
        answer = self.post(path, body)
        assert "error" not in answer, (path, answer)

    def _exchange(self, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"Authorization": token} if token else {}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            read: dict[str, Any] = json.load(connection.getresponse())
            return read
        finally:
            connection.close()
