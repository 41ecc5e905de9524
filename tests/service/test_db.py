"""Transactions, column types and errors, the same on SQLite and PostgreSQL."""

import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from service.db import Database, after_commit, make_engine, now
from service.errors import StorageFull, Unavailable
from service.tables import Job, Project

MOMENT = datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(make_engine(database_url))
    yield database
    database.close()


def project(name: str, *, created_at: datetime = MOMENT) -> Project:
    return Project(id=name, name=name, created_at=created_at)


def names(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Project.name).order_by(Project.name)))


def test_a_write_is_there_for_others_when_its_block_has_ended_and_not_before(database: Database) -> None:
    with database.write() as session:
        session.add(project("a"))
        session.flush()
        assert names(database) == []

    assert names(database) == ["a"]


def test_a_block_that_raises_leaves_nothing_and_raises_the_same_error(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            session.add(project("a"))
            session.flush()
            raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        fail()

    assert names(database) == []


def test_reading_changes_nothing(database: Database) -> None:
    with database.read() as session:
        session.add(project("a"))
        session.flush()

    assert names(database) == []


def test_what_waits_for_the_commit_runs_in_order_when_the_rows_can_be_seen(database: Database) -> None:
    seen: list[tuple[str, list[str]]] = []
    with database.write() as session:
        after_commit(session, lambda: seen.append(("first", names(database))))
        session.add(project("a"))
        after_commit(session, lambda: seen.append(("second", names(database))))
        assert seen == []

    assert seen == [("first", ["a"]), ("second", ["a"])]


def test_what_waits_for_the_commit_is_forgotten_when_there_is_none(database: Database) -> None:
    seen: list[str] = []

    def fail() -> None:
        with database.write() as session:
            after_commit(session, lambda: seen.append("ran"))
            raise LookupError("on purpose")

    with pytest.raises(LookupError):
        fail()
    with database.write():
        pass

    assert seen == []


def test_an_action_that_fails_after_the_commit_neither_undoes_it_nor_stops_the_next(database: Database) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise ConnectionError("no broker")

    with database.write() as session:
        session.add(project("a"))
        after_commit(session, fail)
        after_commit(session, lambda: seen.append("ran"))

    assert (names(database), seen) == (["a"], ["ran"])


def test_a_time_comes_back_as_the_same_moment_in_utc_whatever_zone_it_was_stored_in(database: Database) -> None:
    with database.write() as session:
        session.add(project("utc"))
        session.add(project("elsewhere", created_at=MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))))

    with database.read() as session:
        found = list(session.scalars(select(Project.created_at)))
        in_between = Project.created_at.between(MOMENT - timedelta(microseconds=1), MOMENT)
        compared = session.scalar(select(func.count()).where(in_between))

    assert found == [MOMENT, MOMENT]
    assert [moment.utcoffset() for moment in found] == [timedelta(0), timedelta(0)]
    assert compared == 2


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="a time without a zone"), database.write() as session:
        session.add(project("a", created_at=datetime(2026, 1, 1)))  # noqa: DTZ001 (that is what is tested)

    assert names(database) == []


def test_an_absent_json_value_is_null_in_sql_and_a_null_inside_one_stays(database: Database) -> None:
    with database.write() as session:
        session.add(project("p"))
        session.flush()
        for name, progress in [("absent", None), ("inside", {"eta": None}), ("empty", {})]:
            session.add(Job(id=name, project_id="p", kind="train", request={}, progress=progress, created_at=now()))
    with database.write() as session:
        session.execute(update(Job).where(Job.id == "empty").values(progress=None))

    with database.read() as session:
        assert session.scalars(select(Job.id).where(Job.progress.is_(None)).order_by(Job.id)).all() == ["absent", "empty"]
        assert session.get_one(Job, "inside").progress == {"eta": None}
        assert session.scalar(text("SELECT count(*) FROM jobs WHERE progress IS NULL")) == 2


def test_errors_show_no_values(database: Database) -> None:
    secret = "a text of a user"
    with database.write() as session:
        session.add(project(secret))

    with pytest.raises(IntegrityError) as caught, database.write() as session:
        session.add(Project(id="other", name=secret, created_at=MOMENT))

    shown = "".join(traceback.format_exception(caught.value))
    assert "INSERT INTO projects" in shown
    assert re.search("uq_projects_name|projects.name", shown)
    assert secret not in shown


@pytest.mark.parametrize("when", ["at once", "at the end of the block"])
def test_a_row_that_is_there_already_stays_an_integrity_error(database: Database, when: str) -> None:
    with database.write() as session:
        session.add(project("taken"))

    def add_again() -> None:
        with database.write() as session:
            session.add(Project(id="other", name="taken", created_at=MOMENT))
            if when == "at once":
                session.flush()

    with pytest.raises(IntegrityError):
        add_again()

    assert names(database) == ["taken"]


def test_a_statement_that_is_wrong_is_no_outage(database: Database) -> None:
    for statement in ("SELECT * FROM nowhere", "SELEC 1", "SELECT nothing FROM projects"):
        with pytest.raises(DBAPIError), database.read() as session:
            session.execute(text(statement))


def test_when_all_connections_are_taken_it_is_unavailable(database: Database) -> None:
    database.engine.pool._timeout = 0.05  # type: ignore[attr-defined]  # 30 s otherwise
    taken = [database.engine.connect() for _ in range(15)]  # five stay open, ten more at most
    try:
        with pytest.raises(Unavailable, match="all connections to the database are in use"):
            database.ping()
    finally:
        for connection in taken:
            connection.close()

    database.ping()


def test_a_full_disk_under_sqlite_is_told_as_such_and_nothing_is_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'small.db'}"
    database = Database(make_engine(url))
    with database.write() as session:
        session.execute(text("CREATE TABLE texts (body TEXT)"))

    def write_too_much() -> None:
        with database.write() as session:
            session.execute(text("PRAGMA max_page_count = 10"))  # the same error as a disk without space, at 40 kB
            session.execute(text("INSERT INTO texts VALUES ('before')"))
            session.execute(text("INSERT INTO texts VALUES (zeroblob(100000))"))

    with pytest.raises(StorageFull, match="the disk of the database is full") as caught:
        write_too_much()

    assert (caught.value.status, caught.value.code) == (507, "storage_full")
    database.close()  # a new connection has no such limit
    with database.write() as session:
        assert session.scalar(text("SELECT count(*) FROM texts")) == 0
        session.execute(text("INSERT INTO texts VALUES (zeroblob(100000))"))
    database.close()


def test_an_sqlite_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    database = Database(make_engine(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"))

    with pytest.raises(Unavailable, match="the database does not answer"):
        database.ping()
