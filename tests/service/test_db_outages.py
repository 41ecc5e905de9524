"""A PostgreSQL that goes away and comes back: Unavailable within seconds, and no process has to be restarted."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from benchmarks.servers import PostgresServer
from service.db import _POSTGRES_PATIENCE, Database, after_commit, make_engine, now
from service.errors import StorageFull, Unavailable
from service.tables import Project

SOON_SECONDS = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("outages") / "postgres") as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    database = Database(make_engine(server.create_database("outages")))
    with database.write() as session:
        session.execute(text("CREATE TABLE words (word TEXT UNIQUE)"))
    yield database
    database.close()
    server.drop_database("outages")


def add(database: Database, word: str) -> None:
    with database.write() as session:
        session.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})


def words(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(text("SELECT word FROM words ORDER BY word")))


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_goes_in_the_middle_of_a_transaction(server: PostgresServer, database: Database, how: str) -> None:
    add(database, "before")
    sent: list[str] = []
    started = time.monotonic()

    def write() -> None:
        with database.write() as session:
            session.execute(text("INSERT INTO words VALUES ('lost')"))
            after_commit(session, lambda: sent.append("message"))
            getattr(server, how)()
            session.execute(text("INSERT INTO words VALUES ('lost too')"))

    with pytest.raises(Unavailable, match="does not answer; nothing was changed"):
        write()

    assert time.monotonic() - started < SOON_SECONDS
    server.start()
    add(database, "after")
    assert (words(database), sent) == (["after", "before"], [])


def test_a_server_that_goes_before_anybody_connects(server: PostgresServer, database: Database) -> None:
    add(database, "before")
    fresh = Database(make_engine(database.engine.url.render_as_string()))
    server.stop()
    started = time.monotonic()

    for one in (database, fresh):  # one with connections in its pool, one without
        for ask in (one.ping, lambda one=one: words(one), lambda one=one: add(one, "lost")):
            with pytest.raises(Unavailable, match="does not answer; nothing was changed"):
                ask()

    assert time.monotonic() - started < SOON_SECONDS
    server.start()
    for one in (database, fresh):
        one.ping()
        assert words(one) == ["before"]
    fresh.close()


def test_rows_that_were_not_sent_yet_when_the_server_went_are_certainly_not_saved(
    server: PostgresServer, database: Database
) -> None:
    def write() -> None:
        with database.write() as session:
            session.execute(text("SELECT 1"))
            session.add(Project(id="lost", name="lost", created_at=now()))
            server.stop()

    with pytest.raises(Unavailable, match="does not answer; nothing was changed"):
        write()

    server.start()
    database.ping()


def test_a_server_that_goes_during_the_commit_leaves_it_open_whether_the_change_was_saved(
    server: PostgresServer, database: Database
) -> None:
    with database.write() as session:
        session.execute(
            text("CREATE FUNCTION linger() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END' LANGUAGE plpgsql")
        )
        session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON words DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION linger()"
            )
        )
    sent: list[str] = []
    stopper = threading.Thread(target=stop_during_commit, args=[server, database])
    stopper.start()

    def write() -> None:
        with database.write() as session:
            session.execute(text("INSERT INTO words VALUES ('perhaps')"))
            after_commit(session, lambda: sent.append("message"))

    with pytest.raises(Unavailable, match="did not say whether the change was saved"):
        write()

    stopper.join()
    server.start()
    assert (words(database), sent) == ([], [])


def stop_during_commit(server: PostgresServer, database: Database) -> None:
    committing = text("SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'")
    with database.engine.connect() as watcher:
        deadline = time.monotonic() + SOON_SECONDS
        while not watcher.scalar(committing) and time.monotonic() < deadline:
            watcher.rollback()  # the next look is a new snapshot
            time.sleep(0.01)
    server.stop()


def test_a_restart_between_two_uses_is_not_noticed(server: PostgresServer, database: Database) -> None:
    held = [database.engine.connect() for _ in range(5)]
    for connection in held:
        connection.close()
    assert database.engine.pool.checkedin() == 5  # type: ignore[attr-defined]

    server.stop()
    server.start()

    for _ in range(6):
        add(database, f"word {_}")
    assert len(words(database)) == 6


@pytest.mark.parametrize(("default", "query"), [(2, ""), (60, "?connect_timeout=2")])  # two seconds are libpq's least
def test_an_address_that_takes_connections_and_never_says_a_word_is_unavailable_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, default: int, query: str
) -> None:
    monkeypatch.setitem(_POSTGRES_PATIENCE, "connect_timeout", default)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        database = Database(make_engine(f"postgresql+psycopg://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres{query}"))
        started = time.monotonic()
        with pytest.raises(Unavailable, match="does not answer"):
            database.ping()
        assert time.monotonic() - started < SOON_SECONDS


def test_a_row_that_somebody_else_locks_for_too_long_is_told_as_busy(database: Database) -> None:
    add(database, "wanted")

    def remove() -> None:
        with database.write() as session:
            session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            session.execute(text("DELETE FROM words"))

    with database.engine.begin() as holder:
        holder.execute(text("SELECT * FROM words FOR UPDATE"))
        with pytest.raises(Unavailable, match="busy with other work; nothing was changed"):
            remove()

    assert words(database) == ["wanted"]


def test_a_full_disk_under_postgres_is_told_as_such(database: Database) -> None:
    def write() -> None:
        with database.write() as session:
            session.execute(text("INSERT INTO words VALUES ('lost')"))
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"))

    with pytest.raises(StorageFull, match="the disk of the database is full"):
        write()

    assert words(database) == []
