"""The database: engine, column types, and the two ways to use it.

`Database.read()` only reads. `Database.write()` commits when its block ends and rolls back when the block raises; this is the
edge, and nothing below it commits. What must happen only after the commit (a message to a worker) is registered with
`after_commit` and forgotten when the transaction fails.

A database that does not answer is Unavailable, one whose disk is full is StorageFull. What the statements themselves did wrong (a
row that is there already, a table that is not) stays SQLAlchemy's error.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from sqlalchemy import DateTime, Dialect, Engine, Executable, Row, create_engine, event, make_url, text
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from service.errors import OutcomeUnknown, ServiceError, StorageFull, Unavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

AlreadyThere = IntegrityError
"""Raised by a session when somebody else made, or removed, the same thing at the same moment."""

_AFTER_COMMIT = "after_commit"
_BUSY_TIMEOUT_MILLISECONDS = 15_000

# How long libpq waits for a PostgreSQL that went without a word (power, cable, firewall); its own answer is minutes to hours. The
# query of the database's URL may say otherwise.
_POSTGRES_PATIENCE = {
    "connect_timeout": 5,  # seconds, per address of the host
    "tcp_user_timeout": 20_000,  # milliseconds until what was sent must have been acknowledged
    "keepalives_idle": 10,  # seconds of silence, and then
    "keepalives_interval": 5,  # a question every so many seconds,
    "keepalives_count": 2,  # and after so many without an answer the connection is dead
}

# How the names of SQLite's result codes begin, and SQLSTATEs of PostgreSQL.
_FULL = ("SQLITE_FULL", "53100")
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03", "40P01", "40001")  # a lock not got in time, a deadlock, a serialization failure
_SQLITE_OUTAGES = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PROTOCOL")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite gives naive ones back; this puts the zone on again."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy passes it)
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone was about to be stored")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy passes it)
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def make_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL (`postgresql+psycopg://`). Its errors show no values: they are texts of users."""
    if not url.startswith("sqlite"):
        patience = {name: value for name, value in _POSTGRES_PATIENCE.items() if name not in make_url(url).query}
        engine = create_engine(url, connect_args=patience, pool_pre_ping=True, hide_parameters=True)
        event.listen(engine, "handle_error", _hide_details)
        return engine
    engine = create_engine(url, connect_args={"check_same_thread": False}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin too late; `_begin_sqlite` does it
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MILLISECONDS}")
    _switch_to_wal(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")  # nothing accepted is ever lost, not even when the power goes


def _switch_to_wal(connection: Any) -> None:
    """The first of several connections to a new file switches it; SQLite does not let the others wait for that by itself."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MILLISECONDS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _hide_details(context: ExceptionContext) -> None:
    # PostgreSQL tells in an error's DETAIL which values were wrong; its first line names the table and the constraint.
    original, wrapped = context.original_exception, context.sqlalchemy_exception
    if isinstance(original, psycopg.Error) and original.diag.message_primary is not None and wrapped is not None:
        wrapped.args = tuple(str(part).replace(str(original), original.diag.message_primary) for part in wrapped.args)
        original.args = (original.diag.message_primary,)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another wrote in between (SQLITE_BUSY_SNAPSHOT, and no
    # timeout helps), so a writing one takes the lock when it begins.
    immediate = connection.get_execution_options().get("sqlite_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


class Database:
    """Sessions over one engine. Safe to share between threads; a session is not."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._readers = sessionmaker(engine, expire_on_commit=False)
        self._writers = sessionmaker(engine.execution_options(sqlite_immediate=True), expire_on_commit=False)
        # SQLite lets a writer wait by looking again, in the end ten times a second; a lock wakes the next one at once.
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads. Raises Unavailable."""
        with _mapping_outages(), self._readers() as session:
            yield session

    def first(self, question: Executable, values: Mapping[str, Any]) -> Row[Any] | None:
        """The first row of the answer, or None; in half the time that a session takes. Raises Unavailable."""
        with _mapping_outages(), self.engine.connect() as connection:
            return connection.execute(question, values).first()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block, then runs what `after_commit` registered.

        Raises Unavailable and StorageFull. Nothing was changed then, unless the message says that this is not known: an answer to
        the commit itself may get lost.
        """
        with self._in_turn(), self._writers() as session:
            session.info[_AFTER_COMMIT] = []
            with _mapping_outages(of_commit=True), session.begin(), _mapping_outages():
                yield session
                session.flush()
        for action in session.info[_AFTER_COMMIT]:
            _run_after_commit(action)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One writer of this process at a time, where the database takes one at a time anyway. Raises Unavailable."""
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=_BUSY_TIMEOUT_MILLISECONDS / 1000):
            raise _unavailable("the database is busy with other work", of_commit=False)
        try:
            yield
        finally:
            self._turn.release()

    def ping(self) -> None:
        """Return when the database answers. Raises Unavailable."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Run `action` when the session's transaction has been committed, and only then."""
    session.info[_AFTER_COMMIT].append(action)


def _run_after_commit(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:  # the row is committed: a lost message must not turn the answer into an error
        log.warning("after_commit.failed", exc_info=True)


@contextmanager
def _mapping_outages(*, of_commit: bool = False) -> Iterator[None]:
    """Raise Unavailable or StorageFull instead of what the driver raises; of_commit: nobody knows what became of the change."""
    try:
        yield
    except PoolTimeoutError as error:
        raise _unavailable("all connections to the database are in use", of_commit=of_commit) from error
    except DBAPIError as error:
        outage = _outage(error, of_commit=of_commit)
        if outage is None:
            raise
        raise outage from error


def _outage(error: DBAPIError, *, of_commit: bool) -> ServiceError | None:
    """What an error says of the database; None when the fault lies with the statement."""
    code = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    if code.startswith(_FULL):
        return StorageFull("the disk of the database is full; nothing was changed: free some space, then ask again")
    if code.startswith(_BUSY):
        return _unavailable("the database is busy with other work", of_commit=of_commit)
    # SQLite's driver calls many things an OperationalError, a table that is not there among them.
    unavailable = code.startswith(_SQLITE_OUTAGES) if code.startswith("SQLITE_") else isinstance(error, OperationalError)
    if unavailable or error.connection_invalidated:
        return _unavailable("the database does not answer", of_commit=of_commit)
    return None


def _unavailable(reason: str, *, of_commit: bool) -> Unavailable:
    if of_commit:
        return OutcomeUnknown(f"{reason}; it did not say whether the change was saved: look before you ask again")
    return Unavailable(f"{reason}; nothing was changed, ask again")
