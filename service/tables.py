"""Every table. The database is the truth: files, messages and named vectors are found again from these rows.

Rows that somebody owns carry `project_id`. Deleting is explicit; no relationship loads by itself.
"""

from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import JSON, BigInteger, CheckConstraint, Enum, ForeignKey, Index, MetaData, String, UniqueConstraint, false
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.db import UtcDateTime

JobKind = Literal["train", "publish", "rehead"]
JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
PromotionAction = Literal["created", "promote", "rollback"]
VectorState = Literal["building", "ready", "dropping"]
DatasetKind = Literal["pairs", "triplets", "scored", "groups", "queries", "documents"]
EventLevel = Literal["info", "warn", "error"]

TERMINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})

_Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _one_of(name: str, literal: Any) -> Enum:
    """A text column whose values a named CHECK constraint limits, the same on SQLite and PostgreSQL."""
    return Enum(*get_args(literal), name=name, native_enum=False, create_constraint=True, length=16)


class Table(DeclarativeBase):
    """The base of all tables: named constraints, so that a migration can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: _Json, list[str]: _Json, int: BigInteger}  # noqa: RUF012


def _id() -> Mapped[str]:
    return mapped_column(String(40), primary_key=True)


def _ref(target: str, *, ondelete: str | None = None) -> Any:
    return mapped_column(String(40), ForeignKey(target, ondelete=ondelete), index=True)


class Project(Table):
    """Who owns the rows. The embedded profile has one, `default`."""

    __tablename__ = "projects"
    id: Mapped[str] = _id()
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[datetime]


class Dataset(Table):
    """An immutable file of rows of one kind. `sha256` is of the uploaded bytes; the canonical rows stand in `artifact_key`."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        UniqueConstraint("project_id", "sha256", "kind", "columns_sha256"),
    )
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("projects.id")
    name: Mapped[str | None] = mapped_column(String(63))
    kind: Mapped[DatasetKind] = mapped_column(_one_of("kind", DatasetKind))
    sha256: Mapped[str] = mapped_column(String(64))
    columns: Mapped[dict[str, Any]]  # our column name -> theirs
    columns_sha256: Mapped[str] = mapped_column(String(64))  # of columns and of the documents dataset
    documents_id: Mapped[str | None] = _ref("datasets.id")  # kind queries: what its document ids mean
    rows: Mapped[int]
    size_bytes: Mapped[int]
    report: Mapped[dict[str, Any]]
    artifact_key: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    hidden_at: Mapped[datetime | None]  # deleted by its owner, but a job has used it


class EncoderRow(Table):
    """A frozen sentence-transformers model. `parent_version_id`: the version whose tuning made it."""

    __tablename__ = "encoders"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("projects.id")
    name: Mapped[str] = mapped_column(String(63))
    source: Mapped[str] = mapped_column(String(500))
    revision: Mapped[str | None] = mapped_column(String(100))
    dim: Mapped[int]
    prompts: Mapped[dict[str, Any]]
    max_length: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64))
    parent_version_id: Mapped[str | None] = mapped_column(String(40))  # no foreign key: versions refer to models to encoders
    created_at: Mapped[datetime]


class Model(Table):
    """A named line of versions over one encoder. `promotion_id` is the promotion that is in force."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("projects.id")
    name: Mapped[str] = mapped_column(String(63))
    encoder_id: Mapped[str] = _ref("encoders.id")
    live_version: Mapped[int] = mapped_column(default=0)
    last_version: Mapped[int] = mapped_column(default=0)  # numbers are never given twice, even after a version was deleted
    promotion_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime]


class Version(Table):
    """An immutable result of a model. Number 0 is the encoder itself and has no files.

    `query_only` stands in the manifest too; here it is found without reading the manifests of all versions.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        UniqueConstraint("job_id"),
        Index("ix_versions_model_id_query_only_number", "model_id", "query_only", "number"),
    )
    id: Mapped[str] = _id()
    model_id: Mapped[str] = mapped_column(String(40), ForeignKey("models.id", ondelete="CASCADE"))
    number: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))
    artifact_key: Mapped[str | None] = mapped_column(String(200))  # folder of the head's two files
    strength: Mapped[float] = mapped_column(default=1.0)
    manifest: Mapped[dict[str, Any]]
    scores: Mapped[dict[str, Any]]  # {"base": {...}, "tuned": {...}}
    verdict: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    query_only: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime]


class Promotion(Table):
    """One line of a model's history; never changed, never removed but with its model.

    `previous_id` is what a roll back returns to: the promotion that was in force before this one came.
    """

    __tablename__ = "promotions"
    id: Mapped[str] = _id()
    model_id: Mapped[str] = _ref("models.id", ondelete="CASCADE")
    action: Mapped[PromotionAction] = mapped_column(_one_of("action", PromotionAction))
    from_version: Mapped[int | None]
    to_version: Mapped[int]
    previous_id: Mapped[str | None] = mapped_column(String(40))
    forced: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]


class Job(Table):
    """One requested piece of long work.

    `token` rises with every claim, cancel and takeover: whoever holds an old one writes nothing. `attempts` counts those
    that ended without a result through no outage; `last_failure` tells how the last of them ended.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_lease_expires_at", "state", "lease_expires_at"),
        # Lists, newest first: without these the database reads and sorts all jobs for a page of 20.
        Index("ix_jobs_project_id_id", "project_id", "id"),
        Index("ix_jobs_project_id_state_id", "project_id", "state", "id"),
        Index("ix_jobs_project_id_kind_id", "project_id", "kind", "id"),
        Index("ix_jobs_kind_state", "kind", "state"),  # counted by /metrics
    )
    id: Mapped[str] = _id()
    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"))
    kind: Mapped[JobKind] = mapped_column(_one_of("kind", JobKind))
    state: Mapped[JobState] = mapped_column(_one_of("state", JobState), default="queued")
    request: Mapped[dict[str, Any]]
    model_id: Mapped[str | None] = _ref("models.id", ondelete="SET NULL")
    dataset_id: Mapped[str | None] = _ref("datasets.id")
    collection_id: Mapped[str | None] = _ref("collections.id", ondelete="SET NULL")
    parent_job_id: Mapped[str | None] = _ref("jobs.id")
    progress: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    attempts: Mapped[int] = mapped_column(default=0)
    outages: Mapped[int] = mapped_column(default=0, server_default="0")  # how often a system that did not answer sent it back
    available_at: Mapped[datetime | None]  # while queued: not to be started before
    woken_at: Mapped[datetime | None]  # when its last message was sent, since it can be claimed
    last_failure: Mapped[str | None] = mapped_column(String(1000))
    event_count: Mapped[int] = mapped_column(default=0)
    token: Mapped[int] = mapped_column(default=0)
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class DatasetUse(Table):
    """A dataset that a job's request names beside the one that it works on: to judge by, to guard, to publish."""

    __tablename__ = "dataset_uses"
    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(40), ForeignKey("datasets.id"), primary_key=True, index=True)


class JobEvent(Table):
    """What happened to a job, in order. `number` counts from 1 within the job."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    level: Mapped[EventLevel] = mapped_column(_one_of("level", EventLevel))
    message: Mapped[str] = mapped_column(String(1000))
    data: Mapped[dict[str, Any] | None] = mapped_column(_Json)
    created_at: Mapped[datetime]


class Collection(Table):
    """A Qdrant collection bound to one model for good. One job at a time may write to it: its writer."""

    __tablename__ = "collections"
    __table_args__ = (UniqueConstraint("project_id", "name"),)
    id: Mapped[str] = _id()
    project_id: Mapped[str] = _ref("projects.id")
    name: Mapped[str] = mapped_column(String(63))
    model_id: Mapped[str] = _ref("models.id")
    qdrant_collection: Mapped[str] = mapped_column(String(140), unique=True)
    indexes: Mapped[dict[str, Any]]  # payload field -> type
    settings: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # of its index: quantization, hnsw_m, hnsw_ef_construct
    deleting: Mapped[bool] = mapped_column(default=False)
    writer: Mapped[str | None] = mapped_column(String(60))  # "job id:token" of the attempt that writes, while it has the job
    created_at: Mapped[datetime]


class CollectionVector(Table):
    """A named vector of a collection. Only `ready` ones are searched; `points` is their exact count when they became ready."""

    __tablename__ = "collection_vectors"
    collection_id: Mapped[str] = mapped_column(String(40), ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    vector_name: Mapped[str] = mapped_column(String(20))
    state: Mapped[VectorState] = mapped_column(_one_of("state", VectorState))
    points: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]


class IdempotencyKey(Table):
    """The answer to a POST that carried an Idempotency-Key, kept for 24 hours; `status` is null while it is still running."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (CheckConstraint("(status IS NULL) = (body IS NULL)", name="answer_is_whole"),)
    project_id: Mapped[str] = mapped_column(String(40), ForeignKey("projects.id"), primary_key=True)
    route: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    body: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(index=True)
