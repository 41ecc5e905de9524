"""Bring the database's schema to the newest revision."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

import migrations

# Any number that nobody else uses: one migration at a time on a PostgreSQL server.
_ADVISORY_LOCK = 0x5A45524F


def alembic_config(engine_url: str = "") -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("sqlalchemy.url", engine_url)
    return config


def migrate(engine: Engine, *, revision: str = "head") -> None:
    """Upgrade to the revision. Two processes that do it at once wait for each other."""
    config = alembic_config()
    with engine.connect().execution_options(sqlite_immediate=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET lock_timeout = '10s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
