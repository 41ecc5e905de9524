"""What Alembic runs: our tables on the connection that `cli.migrate` hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from service.db import UtcDateTime
from service.tables import Table


def _plain_type(kind: str, value: Any, _context: AutogenContext) -> str | Literal[False]:
    """A migration says what a type was when it was written, so it must not import ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(value, UtcDateTime) else False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    # SQLite cannot alter a table: Alembic copies it and moves the copy into its place.
    render_as_batch=connection.dialect.name == "sqlite",
    render_item=_plain_type,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
