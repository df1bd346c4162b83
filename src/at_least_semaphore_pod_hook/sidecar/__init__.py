"""What runs in every pod: it renews the pod's permit, and gives it back on SIGTERM or ends with the pod.

Every hundred kilobytes count, since there is one of it for each pod. So it does without asyncio, a client library,
`logging`, `hashlib` (which loads all of OpenSSL), and without `ssl` unless the address asks for TLS; and it uses
`_socket` and `_sha1`, which the standard library's own `socket` and `hashlib` are made of.
"""

from at_least_semaphore_pod_hook.sidecar.main import run

__all__ = ["run"]
