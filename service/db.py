"""The database: engine, column types, and the two ways to use it.

`Database.read()` only reads. `Database.write()` commits when its block ends and rolls back when the block raises; this is the
edge, and nothing below it commits. What must happen only after the commit (a message to a worker) is registered with
`after_commit` and forgotten when the transaction fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import DateTime, Dialect, Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from service.errors import Unavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_AFTER_COMMIT = "after_commit"
_BUSY_TIMEOUT_MILLISECONDS = 15_000


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
    """An engine for SQLite or PostgreSQL (`postgresql+psycopg://`). Its errors show no parameters: they hold texts of users."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, connect_args={"check_same_thread": False}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin too late; `_begin_sqlite` does it
    for pragma in (
        "journal_mode=WAL",
        f"busy_timeout={_BUSY_TIMEOUT_MILLISECONDS}",
        "foreign_keys=ON",
        "synchronous=FULL",  # nothing accepted is ever lost, not even when the power goes
    ):
        connection.execute(f"PRAGMA {pragma}")


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

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads."""
        with _mapping_outages(), self._readers() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block, then runs what `after_commit` registered."""
        with _mapping_outages(), self._writers() as session:
            session.info[_AFTER_COMMIT] = []
            with session.begin():
                yield session
            for action in session.info[_AFTER_COMMIT]:
                _run_after_commit(action)

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
def _mapping_outages() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise Unavailable("the database does not answer; nothing was changed, ask again") from error
