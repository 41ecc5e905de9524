"""Rows that were written under the first schema are the same after every migration, up and down, on both databases."""

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, MetaData, select, text

from cli.migrate import migrate
from service.db import Database
from service.tables import Collection, DatasetUse, Job, JobState, Table, Version

NOON = datetime(2026, 1, 2, 12, 0, 0, 123_456, tzinfo=UTC)
LATER = datetime(2026, 1, 3, 0, 0, 0, 0, tzinfo=UTC)
SENTENCE = "Ümläute, 中文, \"quotes\", 'ticks', 100 %, :colons and a\nline"
NESTED = {"none": None, "list": [1, 2.5, "x"], "deep": {SENTENCE: True}}
FIRST_SCHEMA = "0001"

# Columns that a later revision takes away on purpose, with what they hold; the way down brings them back empty.
TAKEN_AWAY = {("collections", "writer_expires_at")}

# By hand, for the tables as revision 0001 makes them; what is left out is NULL.
ROWS: dict[str, list[dict[str, Any]]] = {
    "projects": [{"id": "p", "name": "default", "created_at": NOON}],
    "datasets": [
        {
            "id": f"ds_{name}",
            "project_id": "p",
            "name": name,
            "kind": kind,
            "sha256": name * 64,
            "columns": NESTED,
            "columns_sha256": "0" * 64,
            "documents_id": documents,
            "rows": 2**40,
            "size_bytes": 2**62,
            "report": {},
            "artifact_key": f"datasets/{name}",
            "created_at": NOON,
            "hidden_at": hidden,
        }
        for name, kind, documents, hidden in [("d", "documents", None, LATER), ("q", "queries", "ds_d", None)]
    ],
    "encoders": [
        {
            "id": "enc",
            "project_id": "p",
            "name": "mini",
            "source": "all-MiniLM-L6-v2",
            "revision": "main",
            "dim": 384,
            "prompts": {"query": SENTENCE},
            "max_length": 256,
            "fingerprint": "f" * 64,
            "parent_version_id": "ver_elsewhere",
            "created_at": NOON,
        }
    ],
    "models": [
        {
            "id": "m",
            "project_id": "p",
            "name": "faq",
            "encoder_id": "enc",
            "live_version": 1,
            "last_version": 2,
            "promotion_id": "prm",
            "created_at": NOON,
        }
    ],
    "collections": [
        {
            "id": "c",
            "project_id": "p",
            "name": "faq",
            "model_id": "m",
            "qdrant_collection": "zg_faq",
            "indexes": {"lang": "keyword"},
            "deleting": True,
            "writer": "job_queued:3",
            "writer_expires_at": LATER,
            "created_at": NOON,
        }
    ],
    "promotions": [
        {
            "id": f"prm_{action}",
            "model_id": "m",
            "action": action,
            "from_version": None if action == "created" else 0,
            "to_version": 1,
            "forced": action == "rollback",
            "created_at": NOON,
        }
        for action in ("created", "promote", "rollback")
    ],
    "collection_vectors": [
        {"collection_id": "c", "version": n, "vector_name": f"v{n}", "state": state, "points": n, "created_at": NOON}
        for n, state in enumerate(["building", "ready", "dropping"])
    ],
    "jobs": [
        {
            "id": f"job_{state}",
            "project_id": "p",
            "kind": "train",
            "state": state,
            "request": NESTED,
            "model_id": "m",
            "dataset_id": "ds_q",
            "collection_id": "c",
            "parent_job_id": "job_queued" if state == "paused" else None,
            "attempts": 2,
            "event_count": 1,
            "token": 7,
            "lease_expires_at": LATER,
            "created_at": NOON,
        }
        for state in get_args(JobState)
    ],
    "job_events": [
        {"job_id": "job_failed", "number": n, "level": level, "message": SENTENCE, "created_at": NOON}
        for n, level in enumerate(["info", "warn", "error"], 1)
    ],
    "versions": [
        {
            "id": "ver",
            "model_id": "m",
            "number": 1,
            "job_id": "job_succeeded",
            "artifact_key": "heads/ver",
            "strength": 0.1,
            "manifest": NESTED,
            "scores": {"tuned": {"ndcg@10": 1 / 3}},
            "created_at": NOON,
        }
    ],
    "idempotency_keys": [
        {"project_id": "p", "route": "POST /v1/jobs", "key": "running", "request_sha256": "a" * 64, "created_at": NOON},
        {
            "project_id": "p",
            "route": "POST /v1/jobs",
            "key": "answered",
            "request_sha256": "b" * 64,
            "status": 201,
            "body": SENTENCE,
            "created_at": NOON,
        },
    ],
}


@pytest.fixture
def engine_with_rows(engine: Engine) -> Engine:
    migrate(engine, revision=FIRST_SCHEMA)
    tables = reflected(engine)
    with engine.begin() as connection:
        for name, rows in ROWS.items():
            # One by one: an INSERT of many writes None, which is JSON's null in a JSON column, where one row has no value.
            for row in rows:
                connection.execute(tables[name].insert(), {key: value for key, value in row.items() if value is not None})
    return engine


def reflected(engine: Engine) -> dict[str, Any]:
    metadata = MetaData()
    metadata.reflect(engine)
    return {name: table for name, table in metadata.tables.items() if name != "alembic_version"}


def contents(engine: Engine, columns: set[tuple[str, str]] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in the order of the primary keys; with `columns`, (table, column), only these."""
    found = {}
    with engine.connect() as connection:
        for name, table in reflected(engine).items():
            rows = connection.execute(select(table).order_by(*table.primary_key)).mappings()
            wanted = {column.name for column in table.columns if columns is None or (name, column.name) in columns}
            if not wanted:
                continue  # a table that came later
            found[name] = [{key: value for key, value in row.items() if key in wanted} for row in rows]
    return found


def columns_of(engine: Engine) -> set[tuple[str, str]]:
    return {(name, column.name) for name, table in reflected(engine).items() for column in table.columns}


def test_the_rows_by_hand_fill_every_table_of_the_first_schema(engine_with_rows: Engine) -> None:
    found = contents(engine_with_rows)

    assert {name: len(rows) for name, rows in found.items()} == {name: len(rows) for name, rows in ROWS.items()}
    assert found["versions"][0]["strength"] == 0.1
    assert found["jobs"][0]["request"] == NESTED
    assert found["datasets"][0]["size_bytes"] == 2**62


def test_rows_are_the_same_after_every_migration_up_and_down_and_up_again(engine_with_rows: Engine) -> None:
    engine = engine_with_rows
    columns = columns_of(engine)
    lasting = columns - TAKEN_AWAY
    first = contents(engine, lasting)

    migrate(engine)
    assert columns - columns_of(engine) == TAKEN_AWAY
    assert contents(engine, lasting) == first

    migrate(engine, revision=FIRST_SCHEMA)
    assert columns_of(engine) == columns
    assert contents(engine, lasting) == first

    migrate(engine)
    assert contents(engine, lasting) == first


def test_old_rows_have_sensible_values_in_the_columns_that_came_later(engine_with_rows: Engine) -> None:
    migrate(engine_with_rows)

    with Database(engine_with_rows).read() as session:
        jobs = session.scalars(select(Job)).all()
        collection = session.get_one(Collection, "c")

    assert len(jobs) == len(get_args(JobState))
    assert {(job.outages, job.available_at, job.woken_at, job.last_failure) for job in jobs} == {(0, None, None, None)}
    assert collection.settings == {}


def test_what_old_jobs_used_and_which_old_versions_map_queries_only_is_found_in_their_json(engine_with_rows: Engine) -> None:
    tables = reflected(engine_with_rows)
    requests = {
        "job_of_all": {"evaluation_id": "ds_d", "guard_id": "ds_q", "publish": {"collection_id": "c", "dataset_id": "ds_d"}},
        "job_of_one": {"evaluation_id": None, "guard_id": "ds_q", "publish": None},
        "job_of_none": {"evaluation_id": "ds_that_is_gone", "guard_id": None},
    }
    manifests = {"job_of_all": {"query_only": True}, "job_of_one": {"query_only": False}, "job_of_none": {}}
    job = {key: value for key, value in ROWS["jobs"][0].items() if value is not None}
    with engine_with_rows.begin() as connection:
        for number, (job_id, request) in enumerate(requests.items(), 2):
            connection.execute(tables["jobs"].insert(), {**job, "id": job_id, "request": request})
            version = {**ROWS["versions"][0], "id": f"ver_{number}", "number": number, "job_id": job_id}
            connection.execute(tables["versions"].insert(), {**version, "manifest": manifests[job_id]})

    migrate(engine_with_rows)

    with Database(engine_with_rows).read() as session:
        uses = {(use.job_id, use.dataset_id) for use in session.scalars(select(DatasetUse))}
        query_only = {version.job_id for version in session.scalars(select(Version)) if version.query_only}
    assert uses == {("job_of_all", "ds_d"), ("job_of_all", "ds_q"), ("job_of_one", "ds_q")}
    assert query_only == {"job_of_all"}


def test_todays_code_reads_every_old_row_and_no_absent_value_became_json_null(engine_with_rows: Engine) -> None:
    migrate(engine_with_rows)

    with Database(engine_with_rows).read() as session:
        for mapper in Table.registry.mappers:
            # Tables that came later have no rows yet.
            assert len(session.scalars(select(mapper.class_)).all()) == len(ROWS.get(mapper.class_.__tablename__, []))
        job = session.get_one(Job, "job_queued")
        assert (job.created_at, job.lease_expires_at, job.request) == (NOON, LATER, NESTED)
        assert session.scalar(text("SELECT count(*) FROM jobs WHERE progress IS NULL AND result IS NULL")) == len(ROWS["jobs"])


def test_what_old_code_writes_while_the_new_schema_is_there_is_whole(engine_with_rows: Engine) -> None:
    first = contents(engine_with_rows)
    old = reflected(engine_with_rows)["jobs"]
    migrate(engine_with_rows)
    row = {key: value for key, value in ROWS["jobs"][0].items() if value is not None}

    with engine_with_rows.begin() as connection:
        connection.execute(old.insert(), {**row, "id": "job_of_old_code"})

    with Database(engine_with_rows).read() as session:
        job = session.get_one(Job, "job_of_old_code")
        assert (job.outages, job.state) == (0, "queued")
    migrate(engine_with_rows, revision=FIRST_SCHEMA)
    assert len(contents(engine_with_rows)["jobs"]) == len(first["jobs"]) + 1
