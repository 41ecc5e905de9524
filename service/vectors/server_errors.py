"""What qdrant-client raises, as the service's errors.

ResourceExhaustedResponse     429 with Retry-After                      -> Unavailable, with that time
UnexpectedResponse            404, or 400 for an unknown vector name    -> NotFound
                              401, 403, 408, 429, 5xx                   -> Unavailable
                              any other 4xx                             -> InvalidRequest
ResponseHandlingException     no connection, time-out, broken answer    -> Unavailable
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from service.errors import InvalidRequest, NotFound, ServiceError, Unavailable

CLIENT_ERRORS = (ApiException, QdrantException, httpx.HTTPError, json.JSONDecodeError)
ANOTHER_TIME = frozenset({401, 403, 408, 429})  # A wrong key is the operator's mistake, not that of who asks.


@contextmanager
def server_errors(collection: str) -> Iterator[None]:
    """Raise the service's error in place of the client's."""
    try:
        yield
    except CLIENT_ERRORS as error:
        raise service_error(error, collection=collection) from error


def service_error(error: Exception, *, collection: str) -> ServiceError:
    """Give the service's error for one of CLIENT_ERRORS."""
    match error:
        case UnexpectedResponse():
            return _of_answer(error.status_code or 500, _reason(error), collection=collection)
        case ResourceExhaustedResponse():
            busy = Unavailable(f"The Qdrant server limits its requests: {error}")
            busy.retry_after_seconds = error.retry_after_s
            return busy
    return Unavailable(f"The Qdrant server does not answer: {error!r}")


def _of_answer(status: int, reason: str, *, collection: str) -> ServiceError:
    if status == 404 or "Not existing vector name" in reason:
        return NotFound(f"Collection {collection!r}: Qdrant answers: {reason}")
    if status >= 500 or status in ANOTHER_TIME:
        return Unavailable(f"The Qdrant server answers {status}: {reason}")
    return InvalidRequest(f"Collection {collection!r}: Qdrant refuses this: {reason}")


def _reason(error: UnexpectedResponse) -> str:
    """Give the sentence in Qdrant's answer; a proxy in between answers in other forms, so else the beginning of it."""
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return str(error)
