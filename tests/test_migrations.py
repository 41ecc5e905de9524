"""The migrations and the tables agree, forwards and backwards, on SQLite."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from cli.migrate import alembic_config, migrate
from service.db import Database, make_engine, now
from service.tables import Project, Table


def shape(engine: Engine) -> dict[str, Any]:
    """Everything that SQLite knows of the tables: columns, keys, uniques, checks and indexes, in an order of our own."""
    found: dict[str, Any] = {}
    inspector = inspect(engine)
    for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["primary_key"])
                for column in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(map(str, inspector.get_foreign_keys(table))),
            "uniques": sorted(map(str, inspector.get_unique_constraints(table))),
            "checks": sorted((str(one["name"]), one["sqltext"]) for one in inspector.get_check_constraints(table)),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
        }
    return found


def config_of(connection: Any) -> Config:
    config = alembic_config()
    config.attributes["connection"] = connection
    return config


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'zerogate.db'}")
    yield engine
    engine.dispose()


def test_migrations_make_exactly_what_the_tables_declare(engine: Engine, tmp_path: Path) -> None:
    declared = make_engine(f"sqlite:///{tmp_path / 'declared.db'}")
    Table.metadata.create_all(declared)

    migrate(engine)

    assert shape(engine) == shape(declared)
    assert set(shape(engine)) == set(Table.metadata.tables)
    declared.dispose()


def test_alembic_finds_no_difference_between_migrations_and_tables(engine: Engine) -> None:
    migrate(engine)

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        command.check(config_of(connection))


def test_a_table_that_no_migration_makes_would_be_noticed(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE idempotency_keys"))

    with engine.connect() as connection, pytest.raises(Exception, match="idempotency_keys"):
        command.check(config_of(connection))


def test_down_takes_everything_away_and_up_brings_it_back(engine: Engine) -> None:
    migrate(engine)
    first = shape(engine)

    with engine.begin() as connection:
        command.downgrade(config_of(connection), "base")
    assert shape(engine) == {}

    migrate(engine)
    assert shape(engine) == first


def test_migrating_again_changes_nothing_and_keeps_the_rows(engine: Engine) -> None:
    migrate(engine)
    database = Database(engine)
    with database.write() as session:
        session.add(Project(id="kept", name="kept", created_at=now()))
    first = shape(engine)

    migrate(engine)

    assert shape(engine) == first
    with database.read() as session:
        assert session.get_one(Project, "kept").name == "kept"


def test_two_that_migrate_at_once_wait_for_each_other(tmp_path: Path) -> None:
    for attempt in range(5):
        url = f"sqlite:///{tmp_path / f'{attempt}.db'}"
        engines = [make_engine(url), make_engine(url)]  # two processes would not share one either
        together = threading.Barrier(2)

        def run(engine: Engine, together: threading.Barrier = together) -> None:
            together.wait()
            migrate(engine)

        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(run, engines)) == [None, None]

        assert set(shape(engines[0])) == set(Table.metadata.tables)
        for engine in engines:
            engine.dispose()


def test_the_migrated_database_refuses_a_state_that_no_job_has(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO projects VALUES ('p', 'p', '2026-01-01')"))

    with pytest.raises(IntegrityError, match="ck_jobs_state"), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (id, project_id, kind, state, request, attempts, event_count, token, created_at)"
                " VALUES ('j', 'p', 'train', 'asleep', '{}', 0, 0, 0, '2026-01-01')"
            )
        )


def test_the_migrated_database_refuses_a_row_without_its_owner(engine: Engine) -> None:
    migrate(engine)

    with pytest.raises(IntegrityError, match="FOREIGN KEY"), engine.begin() as connection:
        connection.execute(text("INSERT INTO models VALUES ('m', 'nobody', 'm', 'e', 0, 0, 'prm', '2026-01-01')"))
