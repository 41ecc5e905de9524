"""Every error the service answers with: a status code, a stable snake_case code and a sentence.

    ServiceError
      InvalidRequest   400   the request is wrong; `param` names the field
      NotFound         404   no such thing in this project
      Conflict         409   the thing is in another state; asking again does not help
      Busy             409   the same request is still running; asking again helps
      PayloadTooLarge  413
      KeyReused        422   an Idempotency-Key came back with another body
      TooManyRequests  429   too much is waiting already; asking again helps
      Unavailable      503   an outside system does not answer; asking again helps
        OutcomeUnknown 503   ... and it may have done what was asked
      StorageFull      507   no room left for files; helps only once somebody made room

No FastAPI in here: workers raise and store these errors too. `service/http/error_answers.py` turns them into answers.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class ServiceError(Exception):
    """The root. `message` says what was wrong, what was found and what is allowed."""

    status = 500
    kind = "api_error"
    code = "internal_error"
    retry_after_seconds: int | None = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param


class InvalidRequest(ServiceError):
    """The request is wrong; sending it again gives the same answer."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_request"


class NotFound(ServiceError):
    """There is no such thing in this project."""

    status = 404
    kind = "not_found_error"
    code = "not_found"


class Conflict(ServiceError):
    """The thing is in a state that does not allow this; the message names the state and the allowed ones."""

    status = 409
    kind = "conflict_error"
    code = "conflict"


class Busy(ServiceError):
    """The same request is still being worked on; ask again after `retry_after_seconds`."""

    status = 409
    kind = "conflict_error"
    code = "still_running"
    retry_after_seconds = 1


class PayloadTooLarge(ServiceError):
    """The body is larger than this route takes."""

    status = 413
    kind = "invalid_request_error"
    code = "payload_too_large"


class KeyReused(ServiceError):
    """An Idempotency-Key came back with another body."""

    status = 422
    kind = "invalid_request_error"
    code = "idempotency_key_reused"


class TooManyRequests(ServiceError):
    """Too much is waiting already; nothing was done, ask again after `retry_after_seconds`."""

    status = 429
    kind = "rate_limit_error"
    code = "too_many_requests"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, retry_after_seconds: int) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ServiceError):
    """An outside system (database, broker, Qdrant, files) does not answer."""

    status = 503
    kind = "api_error"
    code = "unavailable"
    retry_after_seconds = 5


class StorageFull(ServiceError):
    """A disk, or a bucket, has no room left; the message says which, and what to do. What was being written is not kept."""

    status = 507
    kind = "api_error"
    code = "storage_full"


class OutcomeUnknown(Unavailable):
    """The database did not say whether a change was saved: it may have been."""

    code = "outcome_unknown"


@contextmanager
def inside_a_body() -> Iterator[None]:
    """What a body refers to and is not there makes the request wrong (400); only what the path names is missing (404)."""
    try:
        yield
    except NotFound as error:
        raise InvalidRequest(error.message, code=error.code, param=error.param) from error
