"""What etcd's client raises."""

from at_least_semaphore_pod_hook.errors import UnavailableError


class EtcdUnavailableError(UnavailableError):
    """No endpoint answered. What was sent may or may not have been applied."""


class EtcdRefusedError(UnavailableError):
    """etcd answered that it did not do it.

    Attributes:
        code: Why, as a gRPC status code.
    """

    NOT_FOUND = 5
    FAILED_PRECONDITION = 9

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
