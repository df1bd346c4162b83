"""How the API server says no: Status objects (meta/v1), and the errors that they mean."""

from __future__ import annotations

import msgspec

from at_least_semaphore_pod_hook.errors import ApiForbiddenError, ApiGoneError, ApiUnavailableError

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE, UNPROCESSABLE = 400, 401, 403, 404, 409, 410, 422
TERMINATING = "NamespaceTerminating"
"""Why nothing can be created in a namespace that is being deleted (with a 403)."""


class Cause(msgspec.Struct):
    """Why, in detail."""

    reason: str = ""
    message: str = ""


class Details(msgspec.Struct):
    """What a Status is about; `kind` is a resource, e.g. pods."""

    name: str = ""
    kind: str = ""
    causes: list[Cause] | None = None


class Status(msgspec.Struct):
    """The API server's way of saying no."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: Details | None = None

    def has_cause(self, reason: str) -> bool:
        """Whether one of its causes is `reason`."""
        return any(cause.reason == reason for cause in (self.details.causes if self.details else None) or ())


_status = msgspec.json.Decoder(Status)


def decode_status(body: bytes | msgspec.Raw, code: int = 0) -> Status:
    """Read a Status; where something on the way answered in its stead, `code` and the answer's beginning are all."""
    try:
        status = _status.decode(body)
    except ValueError:
        return Status(code=code, message=bytes(body[:200]).decode(errors="replace"))
    status.code = status.code or code
    return status


def refusal(what: str, status: Status) -> ApiUnavailableError:
    """Return the error that a Status means."""
    text = f"{what}: {status.code} {status.reason}: {status.message}"
    if status.code == FORBIDDEN:
        return ApiForbiddenError(text)
    # After a restored backup the API server may know only older versions than ours.
    if status.code == GONE or status.has_cause("ResourceVersionTooLarge"):
        return ApiGoneError(text)
    return ApiUnavailableError(text)
