"""Which cluster, and who we are in it.

Within a cluster that is in two files of our service account. Elsewhere lightkube reads the kubeconfig, and knows all
the ways to authenticate that one may name. It is loaded only there, as it takes 7 MB.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from at_least_semaphore_pod_hook.controller.status import UNAUTHORIZED
from at_least_semaphore_pod_hook.errors import ApiUnavailableError

if TYPE_CHECKING:
    import httpx2

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Headers = dict[str, str]


class Identity(Protocol):
    """Says who we are. What it says is good until it is refused."""

    async def headers(self, *, refused: bool) -> Headers:
        """Find out what to send; `refused` where what was returned last is not accepted any more.

        Raises ApiUnavailableError where there is nothing to return.
        """
        ...


class Configuration(NamedTuple):
    """A cluster.

    Attributes:
        server: The API server's URL.
        tls: Whom to trust, and a certificate of our own where there is one.
        authority: The file that `tls` trusts, which may be rotated; empty where it is not from a file.
        identity: Who we are.
    """

    server: str
    tls: ssl.SSLContext
    authority: str
    identity: Identity


class TokenFile:
    """A service account's token, which the kubelet rotates."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def headers(self, *, refused: bool) -> Headers:  # noqa: ARG002 - the file is all there is to ask
        """See `Identity.headers`."""
        try:
            return {"Authorization": f"Bearer {self._path.read_text().strip()}"}
        except OSError as error:
            raise ApiUnavailableError(f"the service account's token: {error}") from error


class KubeconfigUser:
    """Whatever a kubeconfig says of its user.

    lightkube's ways to authenticate are written for its own HTTP client: they yield requests with the header set, and
    take the answer. A request and an answer that exist for that alone will do.
    """

    def __init__(self, auth: httpx2.Auth | None) -> None:
        self._auth = auth

    async def headers(self, *, refused: bool) -> Headers:
        """See `Identity.headers`."""
        import httpx2  # noqa: PLC0415 - as lightkube
        from lightkube import ConfigError  # noqa: PLC0415

        if self._auth is None:
            return {}
        request = httpx2.Request("GET", "https://kubernetes.default.svc")
        flow = self._auth.async_auth_flow(request)
        try:
            request = await anext(flow)
            if refused:
                request = await flow.asend(httpx2.Response(UNAUTHORIZED, request=request))
        except StopAsyncIteration:
            pass
        except (ConfigError, OSError, LookupError, ValueError) as error:
            raise ApiUnavailableError(f"the kubeconfig's user: {type(error).__name__}: {error}") from error
        finally:
            await flow.aclose()
        return {"Authorization": request.headers["Authorization"]} if "Authorization" in request.headers else {}


def configure(kubeconfig: str) -> Configuration:
    """Read a kubeconfig, or where there is none, what is known of the cluster that we run in.

    Raises:
        ApiUnavailableError: There is no such file or service account, or it is not what it should be.
    """
    try:
        return _of_kubeconfig(kubeconfig) if kubeconfig else _of_service_account()
    except (OSError, LookupError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ApiUnavailableError(f"the API server's configuration: {reason}") from error


def own_namespace() -> str:
    """Name the namespace that we run in; outside of a cluster, `default`."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return "default"


def _of_service_account() -> Configuration:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    authority = str(SERVICE_ACCOUNT / "ca.crt")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    tls = ssl.create_default_context(cafile=authority)
    return Configuration(server, tls, authority, TokenFile(SERVICE_ACCOUNT / "token"))


def _of_kubeconfig(path: str) -> Configuration:
    from lightkube import ConfigError, KubeConfig  # noqa: PLC0415 - see the module
    from lightkube.config import client_adapter  # noqa: PLC0415
    from yaml import YAMLError  # noqa: PLC0415

    try:
        config = KubeConfig.from_file(path).get()
    except (ConfigError, YAMLError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no kubeconfig: {error}") from error
    if config is None or config.user is None:
        raise ValueError(f"{path} names no context, or one without a user")
    cluster = config.cluster
    try:
        tls = client_adapter.verify_cluster(cluster, config.user, config.abs_file)
        identity = KubeconfigUser(client_adapter.user_auth(config.user))
    except ConfigError as error:
        raise ValueError(f"{path}: {error}") from error
    authority = str(config.abs_file(cluster.certificate_auth)) if cluster.certificate_auth else ""
    return Configuration(cluster.server.rstrip("/"), tls, authority, identity)
