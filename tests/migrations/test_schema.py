"""The migrations and the tables agree, forwards and backwards, on SQLite and PostgreSQL."""

from collections.abc import Callable
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from cli.migrate import alembic_config, migrate
from service.tables import Table

Shape = Callable[[Engine], dict[str, Any]]


def config_of(connection: Connection) -> Config:
    config = alembic_config()
    config.attributes["connection"] = connection
    return config


def test_migrations_make_exactly_what_the_tables_declare(engine: Engine, declared: Engine, shape: Shape) -> None:
    Table.metadata.create_all(declared)

    migrate(engine)

    assert shape(engine) == shape(declared)
    assert set(inspect(engine).get_table_names()) == {*Table.metadata.tables, "alembic_version"}


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE jobs ADD COLUMN more INTEGER",
        "ALTER TABLE jobs RENAME COLUMN token TO coin",
        "DROP INDEX ix_jobs_state_lease_expires_at",
        "CREATE INDEX extra ON jobs (token)",
        "CREATE TABLE more (id INTEGER)",
    ],
)
def test_the_comparison_notices_a_change(engine: Engine, shape: Shape, change: str) -> None:
    migrate(engine)
    before = shape(engine)

    with engine.begin() as connection:
        connection.execute(text(change))

    assert shape(engine) != before


def test_alembic_finds_no_difference_between_migrations_and_tables(engine: Engine) -> None:
    migrate(engine)

    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata) == []
        command.check(config_of(connection))


@pytest.mark.parametrize(
    "change", ["DROP TABLE idempotency_keys", "ALTER TABLE jobs DROP COLUMN outages", "ALTER TABLE jobs ADD COLUMN more INTEGER"]
)
def test_alembic_would_notice_what_no_migration_makes(engine: Engine, change: str) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text(change))

    with engine.connect() as connection, pytest.raises(CommandError, match="New upgrade operations detected"):
        command.check(config_of(connection))


def test_every_revision_down_and_up_again_gives_the_same_schema(engine: Engine, shape: Shape) -> None:
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]
    on_the_way_up = []
    for revision in revisions:
        migrate(engine, revision=revision)
        on_the_way_up.append(shape(engine))

    for revision, expected in list(zip(revisions, on_the_way_up, strict=True))[::-1]:
        migrate(engine, revision=revision)
        assert shape(engine) == expected

    migrate(engine)
    assert shape(engine) == on_the_way_up[-1]


def test_the_way_down_to_nothing_takes_everything_away(engine: Engine) -> None:
    migrate(engine)

    with engine.begin() as connection:
        command.downgrade(config_of(connection), "base")

    assert inspect(engine).get_table_names() == ["alembic_version"]


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

    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), engine.begin() as connection:
        connection.execute(text("INSERT INTO models VALUES ('m', 'nobody', 'm', 'e', 0, 0, 'prm', '2026-01-01')"))
