"""Bring the database's schema to the newest revision."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, event, text

import migrations
from service.db import make_engine

# Any number that nobody else uses: one migration at a time on a PostgreSQL server.
_ADVISORY_LOCK = 0x5A45524F


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def migrate(engine: Engine, *, revision: str = "head") -> None:
    """Upgrade the engine's database to the revision. Two processes that do it at once wait for each other."""
    config = alembic_config()
    own = make_engine(engine.url.render_as_string(hide_password=False))
    if own.dialect.name == "sqlite":
        # Alembic changes a table of SQLite by copying and dropping it, and a drop would cascade into the rows that refer to it.
        event.listen(own, "connect", _foreign_keys_off)
    try:
        with own.connect().execution_options(sqlite_immediate=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET lock_timeout = '10s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            if connection.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}; nothing was changed")
    finally:
        own.dispose()


def _foreign_keys_off(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")
