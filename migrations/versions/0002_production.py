"""outages and messages of jobs, index settings of collections; a writer's right ends with its job

Stop the processes of the old code before: it takes a column away that they read.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("outages", sa.BigInteger(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("available_at", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("woken_at", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("last_failure", sa.String(length=1000), nullable=True))
    with op.batch_alter_table("collections") as collections:
        collections.add_column(sa.Column("settings", _JSON, nullable=False, server_default="{}"))
        collections.drop_column("writer_expires_at")


def downgrade() -> None:
    with op.batch_alter_table("collections") as collections:
        collections.add_column(sa.Column("writer_expires_at", sa.DateTime(timezone=True), nullable=True))
        collections.drop_column("settings")
    with op.batch_alter_table("jobs") as jobs:
        for name in ("last_failure", "woken_at", "available_at", "outages"):
            jobs.drop_column(name)
