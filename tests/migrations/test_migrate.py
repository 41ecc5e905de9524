"""`migrate` and `check_migrated`: what they say, whom they refuse, and how several at once get on."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from cli.migrate import Migration, check_migrated, migrate
from service.db import Database, make_engine, now
from service.errors import InvalidRequest, Unavailable
from service.tables import Project, Table

MIGRATIONS = Path(__file__).parents[2] / "migrations" / "versions"
REVISIONS = sorted(file.name.partition("_")[0] for file in MIGRATIONS.glob("[0-9]*.py"))
HEAD = REVISIONS[-1]


def revision_of(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def stamp(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_it_says_what_it_did(engine: Engine) -> None:
    made = migrate(engine, revision="0001")
    raised = migrate(engine)
    nothing = migrate(engine)
    lowered = migrate(engine, revision="0001")

    assert (made, raised) == (Migration(None, "0001"), Migration("0001", HEAD))
    assert (nothing, lowered) == (Migration(HEAD, HEAD), Migration(HEAD, "0001"))
    assert str(made) == "The database's schema was made; it is at revision 0001."
    assert str(raised) == f"The database's schema was at revision 0001 and is now at {HEAD}."
    assert str(nothing) == f"The database's schema is at revision {HEAD} already; nothing was changed."
    assert str(lowered) == f"The database's schema was at revision {HEAD} and is now at 0001."


def test_migrating_again_keeps_the_rows(engine: Engine) -> None:
    migrate(engine)
    database = Database(engine)
    with database.write() as session:
        session.add(Project(id="kept", name="kept", created_at=now()))

    migrate(engine)

    with database.read() as session:
        assert session.get_one(Project, "kept").name == "kept"


@pytest.mark.parametrize("revision", ["base", "0099", "-1", ""])
def test_a_revision_that_is_not_there_is_refused_and_the_ones_that_are_are_named(engine: Engine, revision: str) -> None:
    migrate(engine)

    with pytest.raises(InvalidRequest) as caught:
        migrate(engine, revision=revision)

    assert caught.value.message == f"there is no revision {revision!r}; this code has {', '.join(REVISIONS)}"
    assert revision_of(engine) == HEAD


def test_a_migrated_database_passes_the_check(engine: Engine) -> None:
    migrate(engine)

    check_migrated(engine)


def test_the_check_tells_that_a_database_is_older_than_the_code(engine: Engine) -> None:
    with pytest.raises(Unavailable) as empty:
        check_migrated(engine)
    migrate(engine, revision="0001")
    with pytest.raises(Unavailable) as old:
        check_migrated(engine)

    assert (empty.value.code, old.value.code) == ("schema_outdated", "schema_outdated")
    assert empty.value.message == f"the database has no schema yet, and this code needs revision {HEAD}: run `zerogate migrate`"
    assert old.value.message == (
        f"the database has the schema of revision 0001, and this code needs revision {HEAD}: run `zerogate migrate`"
    )
    assert revision_of(engine) == "0001"


def test_a_database_that_is_newer_than_the_code_is_told_as_such_and_left_alone(engine: Engine) -> None:
    migrate(engine)
    stamp(engine, "0999")

    for refused in (check_migrated, migrate):
        with pytest.raises(Unavailable, match=f"revision 0999, which this code does not know .its newest is {HEAD}.") as caught:
            refused(engine)
        assert caught.value.code == "schema_too_new"

    assert revision_of(engine) == "0999"


# What stands in the way of the second half of revision 0002, and how to take it away again.
OBSTACLES = {
    "sqlite": ("CREATE TABLE _alembic_tmp_collections (id INTEGER)", "DROP TABLE _alembic_tmp_collections"),
    "postgresql": ("ALTER TABLE collections ADD COLUMN settings INTEGER", "ALTER TABLE collections DROP COLUMN settings"),
}


def test_a_migration_that_fails_half_way_leaves_everything_as_it_was(engine: Engine) -> None:
    migrate(engine, revision="0001")
    put, take = OBSTACLES[engine.dialect.name]
    with engine.begin() as connection:
        connection.execute(text(put))

    with pytest.raises(DBAPIError, match="already exists"):
        migrate(engine)

    assert revision_of(engine) == "0001"
    assert "outages" not in {column["name"] for column in inspect(engine).get_columns("jobs")}
    with engine.begin() as connection:
        connection.execute(text(take))
    assert migrate(engine) == Migration("0001", HEAD)


def test_on_sqlite_a_migration_that_finds_rows_without_an_owner_changes_nothing(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'zerogate.db'}")
    migrate(engine, revision="0001")
    with closing(sqlite3.connect(tmp_path / "zerogate.db")) as connection:  # without our pragmas nothing refuses the row
        connection.execute("INSERT INTO promotions VALUES ('p', 'nobody', 'created', NULL, 0, NULL, 0, '2026-01-01')")
        connection.commit()

    with pytest.raises(RuntimeError, match=r"rows that refer to nothing: .*promotions"):
        migrate(engine)

    assert revision_of(engine) == "0001"
    engine.dispose()


def test_eight_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    engines = [make_engine(empty_url) for _ in range(8)]  # eight processes would not share one either
    together = threading.Barrier(len(engines))

    def run(engine: Engine) -> Migration:
        together.wait()
        return migrate(engine)

    with ThreadPoolExecutor(len(engines)) as threads:
        done = list(threads.map(run, engines))

    assert sorted(done, key=str) == [Migration(HEAD, HEAD)] * 7 + [Migration(None, HEAD)]
    assert set(inspect(engines[0]).get_table_names()) == {*Table.metadata.tables, "alembic_version"}
    for engine in engines:
        engine.dispose()


def test_on_postgres_a_migration_waits_for_the_one_before_it_and_for_nobody_else(empty_postgres: str) -> None:
    engine = make_engine(empty_postgres)
    with engine.connect() as holder, ThreadPoolExecutor(1) as thread:
        holder.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": 0x5A45524F})
        holder.commit()
        waiting = thread.submit(migrate, engine)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        assert inspect(engine).get_table_names() == []

        holder.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": 0x5A45524F})
        holder.commit()

        assert waiting.result(timeout=20) == Migration(None, HEAD)
    engine.dispose()


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    engine = make_engine(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}")
    for refused in (check_migrated, migrate):
        with pytest.raises(Unavailable, match="the database does not answer"):
            refused(engine)
