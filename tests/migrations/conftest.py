"""An empty database of either kind, and everything that it knows of its tables."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, text

from service.db import make_engine

Shape = Callable[[Engine], dict[str, Any]]

# What PostgreSQL itself says, in its own words. The order of columns is left out: a column that came later stands last.
_CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
               a.attidentity, a.attgenerated, a.attcollation::regcollation::text
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid), convalidated
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "everything": "SELECT '', relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "types": "SELECT '', typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')",
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables; a test that takes it runs once on either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'zerogate.db'}"
    url: str = request.getfixturevalue("empty_postgres")
    return url


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    """An engine on the empty database."""
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def declared(engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on a second empty database of the same kind."""
    if engine.dialect.name == "sqlite":
        second = make_engine(f"sqlite:///{tmp_path / 'declared.db'}")
        yield second
        second.dispose()
    else:
        server = request.getfixturevalue("postgres_server")
        second = make_engine(server.create_database("declared"))
        yield second
        second.dispose()
        server.drop_database("declared")


@pytest.fixture
def shape() -> Shape:
    """Everything that a database knows of its tables but Alembic's own, in an order that does not matter."""
    return _shape_of


def _shape_of(engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        return _shape_of_postgres(connection) if engine.dialect.name == "postgresql" else _shape_of_sqlite(connection)


def _shape_of_postgres(connection: Connection) -> dict[str, Any]:
    found = {name: sorted(map(tuple, connection.execute(text(query)).all()), key=str) for name, query in _CATALOG.items()}
    return {name: [row for row in rows if not f"{row[0]}{row[1]}".startswith("alembic_version")] for name, rows in found.items()}


def _shape_of_sqlite(connection: Connection) -> dict[str, Any]:
    found: dict[str, Any] = {}
    inspector = inspect(connection)
    for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["primary_key"], column["default"])
                for column in inspector.get_columns(table)
            },
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(map(str, inspector.get_foreign_keys(table))),
            "uniques": sorted(map(str, inspector.get_unique_constraints(table))),
            "checks": sorted((str(one["name"]), one["sqltext"]) for one in inspector.get_check_constraints(table)),
            "indexes": sorted(map(str, inspector.get_indexes(table))),
        }
    return found
