"""Every failure as `{"error": {message, type, param, code}}`, the shape whose message OpenAI's clients show.

Endpoints raise; nothing else in the service makes an error answer. What a message says stands where the error is raised, except
for requests that pydantic refuses: their sentences are made here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from service.errors import Busy, Conflict, InvalidRequest, NotFound, PayloadTooLarge, ServiceError
from zerogate.errors import InvalidFile, InvalidRow, ZerogateError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

NO_RETRY = {"x-should-retry": "false"}  # OpenAI's client would send every 409 twice more

_LONGEST_QUOTE = 60  # characters of the caller's own value that a message repeats
_LONGEST_PLACE = 200
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    404: "There is no such thing in this project.",
    409: "The state does not allow this, or (with Retry-After) the same request is still running.",
    413: "The body is larger than this route takes.",
    422: "The Idempotency-Key came back with another request.",
    429: "Too much is waiting for the encoder; ask again after Retry-After.",
    503: "An outside system does not answer; ask again after Retry-After.",
}


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(description="what is wrong, what was found and what is allowed")
    type: str = Field(description="the class of error, e.g. `invalid_request_error`")
    param: str | None = Field(description="the field at fault, dotted: `recipe.epochs`")
    code: str = Field(description="stable and made for programs: `invalid_request`, `not_found`, ...")


class ErrorAnswer(BaseModel):
    """The body of every answer whose status is 400 or more."""

    error: ErrorBody


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these statuses.

    `default` is always among them: it also keeps FastAPI from documenting its own 422, which this service never sends.
    """
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": _MEANINGS.get(status) or HTTPStatus(status).phrase} for status in statuses
    }
    return documented | {"default": {"model": ErrorAnswer, "description": "Any other failure."}}


def install_error_answers(app: FastAPI) -> None:
    """Answer every exception that leaves an endpoint, a dependency or the router in the envelope."""

    async def answer(request: Request, error: Exception) -> Response:
        return answer_to(error, request.scope)

    for kind in (ServiceError, ZerogateError, RequestValidationError, HTTPException, IntegrityError, Exception):
        app.add_exception_handler(kind, answer)


def answer_to(error: Exception, scope: Scope) -> Response:
    """The answer to any exception. One that nobody foresaw is logged with its traceback and answered with 500."""
    match error:
        case ServiceError():
            return _of_service(error)
        case IntegrityError():
            return _of_service(Busy("another request changed the same thing at the same moment; ask again"))
        case RequestValidationError():
            return _of_service(_refused(error))
        case ZerogateError():
            return _of_service(_of_library(error))
        case HTTPException():
            return _of_http(error, scope)
    request_id = scope.get("state", {}).get("request_id", "unknown")
    log.error("request.failed", error=type(error).__name__, exc_info=error)
    message = f"something went wrong inside the service; its log tells what, under request id {request_id}"
    return _envelope(500, ErrorBody(message=message, type=ServiceError.kind, param=None, code=ServiceError.code))


def body_of(error: ServiceError) -> ErrorBody:
    """The part of the envelope that tells about this error."""
    return ErrorBody(message=error.message, type=error.kind, param=error.param, code=error.code)


def headers_of(error: ServiceError) -> dict[str, str]:
    """When, or whether, to ask again."""
    if error.retry_after_seconds is not None:
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, Conflict) and not isinstance(error, Busy):
        return NO_RETRY
    return {}


def _envelope(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    # Plain json escapes everything beyond ASCII: half a surrogate pair in a caller's field name must not break the answer.
    content = json.dumps({"error": body.model_dump()}).encode()
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def _of_service(error: ServiceError) -> Response:
    if error.status >= 500:
        log.warning("request.unavailable", code=error.code, exc_info=error)
    return _envelope(error.status, body_of(error), headers_of(error))


def _of_library(error: ZerogateError) -> InvalidRequest:
    field = error.field if isinstance(error, InvalidRow | InvalidFile) else None
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()  # InvalidRow -> invalid_row
    return InvalidRequest(str(error), code=code, param=field)


def _of_http(error: HTTPException, scope: Scope) -> Response:
    status, path, headers = error.status_code, scope["path"][:_LONGEST_PLACE], dict(error.headers or {})
    match status:
        case 404 if "endpoint" not in scope:  # the router found nothing, as opposed to an endpoint that raised it
            return _of_service(
                NotFound(f"there is no route {scope['method']} {path!r}; GET /docs lists the routes", code="unknown_route")
            )
        case 405:
            # The router's own header names the methods of the first route on this path only.
            headers = {"Allow": _allowed_methods(scope)}
            message = f"{scope['method']} is not allowed on {path!r}; allowed: {headers['Allow']}"
        case _:
            message = str(error.detail)
    code = {400: InvalidRequest.code, 413: PayloadTooLarge.code}.get(status) or HTTPStatus(status).name.lower()
    kind = {404: NotFound.kind, 409: Conflict.kind}.get(status) or (InvalidRequest.kind if status < 500 else ServiceError.kind)
    return _envelope(status, ErrorBody(message=message, type=kind, param=None, code=code), headers)


def _allowed_methods(scope: Scope) -> str:
    routes = scope["app"].router.routes
    allowed = (name for name in _METHODS if any(route.matches({**scope, "method": name})[0] is Match.FULL for route in routes))
    return ", ".join(allowed)


# --- requests that pydantic refused -------------------------------------------------------------------------------------------

_Place = tuple[str, ...]


def _refused(error: RequestValidationError) -> InvalidRequest:
    """One sentence about the fault that tells most, and how many others there are."""
    faults: dict[_Place, list[Mapping[str, Any]]] = {}
    for fault in error.errors():
        faults.setdefault(_place(fault, error.body), []).append(fault)
    # A value that fitted a member of a union further down is at fault there, and not also where the union stands.
    deepest = [place for place in faults if not any(_is_below(other, place) for other in faults)]
    first = next(iter(faults))
    place = next(place for place in deepest if place == first or _is_below(place, first))
    more = len(deepest) - 1
    message = _sentence(".".join(place)[:_LONGEST_PLACE], faults[place])
    if more:
        message += f" ({more} more {'fault' if more == 1 else 'faults'} in this request)"
    return InvalidRequest(message, param=".".join(place[1:])[:_LONGEST_PLACE] or None)


def _place(fault: Mapping[str, Any], body: object) -> _Place:
    """The keys that lead to the fault: `body.recipe.epochs`, without the members of unions that pydantic names in between."""
    source, *keys = fault["loc"]
    if source != "body":
        return (source, *map(str, keys))
    place, value = [source], body
    for key in keys:
        if (isinstance(value, Mapping) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        ):
            place.append(str(key))
            value = value[key]
    if fault["type"] == "missing" and keys:
        place.append(str(keys[-1]))
    return tuple(place)


def _is_below(place: _Place, other: _Place) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _sentence(place: str, faults: Sequence[Mapping[str, Any]]) -> str:
    first = faults[0]
    match first["type"]:
        case "json_invalid":
            return f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
        case "missing":
            return "the body is missing" if place == "body" else f"'{place}' is missing"
        case "extra_forbidden":
            return f"'{place}' is no field of this request; /docs lists the fields"
    if place == "body" and isinstance(first["input"], bytes):
        return "the body was not read as JSON: send it with 'Content-Type: application/json'"
    allowed = dict.fromkeys(_rule(fault["msg"]) for fault in faults)
    return f"'{place}' is {_quoted(first['input'])}; {', or '.join(allowed)}"


def _rule(message: str) -> str:
    """Pydantic's sentence as the second half of ours: "Input should be ..." becomes "it should be ..."."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^Input ", "It ", message)
    return message[:1].lower() + message[1:]


def _quoted(value: object) -> str:
    """The value, cut short; of a list or an object only that it is one."""
    if isinstance(value, Mapping):
        return f"an object with {len(value)} fields"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str | bytes) and len(value) > _LONGEST_QUOTE:
        return f"{value[:_LONGEST_QUOTE]!r}... ({len(value):,} long)"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)[:_LONGEST_QUOTE]
