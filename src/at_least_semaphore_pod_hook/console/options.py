"""The settings of the subcommands that people run by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from at_least_semaphore_pod_hook.addresses import Address, StoreUrl
    from at_least_semaphore_pod_hook.settings import Webhook

FORMATS = ("table", "wide", "json", "yaml")
DOCTOR_FORMATS = ("table", "json", "yaml")


class Access(NamedTuple):
    """Where semaphores and pods are looked for.

    Attributes:
        queue: The store.
        kubeconfig: How to reach the API server; empty for the service account of the pod that we run in.
        variant: Whose annotations are read.
    """

    queue: StoreUrl
    kubeconfig: str
    variant: str


class Status(NamedTuple):
    """The settings of `status`.

    Attributes:
        access: Where to look.
        namespace: Of which namespace; empty for all.
        key: Of which key; empty for all.
        output: One of `FORMATS`.
        watch: Whether to show it over and over.
        interval: Seconds between two readings.
        named: How many holders and waiters of each semaphore are named.
        colour: `auto`, `always` or `never`.
    """

    access: Access
    namespace: str
    key: str
    output: str
    watch: bool
    interval: float
    named: int
    colour: str


class Doctor(NamedTuple):
    """The settings of `doctor`.

    Attributes:
        webhook: Those of the webhook that is examined.
        namespace: The webhook's; empty for the one that we run in.
        account: Namespace and name of the service account whose rights are examined; None for our own.
        address: Where the webhook is looked for.
        output: One of `DOCTOR_FORMATS`.
        colour: `auto`, `always` or `never`.
    """

    webhook: Webhook
    namespace: str
    account: tuple[str, str] | None
    address: Address
    output: str
    colour: str


class Release(NamedTuple):
    """The settings of `release`.

    Attributes:
        access: Where to look.
        namespace: The semaphore's.
        key: The semaphore's.
        permit: What is given back.
        yes: Whether to do it without asking.
    """

    access: Access
    namespace: str
    key: str
    permit: str
    yes: bool
