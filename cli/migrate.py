"""Bring the database's schema to a revision, and tell whether it is at the one that this code needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, text

import migrations
from service.db import Database, make_engine
from service.errors import InvalidRequest, Unavailable

# Any number that nobody else uses: one migration at a time on a PostgreSQL server.
_ADVISORY_LOCK = 0x5A45524F


@dataclass(frozen=True)
class Migration:
    """The revisions before and after; None is a database without a schema."""

    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before == self.after:
            return f"The database's schema is at revision {self.after} already; nothing was changed."
        if self.before is None:
            return f"The database's schema was made; it is at revision {self.after}."
        return f"The database's schema was at revision {self.before} and is now at {self.after}."


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def migrate(engine: Engine, *, revision: str = "head") -> Migration:
    """Bring the engine's database to the revision, up or down. Two processes that do it at once wait for each other.

    All or nothing: when it raises, nothing was changed. Going down drops what the later revisions added, with what it holds.
    Raises InvalidRequest for a revision that this code does not have, Unavailable for a database at one (code
    `schema_too_new`), and what `Database.write` raises.
    """
    config = alembic_config()
    known = _revisions(config)
    target = known[-1] if revision == "head" else revision
    if target not in known:
        raise InvalidRequest(f"there is no revision {target!r}; this code has {', '.join(known)}", param="to")
    own = make_engine(engine.url.render_as_string(hide_password=False))
    if own.dialect.name == "sqlite":
        # Alembic changes a table of SQLite by copying and dropping it, and a drop would cascade into the rows that refer to it.
        event.listen(own, "connect", _foreign_keys_off)
    try:
        with Database(own).write() as session:
            connection = session.connection()
            _wait_for_turn(connection)
            before = _revision_of(connection)
            _refuse_newer(before, known)
            config.attributes["connection"] = connection
            if before is not None and known.index(target) < known.index(before):
                command.downgrade(config, target)
            else:
                command.upgrade(config, target)
            _refuse_broken_references(connection)
    finally:
        own.dispose()
    return Migration(before, target)


def check_migrated(engine: Engine) -> None:
    """Return when the database is at this code's newest revision.

    Raises Unavailable: with code `schema_outdated` when `zerogate migrate` has to be run first, with `schema_too_new` when newer
    code has been here.
    """
    known = _revisions(alembic_config())
    with Database(engine).read() as session:
        found = _revision_of(session.connection())
    _refuse_newer(found, known)
    if found != known[-1]:
        state = "has no schema yet" if found is None else f"has the schema of revision {found}"
        raise Unavailable(
            f"the database {state}, and this code needs revision {known[-1]}: run `zerogate migrate`", code="schema_outdated"
        )


def _revisions(config: Config) -> list[str]:
    """This code's revisions, from the first to the newest."""
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _wait_for_turn(connection: Connection) -> None:
    # On SQLite the transaction has the database for itself since it began.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        # From here on others wait for us: rather give up than keep all requests waiting behind one long transaction.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))


def _refuse_newer(found: str | None, known: list[str]) -> None:
    if found is not None and found not in known:
        raise Unavailable(
            f"the database has the schema of revision {found}, which this code does not know (its newest is {known[-1]}): newer "
            f"code has been here. Run that, or have it go down first with `zerogate migrate --to {known[-1]}`",
            code="schema_too_new",
        )


def _refuse_broken_references(connection: Connection) -> None:
    # PostgreSQL checks its foreign keys all the time; for SQLite they were off.
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}; nothing was changed")


def _foreign_keys_off(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")
