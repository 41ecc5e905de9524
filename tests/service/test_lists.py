"""Lists take as many statements for many rows as for few, no sorting of whole tables, and give what filtering in Python gives."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, select
from starlette.testclient import TestClient

from benchmarks.api_data import Filled, Sizes, fill
from cli.migrate import migrate
from service.artifacts import open_artifacts
from service.db import Database, make_engine, now
from service.embeddings.loaded_models import LoadedModels
from service.encoders.operations import ensure_project
from service.main import create_app
from service.resources import DEFAULT_PROJECT
from service.settings import Settings
from service.tables import EncoderRow, Job

FEW = Sizes(jobs=60, versions=12, models=3, datasets=8, collections=3)
MANY = Sizes(jobs=400, versions=60, models=12, datasets=60, collections=12)


def filled(database: Database, sizes: Sizes) -> Filled:
    with database.write() as session:
        encoder = EncoderRow(
            id="enc", project_id=DEFAULT_PROJECT, name="small", source="small", dim=384, prompts={}, max_length=8,
            fingerprint="0" * 64, created_at=now(),
        )  # fmt: skip
        session.add(encoder)
        session.flush()
        return fill(session, encoder.id, sizes, random.Random(0))


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """SQLite alone: PostgreSQL reads tables this small from one end to the other."""
    database = Database(make_engine(f"sqlite:///{tmp_path / 'lists.db'}"))
    migrate(database.engine)
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
    yield database
    database.close()


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Callable[[Database], TestClient]]:
    """A client of the API over a database; only what lists need is there."""
    settings = Settings(data_dir=tmp_path / "data")
    models = LoadedModels(settings, open_artifacts(settings))

    def made(database: Database) -> TestClient:
        resources: Any = SimpleNamespace(database=database, settings=settings, models=models)
        return TestClient(create_app(resources))

    yield made
    models.close()


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """The statements that are run meanwhile."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            found.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield found
    event.remove(database.engine, "before_cursor_execute", note)


LISTS = {
    "/v1/jobs?limit=100": 4,
    "/v1/jobs?limit=100&state=succeeded": 4,
    "/v1/jobs?limit=100&kind=publish": 4,
    "/v1/jobs/{job}/events": 2,
    "/v1/datasets?limit=100": 1,
    "/v1/models": 3,
    "/v1/models/model-0": 2,
    "/v1/models/model-0/promotions": 2,
    "/v1/encoders": 2,
    "/v1/collections": 6,
    "/metrics": 2,
}


@pytest.mark.parametrize("sizes", [FEW, MANY], ids=["few rows", "many rows"])
def test_a_list_takes_the_same_few_statements_however_many_rows_there_are(
    database: Database, client_of: Callable[[Database], TestClient], sizes: Sizes
) -> None:
    there = filled(database, sizes)
    client = client_of(database)

    counted = {}
    for path in LISTS:
        with statements(database) as found:
            answer = client.get(path.format(job=there.jobs[0]))
        assert answer.status_code == 200, answer.text
        counted[path] = len(found)

    assert counted == LISTS


@pytest.mark.parametrize("where", [{}, {"state": "failed"}, {"kind": "publish"}, {"state": "succeeded", "kind": "train"}])
def test_pages_of_jobs_hold_what_filtering_and_sorting_all_rows_in_python_gives(
    database: Database, client_of: Callable[[Database], TestClient], where: dict[str, str]
) -> None:
    filled(database, MANY)
    client = client_of(database)
    with database.read() as session:
        rows = {job.id: job for job in session.scalars(select(Job))}
    wanted = sorted(
        (id_ for id_, job in rows.items() if all(getattr(job, key) == value for key, value in where.items())), reverse=True
    )
    published = {job.parent_job_id: id_ for id_, job in rows.items() if job.kind == "publish"}

    found: list[dict[str, Any]] = []
    has_more = True
    while has_more:
        after = {"after": found[-1]["id"]} if found else {}
        page = client.get("/v1/jobs", params={**where, **after, "limit": 7}).json()
        found, has_more = found + page["data"], page["has_more"]

    assert [job["id"] for job in found] == wanted
    assert all(job["publish_job_id"] == published.get(job["id"]) for job in found)
    assert where != {} or any(job["publish_job_id"] for job in found)


@pytest.mark.parametrize("where", [{}, {"state": "failed"}, {"kind": "publish"}, {"state": "running", "kind": "train"}])
def test_sqlite_finds_a_page_of_jobs_in_an_index_and_sorts_nothing(
    sqlite: Database, client_of: Callable[[Database], TestClient], where: dict[str, str]
) -> None:
    filled(sqlite, FEW)
    with statements(sqlite) as found:
        client_of(sqlite).get("/v1/jobs", params=where)
    (statement,) = (one for one in found if "ORDER BY jobs.id DESC" in one)

    with sqlite.engine.connect() as connection:
        values = (DEFAULT_PROJECT, *where.values(), 21, 0)
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values[: statement.count("?")])]

    assert len(plan) == 1
    assert plan[0].startswith("SEARCH jobs USING INDEX ix_jobs_project_id_")
