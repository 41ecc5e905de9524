"""`Idempotency-Key`: a POST that is sent twice is carried out once, and the second gets the answer of the first.

    claim   one short transaction: the row with `status` null. The primary key lets one of two simultaneous requests through
    run     the endpoint, with its own transaction
    keep    the answer into the row, then send it: who has seen an answer and asks again gets the same one
    free    the row goes when nothing definite came out: an error of ours, "ask again", a cancelled request

The guarantee ends where a process dies between the endpoint's commit and `keep`, or the database in the middle of that commit:
nobody knows then whether the request was carried out. After a minute its key is taken over and it runs again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import quote

import anyio
import structlog
from anyio import to_thread
from sqlalchemy import ColumnElement, and_, delete, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.db import Database, now
from service.errors import Busy, InvalidRequest, KeyReused, OutcomeUnknown, ServiceError
from service.http.error_answers import NO_RETRY
from service.resources import DEFAULT_PROJECT, Resources
from service.tables import IdempotencyKey

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_REMEMBERED = timedelta(hours=24)
_GIVEN_UP = timedelta(seconds=60)  # a claim this old without an answer belongs to a process that died
_LONGEST_KEY = 255
_LONGEST_ROUTE = 200  # the column; no route of ours comes near

# An upload is known again by its content. The others only read: there is nothing to do twice, and keeping their answers would put
# texts and vectors into the database.
_EXEMPT_PATHS = frozenset({"/v1/datasets", "/v1/embeddings"})
_EXEMPT_ENDING = "/search"


@dataclass(frozen=True)
class _Claim:
    """The right to carry a request out. `made_at` tells it from the claim of whoever took the same key over."""

    route: str
    key: str
    request_sha256: str
    made_at: datetime = field(default_factory=now)

    def row(self) -> ColumnElement[bool]:
        """The condition for the row, as long as it is still this claim's."""
        return and_(
            IdempotencyKey.project_id == DEFAULT_PROJECT,
            IdempotencyKey.route == self.route,
            IdempotencyKey.key == self.key,
            IdempotencyKey.created_at == self.made_at,
            IdempotencyKey.status.is_(None),
        )


@dataclass
class _Recorder:
    """Takes an answer instead of sending it. Answers to a POST are small; those that stream are exempt."""

    start: Message | None = None
    parts: list[Message] = field(default_factory=list)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.parts.append(message)

    async def send_on(self, send: Send) -> None:
        if self.start is not None:
            await send(self.start)
        for part in self.parts:
            await send(part)

    def is_unknown(self) -> bool:
        """Whether the answer says that the request may have been carried out."""
        return self._status() == OutcomeUnknown.status and f'"{OutcomeUnknown.code}"'.encode() in self._body()

    def lasting(self) -> tuple[int, str] | None:
        """Status and body, if the answer is one to give again: JSON, no error of ours, and not "ask again later"."""
        if self.start is None or self.start["status"] >= 500:
            return None
        headers = Headers(raw=self.start["headers"])
        if "retry-after" in headers or not headers.get("content-type", "").startswith("application/json"):
            return None
        return self.start["status"], self._body().decode()

    def _status(self) -> int | None:
        return None if self.start is None else self.start["status"]

    def _body(self) -> bytes:
        return b"".join(part.get("body", b"") for part in self.parts)


class Idempotency:
    """Stands inside `RequestContext`, which answers what it raises, and inside `BodyLimit`, because it reads bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key_of(scope) if _is_covered(scope) else None
        if key is None:
            await self.app(scope, receive, send)
            return
        body = await _whole_body(receive)
        if body is None:
            return  # the client went away
        claim = _Claim(quote(scope["path"]), key, _digest(scope["query_string"], body))
        resources: Resources = scope["app"].state.resources
        kept = await to_thread.run_sync(_claim_or_answer, resources.database, claim)
        if kept is not None:
            await kept(scope, receive, send)
            return
        recorder = await self._run(scope, _replaying(body, receive), resources.database, claim)
        await recorder.send_on(send)

    async def _run(self, scope: Scope, receive: Receive, database: Database, claim: _Claim) -> _Recorder:
        recorder = _Recorder()
        try:
            await self.app(scope, receive, recorder.take)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _settle(lambda: _free(database, claim))
            raise
        if recorder.is_unknown():
            return recorder
        answer = recorder.lasting()
        await _settle(lambda: _free(database, claim) if answer is None else _keep(database, claim, *answer))
        return recorder


async def _settle(action: Callable[[], None]) -> None:
    """Write the end of a claim. When that fails, the request is done all the same; its key is taken over after a minute."""
    try:
        await to_thread.run_sync(action)
    except (ServiceError, SQLAlchemyError):
        log.warning("idempotency.unsettled", exc_info=True)


def _is_covered(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = quote(scope["path"].rstrip("/"))
    return len(path) <= _LONGEST_ROUTE and path not in _EXEMPT_PATHS and not path.endswith(_EXEMPT_ENDING)


def _key_of(scope: Scope) -> str | None:
    key = Headers(scope=scope).get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidRequest(
            f"the Idempotency-Key is {len(key)} characters long; it must have 1 to {_LONGEST_KEY}",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
        )
    return key


def _digest(query: bytes, body: bytes) -> str:
    return hashlib.sha256(query + b"\n" + body).hexdigest()  # a query string holds no line break


async def _whole_body(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _claim_or_answer(database: Database, claim: _Claim) -> Response | None:
    """None when the claim was made and the request is to be carried out; otherwise the answer that was kept.

    Raises Busy while another request holds the key, and KeyReused.
    """
    try:
        with database.write() as session:
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < claim.made_at - _REMEMBERED))
            row = session.get(IdempotencyKey, (DEFAULT_PROJECT, claim.route, claim.key))
            if row is None:
                session.add(_new_row(claim))
                return None
            return _answer_of(session, row, claim)
    except IntegrityError:  # PostgreSQL: another request made its claim between our look and our insert
        raise _busy(claim) from None


def _new_row(claim: _Claim) -> IdempotencyKey:
    return IdempotencyKey(
        project_id=DEFAULT_PROJECT,
        route=claim.route,
        key=claim.key,
        request_sha256=claim.request_sha256,
        status=None,
        body=None,
        created_at=claim.made_at,
    )


def _answer_of(session: Session, row: IdempotencyKey, claim: _Claim) -> Response | None:
    if row.request_sha256 != claim.request_sha256:
        raise KeyReused(
            "this Idempotency-Key came with another body or query before; a new request needs a new key", param="Idempotency-Key"
        )
    if row.status is not None and row.body is not None:
        # Every 409 that was kept is a permanent one: "still running" is never kept.
        headers = {"idempotent-replayed": "true"} | (NO_RETRY if row.status == 409 else {})
        return Response(row.body.encode(), status_code=row.status, headers=headers, media_type="application/json")
    dead = _Claim(row.route, row.key, row.request_sha256, made_at=row.created_at)
    if claim.made_at - row.created_at < _GIVEN_UP or not _changed(session, dead, {"created_at": claim.made_at}):
        raise _busy(claim)
    log.warning("idempotency.taken_over", route=claim.route)
    return None


def _busy(claim: _Claim) -> Busy:
    return Busy(f"a POST {claim.route} with this Idempotency-Key is still running; ask again for its answer")


def _changed(session: Session, claim: _Claim, values: dict[str, object]) -> bool:
    """Change the claim's row. False when the claim is another's by now."""
    returned = session.execute(update(IdempotencyKey).where(claim.row()).values(values).returning(IdempotencyKey.key))
    return returned.first() is not None


def _keep(database: Database, claim: _Claim, status: int, body: str) -> None:
    with database.write() as session:
        _changed(session, claim, {"status": status, "body": body})


def _free(database: Database, claim: _Claim) -> None:
    with database.write() as session:
        session.execute(delete(IdempotencyKey).where(claim.row()))
