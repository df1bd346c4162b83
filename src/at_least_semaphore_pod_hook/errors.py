"""The project's one exception tree. Drivers' own errors are translated into it where they enter."""


class SemaphoreError(Exception):
    """The root: whatever this project raises on purpose."""


class InvalidInputError(SemaphoreError):
    """A flag, an annotation or a request is not what is accepted; the message says what is."""


class UnavailableError(SemaphoreError):
    """Something that is needed cannot be reached, or not in time. Nothing has been decided."""


class StoreUnavailableError(UnavailableError):
    """The store did not answer in time. What was sent may or may not have been applied."""


class DataVersionError(StoreUnavailableError):
    """The store's data is of a version that this program does not understand. Nothing was changed."""


class LockUnavailableError(UnavailableError):
    """The lock could not be had in time."""


class NotHolderError(SemaphoreError):
    """The permit is another pod's than the one that has shown who it is. Nothing was changed."""


class StaleFenceError(SemaphoreError):
    """A newer holder of the lock has been here since: this step must not write any more."""


class ApiUnavailableError(UnavailableError):
    """The API server did not answer in time, or not with what was asked for. A write may or may not have been done."""


class ApiForbiddenError(ApiUnavailableError):
    """The API server does not let us do this: a rule of RBAC is missing, or admission refused it."""


class ApiGoneError(ApiUnavailableError):
    """The version to go on from is not known any more: only a new list tells what has changed since."""
