"""indexes for lists of jobs; which datasets a job uses and which versions map queries only, to be looked up without reading JSON

Stop the processes of the old code before: they would not note what the jobs that they make use.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_jobs_project_id_id": ["project_id", "id"],
    "ix_jobs_project_id_state_id": ["project_id", "state", "id"],
    "ix_jobs_project_id_kind_id": ["project_id", "kind", "id"],
    "ix_jobs_kind_state": ["kind", "state"],
}


def upgrade() -> None:
    for name, columns in _INDEXES.items():
        op.create_index(name, "jobs", columns)
    op.drop_index("ix_jobs_project_id", "jobs")
    op.create_table(
        "dataset_uses",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_uses_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_dataset_uses_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "dataset_id", name=op.f("pk_dataset_uses")),
    )
    op.create_index("ix_dataset_uses_dataset_id", "dataset_uses", ["dataset_id"])
    with op.batch_alter_table("versions") as versions:
        versions.add_column(sa.Column("query_only", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_versions_model_id_query_only_number", "versions", ["model_id", "query_only", "number"])
    op.drop_index("ix_versions_model_id", "versions")
    _fill()


def _fill() -> None:
    jobs = sa.table("jobs", sa.column("id"), sa.column("request", _JSON))
    datasets = sa.table("datasets", sa.column("id"))
    uses = sa.table("dataset_uses", sa.column("job_id"), sa.column("dataset_id"))
    paths = (jobs.c.request["evaluation_id"], jobs.c.request["guard_id"], jobs.c.request[("publish", "dataset_id")])
    named = sa.union(*(sa.select(jobs.c.id, path.as_string().label("dataset_id")) for path in paths)).subquery()
    known = sa.select(named).where(named.c.dataset_id.in_(sa.select(datasets.c.id)))
    op.execute(uses.insert().from_select(["job_id", "dataset_id"], known))
    versions = sa.table("versions", sa.column("query_only"), sa.column("manifest", _JSON))
    is_query_only = versions.c.manifest["query_only"].as_boolean().is_(True)
    op.execute(versions.update().where(is_query_only).values(query_only=sa.true()))


def downgrade() -> None:
    op.create_index("ix_versions_model_id", "versions", ["model_id"])
    op.drop_index("ix_versions_model_id_query_only_number", "versions")
    with op.batch_alter_table("versions") as versions:
        versions.drop_column("query_only")
    op.drop_table("dataset_uses")
    op.create_index("ix_jobs_project_id", "jobs", ["project_id"])
    for name in _INDEXES:
        op.drop_index(name, "jobs")
