"""The webhook as a process of its own, and its registration with an API server from the project's manifests."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from devcluster.certificates import Authority
from devcluster.controlplane import ControlPlane
from devcluster.process import Process, free_port

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy" / "kustomize" / "base" / "mutatingwebhookconfiguration.yaml"

SHIPPED_ACCOUNT = "at-least-semaphore-pod-hook"
"""The service account in the manifests."""

_START_SECONDS = 20.0
_PROBE_SECONDS = 1.0


class WebhookProcess:
    """A webhook on free ports of 127.0.0.1, with a certificate of its own; a context manager.

    `flags` follow the built-in ones, `env` is added to this process's environment. `port` is kept over restarts. With
    `api`, sidecars renew at it, on `permit_port`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
        api: bool = False,
    ) -> None:
        self.directory = directory
        self.certificates = directory / "certificates"
        self.certificates.mkdir(parents=True, exist_ok=True)
        self.renew_certificate()
        self.port, self.metrics_port, self.probe_port, self.permit_port = (free_port() for _ in range(4))
        self.url = f"https://127.0.0.1:{self.port}/mutate"
        argv = [
            *python,
            "-m",
            "at_least_semaphore_pod_hook",
            "webhook",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--cert-dir={self.certificates}",
            f"--metrics-bind-address=127.0.0.1:{self.metrics_port}",
            f"--health-probe-bind-address=127.0.0.1:{self.probe_port}",
            *(self._permit_flags() if api else ()),
            *flags,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AT_LEAST_SEMAPHORE_")}
        self.process = Process("webhook", argv, directory / "webhook.log", env=environment | dict(env or {}))

    def renew_certificate(self, *, keep_authority: bool = False) -> None:
        """Put a new certificate in the place of the old one.

        It is of a new authority, which has to be registered then, or, as cert-manager does it, of the same one.
        """
        if not keep_authority:
            self._authority = self._new_authority()
        self.ca_bundle = self._authority.ca_file.read_bytes()
        certificate, key = self._authority.issue_server("tls", ["127.0.0.1", "localhost"])
        for source, name in ((key, key.name), (certificate, certificate.name), (self._authority.ca_file, "ca.crt")):
            target = self.certificates / name
            shutil.copy(source, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    def _permit_flags(self) -> tuple[str, ...]:
        port = self.permit_port
        return "--sidecar-mode=api", f"--permit-port={port}", f"--permit-url=https://localhost:{port}"

    def _new_authority(self) -> Authority:
        fresh = self.directory / "fresh"
        fresh.mkdir(parents=True, exist_ok=True)
        return Authority(fresh)

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context that trusts the present certificate's authority."""
        return ssl.create_default_context(cadata=self.ca_bundle.decode())

    def get(self, port: int, path: str) -> tuple[int, str]:
        """GET a probe or metrics page; status 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_PROBE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Say whether it calls itself ready."""
        return self.get(self.probe_port, "/readyz")[0] == 200

    def start(self) -> None:
        """Start it and return once it is ready; DevClusterError with the log's end where it isn't."""
        self.process.start()
        self.process.wait_until(self.ready, _START_SECONDS)

    def log(self) -> str:
        """Return all that it has logged."""
        return self.process.log.read_text() if self.process.log.exists() else ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()


def configuration(url: str, ca_bundle: bytes, **changes: Any) -> dict[str, Any]:
    """Return the project's MutatingWebhookConfiguration with `url` in place of its service.

    `changes` replace fields of its one webhook, e.g. `failurePolicy="Ignore"`.
    """
    document: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    document["metadata"].pop("annotations", None)
    (webhook,) = document["webhooks"]
    webhook["clientConfig"] = {"url": url, "caBundle": base64.b64encode(ca_bundle).decode()}
    webhook.update(changes)
    return document


def shipped_rules(component: str = "") -> str:
    """Return the manifests' roles, or those of a component, as YAML, for a service account of the namespace default."""
    directory = MANIFEST.parents[1] / "components" / component if component else MANIFEST.parent
    documents = list(yaml.safe_load_all((directory / "rbac.yaml").read_text()))
    for document in documents:
        if document["kind"] in {"Role", "RoleBinding"}:
            document["metadata"]["namespace"] = "default"
        for subject in document.get("subjects", ()):
            subject["namespace"] = "default"
    return yaml.safe_dump_all(documents)


def register(control_plane: ControlPlane, webhook: WebhookProcess, **changes: Any) -> None:
    """Register a webhook with the API server, or again after its certificate or port has changed."""
    text = yaml.safe_dump(configuration(webhook.url, webhook.ca_bundle, **changes))
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
