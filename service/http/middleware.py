"""What surrounds every request: its id, the access log, the counts, the last resort for errors, and the limit of its body.

Plain ASGI: Starlette's BaseHTTPMiddleware runs the app in another task, which breaks cancelling and context variables.
"""

import re
import time
from urllib.parse import quote

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.error_answers import answer_to
from service.http.idempotency import Idempotency
from service.http.metrics import HttpMetrics
from service.ids import new_id

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_BODY_BYTES = 32 * 2**20
UPLOAD_PATH = "/v1/datasets"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_UNLOGGED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds by machines
_LONGEST_LOGGED_PATH = 300


def install_middlewares(app: FastAPI, *, max_upload_bytes: int) -> None:
    """Put everything of this folder around the app; the last one added is the outermost.

    RequestContext > BodyLimit > Idempotency > endpoints: the outermost answers what the others raise, and nothing reads a body
    that has no limit. They find the database in `app.state.resources` when a request comes, not before.
    """
    app.state.metrics = HttpMetrics()
    app.add_middleware(Idempotency)
    app.add_middleware(BodyLimit, max_upload_bytes=max_upload_bytes)
    app.add_middleware(RequestContext)


class RequestContext:
    """Gives the request an id, answers what nobody else did, logs one line and counts.

    The id stands in `request.state.request_id`, in every log line of the request and in `x-request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        began = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, observed)
            except Exception as error:
                if status is not None:  # half an answer is out: the server must break the connection off
                    raise
                await answer_to(error, scope)(scope, receive, observed)
            finally:
                _record(scope, status=status, seconds=time.perf_counter() - began)


def _request_id(scope: Scope) -> str:
    theirs = Headers(scope=scope).get("x-request-id", "")
    return theirs if _REQUEST_ID.fullmatch(theirs) else new_id("req")


def _record(scope: Scope, *, status: int | None, seconds: float) -> None:
    metrics: HttpMetrics = scope["app"].state.metrics
    metrics.record(scope, status=status, seconds=seconds)
    if scope["path"] in _UNLOGGED_PATHS:
        return
    # Never the query string: it may hold texts. Quoted again, because a path may hold line breaks for the terminal's sake.
    path = quote(scope["path"])[:_LONGEST_LOGGED_PATH]
    log.info("http.request", method=scope["method"], path=path, status=status, milliseconds=round(seconds * 1000, 1))


class BodyLimit:
    """Refuses bodies that are too large, told so by Content-Length or found out while reading. An upload has a limit of its own.

    FastAPI's `max_body_size` answers in plain text, so it is not used.
    """

    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self._max_upload_bytes = max_upload_bytes
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _TooLarge(limit)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLarge(limit)
            return message

        await self.app(scope, limited, send)

    def _limit_of(self, scope: Scope) -> int:
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/") == UPLOAD_PATH
        return self._max_upload_bytes if is_upload else self._max_body_bytes


class _TooLarge(HTTPException):
    """An HTTPException and not `PayloadTooLarge`: FastAPI turns any other error from reading a body into a 400."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {limit:,} bytes, the limit of this route")
