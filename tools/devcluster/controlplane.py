"""A real Kubernetes control plane on 127.0.0.1: etcd, kube-apiserver, kube-controller-manager and one Node object."""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devcluster import audit
from devcluster.binaries import Report, find_or_build
from devcluster.certificates import Authority, service_account_keys
from devcluster.errors import DevClusterError
from devcluster.process import Process, free_port, log_tail
from devcluster.stores import EtcdServer

_START_SECONDS = 90.0
_REQUEST_SECONDS = 30.0
_RESTART_GRACE_SECONDS = 0.5
_ISSUER = "https://kubernetes.default.svc"
WEBHOOK_CLIENT = "kube-apiserver-webhook-client"
"""The name in the certificate that the API server shows to those webhooks that ask for one."""
_SERVER_NAMES = ("localhost", "127.0.0.1", "10.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


class ControlPlane:
    """etcd, API server and controllers that keep all they write in `directory`; a context manager.

    `apiserver_flags` and `controller_flags` are added after the built-in ones. `fsync` makes etcd sync every write to
    disk, as in production. `node` names the Node object that is created Ready, unless `simulated_node` is false: then
    kubelets make theirs. What the users in `audited` ask is noted in `audit_log` (see `devcluster.audit`). After the
    start there are `url`, `ca_file`, `token` (of group system:masters), `kubeconfig` (the same), and the processes
    `etcd`, `apiserver` and `controller_manager`, which tests may pause or kill.
    """

    def __init__(
        self,
        directory: Path,
        *,
        apiserver_flags: Sequence[str] = (),
        controller_flags: Sequence[str] = (),
        fsync: bool = False,
        node: str = "node-1",
        simulated_node: bool = True,
        audited: Sequence[str] = (),
        report: Report = print,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.audit_log = directory / "audit.log"
        self.without_roles: list[tuple[datetime, datetime]] = []
        """When roles were being taken away, or the API server had not read them yet: it may refuse anything then."""
        self.node = node
        self._simulated_node = simulated_node
        self.binaries = find_or_build(["kube-apiserver", "kube-controller-manager", "kubectl", "etcd"], report)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.token = secrets.token_urlsafe(24)
        self._authority = Authority(directory)
        self.ca_file = self._authority.ca_file
        self.kubeconfig = self._write_kubeconfig("admin", {"token": self.token})
        self._context = ssl.create_default_context(cafile=self.ca_file)
        self._users = 0
        self.etcd = EtcdServer(directory / "etcd", fsync=fsync, binary=self.binaries["etcd"])
        private, public = service_account_keys(directory)
        self.apiserver = self._apiserver(private, public, [*self._audit_flags(audited), *apiserver_flags])
        self.controller_manager = self._controller_manager(private, controller_flags)

    def start(self) -> None:
        """Start everything; return when pods can be created in the namespace default.

        DevClusterError with the end of a log where a part does not become ready.
        """
        try:
            self.etcd.start()
            self.apiserver.start()
            self.apiserver.wait_until(self._ready, _START_SECONDS)
            self.controller_manager.start()
            if self._simulated_node:
                self._create_node()
            self.controller_manager.wait_until(self._default_namespace_ready, _START_SECONDS, "serving namespaces")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process; what they wrote stays in the directory."""
        # The data is thrown away: nothing is gained by waiting for an orderly end.
        self.controller_manager.kill()
        self.apiserver.kill()
        self.etcd.kill()

    def restart_apiserver(self) -> None:
        """End the API server, start it on the same port, and return once it is ready again (about 3 s in all)."""
        with self.losing_roles():
            # It would wait for watches to end by themselves, which takes ten seconds and is of no interest here.
            self.apiserver.terminate(grace=_RESTART_GRACE_SECONDS)
            self.apiserver.start()
            self.apiserver.wait_until(self._ready, _START_SECONDS)

    @contextmanager
    def losing_roles(self) -> Iterator[None]:
        """Note that what is refused until the end of the context says nothing about roles."""
        since = datetime.now(UTC)
        try:
            yield
        finally:
            self.without_roles.append((since, datetime.now(UTC)))

    def kubectl(
        self, *arguments: str, input: str | None = None, check: bool = True, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator (or by another kubeconfig); `input` is its standard input.

        With `check`, DevClusterError with what kubectl said where it fails.
        """
        argv = [str(self.binaries["kubectl"]), f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments]
        done = subprocess.run(argv, input=input, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise DevClusterError(f"kubectl {' '.join(arguments)} failed with {done.returncode}: {done.stderr.strip()}")
        return done

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send one request to the API server as administrator and return its JSON answer.

        `path` begins with /api or /apis. DevClusterError for any answer of 400 or above, or none.
        """
        status, text = self._exchange(method, path, body, content_type)
        if status >= 400:
            raise DevClusterError(f"{method} {path} was answered with {status}: {text[:2000]}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Create a namespace and return once pods can be created in it."""
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        self.controller_manager.wait_until(lambda: self._namespace_ready(name), _START_SECONDS, f"serving {name}")

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig whose client certificate makes its bearer `user` of `groups`; RBAC decides the rest.

        `user` may be a service account's name, "system:serviceaccount:<namespace>:<name>".
        """
        self._users += 1
        name = f"user-{self._users}"
        certificate, key = self._authority.issue_client(name, user, groups)
        return self._write_kubeconfig(name, {"client-certificate": str(certificate), "client-key": str(key)})

    def account_kubeconfig(self, name: str) -> Path:
        """Create a service account in the namespace default, and write a kubeconfig with a token of it."""
        self.request("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
        return self.token_kubeconfig(name)

    def token_kubeconfig(self, name: str) -> Path:
        """Write a kubeconfig with a token of a service account in the namespace default."""
        path = f"/api/v1/namespaces/default/serviceaccounts/{name}/token"
        answer = self.request("POST", path, {"spec": {"expirationSeconds": 3600}})
        return self._write_kubeconfig(f"account-{name}", {"token": answer["status"]["token"]})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _apiserver(self, private: Path, public: Path, flags: Sequence[str]) -> Process:
        certificate, key = self._authority.issue_server("kube-apiserver", _SERVER_NAMES)
        tokens = self.directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        shown, shown_key = self._authority.issue_client("webhook-client", WEBHOOK_CLIENT, ())
        argv = [
            str(self.binaries["kube-apiserver"]),
            f"--admission-control-config-file={_show_to_webhooks(self.directory, shown, shown_key)}",
            f"--etcd-servers={self.etcd.url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            # It would register the loopback address as the kubernetes Service's endpoint, which is refused.
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={tokens}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--profiling=false",
            *flags,
        ]
        return Process("kube-apiserver", argv, self.directory / "kube-apiserver.log", cwd=self.directory)

    def _audit_flags(self, users: Sequence[str]) -> list[str]:
        policy = self.directory / "audit-policy.json"
        policy.write_text(audit.policy(users))
        self.audit_log.touch()
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"] if users else []

    def _controller_manager(self, private: Path, flags: Sequence[str]) -> Process:
        argv = [
            str(self.binaries["kube-controller-manager"]),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={private}",
            f"--root-ca-file={self.ca_file}",
            "--leader-elect=false",
            "--secure-port=0",
            "--profiling=false",
            # The default of 20 requests a second would be what a test or bench of many pods measures.
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
            "--concurrent-job-syncs=20",
            "--concurrent-replicaset-syncs=20",
            # The node is no machine that could be lost; who wants to lose it passes a flag of his own.
            "--node-monitor-grace-period=24h",
            *flags,
        ]
        return Process("kube-controller-manager", argv, self.directory / "kube-controller-manager.log")

    def _write_kubeconfig(self, name: str, credentials: Mapping[str, str]) -> Path:
        path = self.directory / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        # JSON is YAML, and needs no library to write.
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "devcluster",
                    "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": name}}],
                    "clusters": [
                        {
                            "name": "devcluster",
                            "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)},
                        }
                    ],
                    "users": [{"name": name, "user": dict(credentials)}],
                },
                indent=2,
            )
        )
        return path

    def _exchange(self, method: str, path: str, body: object, content_type: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=_REQUEST_SECONDS, context=self._context
        )
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            tail = "" if self.apiserver.alive else f"; it is not running:\n{log_tail(self.apiserver.log)}"
            raise DevClusterError(f"the API server did not answer {method} {path}: {error}{tail}") from error
        finally:
            connection.close()

    def _there(self, path: str) -> bool:
        try:
            return self._exchange("GET", path, None, "application/json")[0] == 200
        except DevClusterError:
            return False

    def _ready(self) -> bool:
        return self._there("/readyz")

    def _namespace_ready(self, name: str) -> bool:
        base = f"/api/v1/namespaces/{name}"
        return self._there(f"{base}/serviceaccounts/default") and self._there(f"{base}/configmaps/kube-root-ca.crt")

    def _default_namespace_ready(self) -> bool:
        return self._namespace_ready("default")

    def _create_node(self) -> None:
        node = {"metadata": {"name": self.node, "labels": {"kubernetes.io/hostname": self.node}}}
        if not self._there(f"/api/v1/nodes/{self.node}"):
            self.request("POST", "/api/v1/nodes", node)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        ready = {"type": "Ready", "status": "True", "reason": "DevCluster", "message": "simulated", **times}
        resources = {"cpu": "1000", "memory": "1Ti", "pods": "10000", "ephemeral-storage": "1Ti"}
        address = {"type": "InternalIP", "address": "127.0.0.1"}
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready], "addresses": [address]}
        path = f"/api/v1/nodes/{self.node}/status"
        self.request("PATCH", path, {"status": status}, "application/strategic-merge-patch+json")


def _show_to_webhooks(directory: Path, certificate: Path, key: Path) -> Path:
    """Write what has the API server show a certificate to all webhooks that ask for one; return the file to name."""
    kubeconfig = directory / "webhooks.kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "users": [{"name": "*", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            }
        )
    )
    configuration = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "WebhookAdmissionConfiguration",
        "kubeConfigFile": str(kubeconfig),
    }
    path = directory / "admission.json"
    plugin = {"name": "MutatingAdmissionWebhook", "configuration": configuration}
    whole = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": [plugin]}
    path.write_text(json.dumps(whole))
    return path
