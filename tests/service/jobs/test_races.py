"""Requests that meet on PostgreSQL: the same model made at once, the same key used at once, a model deleted under a job."""

from functools import partial
from threading import Thread
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from service.artifacts import Artifacts
from service.db import Database
from service.errors import Conflict, NotFound
from service.http.error_answers import install_error_answers
from service.http.middleware import install_middlewares
from service.jobs.queueing import queue_job
from service.models.deletion import delete_model
from service.models.operations import get_or_create_model, promote
from service.resources import DEFAULT_PROJECT, Resources
from service.settings import Settings
from service.tables import IdempotencyKey, Job, Model, Promotion, Version
from tests.service.jobs.job_rows import ENCODER, RecordingQueue, at_once, new_model, wait_until, waits_for_a_lock

SESSIONS = 32
NO_FILES = cast("Artifacts", None)


def submit(session: Any, model_id: str) -> str:
    return queue_job(session, RecordingQueue(), project_id=DEFAULT_PROJECT, kind="train", request={}, model_id=model_id).id


def test_trainings_that_name_a_new_model_at_once_make_one(shared_database: Database) -> None:
    database = shared_database
    new_model(database, "other")  # and with it the encoder

    def ask() -> str:
        with database.write() as session:
            return get_or_create_model(session, DEFAULT_PROJECT, "faq", encoder=None, default_encoder=ENCODER).id

    (model_id,) = set(at_once([ask] * SESSIONS))

    with database.read() as session:
        assert session.scalars(select(Model.id).filter_by(name="faq")).all() == [model_id]
        for table in (Version, Promotion):
            assert session.scalar(select(func.count()).select_from(table).filter_by(model_id=model_id)) == 1


def test_a_model_is_not_deleted_under_a_job_that_is_being_submitted(shared_database: Database) -> None:
    """Without waiting for it, the deletion would not see the job, and leave it queued without a model."""
    database = shared_database
    model_id = new_model(database)
    told: list[Exception] = []

    def delete() -> None:
        try:
            with database.write() as session:
                delete_model(session, NO_FILES, session.get_one(Model, model_id))
        except Conflict as error:
            told.append(error)

    deletion = Thread(target=delete)
    with database.write() as session:
        job_id = submit(session, model_id)
        deletion.start()
        wait_until(lambda: waits_for_a_lock(database))
    deletion.join(10)

    assert [str(error) for error in told] == ["model 'faq' has 1 unfinished jobs; cancel them or wait"]
    with database.read() as session:
        assert session.get_one(Job, job_id).model_id == model_id


def test_a_job_is_not_submitted_under_a_model_that_is_being_deleted(shared_database: Database) -> None:
    database = shared_database
    model_id = new_model(database)
    told: list[Exception] = []

    def ask() -> None:
        try:
            with database.write() as session:
                submit(session, model_id)
        except IntegrityError as error:  # over HTTP a 409 that may be asked again
            told.append(error)

    request = Thread(target=ask)
    with database.write() as session:
        delete_model(session, NO_FILES, session.get_one(Model, model_id))
        request.start()
        wait_until(lambda: waits_for_a_lock(database))
    request.join(10)

    assert len(told) == 1
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
        assert session.get(Model, model_id) is None


@pytest.mark.parametrize("other", ["delete", "promote"])
def test_whoever_comes_to_a_model_that_was_deleted_a_moment_ago_is_told_that_it_is_gone(
    shared_database: Database, other: str
) -> None:
    database = shared_database
    model_id = new_model(database, versions=1)
    told: list[Exception] = []

    def come() -> None:
        try:
            with database.write() as session:
                model = session.get_one(Model, model_id)
                if other == "delete":
                    delete_model(session, NO_FILES, model)
                else:
                    promote(session, RecordingQueue(), model, 1, force=True)
        except NotFound as error:
            told.append(error)

    late = Thread(target=come)
    with database.write() as session:
        delete_model(session, NO_FILES, session.get_one(Model, model_id))
        late.start()
        wait_until(lambda: waits_for_a_lock(database))
    late.join(10)

    assert [str(error) for error in told] == ["the model was deleted meanwhile"]


def test_promotions_at_once_leave_a_history_that_is_one_chain(shared_database: Database) -> None:
    """Every line goes on from the one that was in force, so that roll backs lead back to the first."""
    database = shared_database
    model_id = new_model(database, versions=8)

    def make_live(number: int) -> None:
        with database.write() as session:
            promote(session, RecordingQueue(), session.get_one(Model, model_id), number, force=True)

    at_once([partial(make_live, number) for number in range(1, 9)])

    with database.read() as session:
        by_id = {line.id: line for line in session.scalars(select(Promotion).filter_by(model_id=model_id))}
        model = session.get_one(Model, model_id)
    line, seen = by_id[model.promotion_id], [model.live_version]
    while line.previous_id is not None:
        seen.append(int(line.from_version or 0))
        line = by_id[line.previous_id]
        assert line.to_version == seen[-1]
    assert sorted(seen) == list(range(9))


def test_requests_with_the_same_idempotency_key_at_once_are_carried_out_once(shared_database: Database) -> None:
    database = shared_database
    app = FastAPI()
    others = dict.fromkeys(("queue", "vectors", "artifacts", "models", "known_versions"), cast("Any", None))
    app.state.resources = Resources(settings=Settings(), database=database, **others)
    install_error_answers(app)
    install_middlewares(app, max_upload_bytes=1000)

    @app.post("/v1/things")
    def make() -> dict[str, str]:
        with database.write() as session:
            return {"id": queue_job(session, RecordingQueue(), project_id=DEFAULT_PROJECT, kind="train", request={}).id}

    client = TestClient(app)

    def ask() -> tuple[int, Any]:
        answer = client.post("/v1/things", json={}, headers={"idempotency-key": "k"})
        return answer.status_code, answer.json()

    answers = at_once([ask] * SESSIONS)

    made = {body["id"] for status, body in answers if status == 200}
    assert {status for status, _ in answers} <= {200, 409}
    assert len(made) == 1
    assert ask() == (200, {"id": made.pop()})
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 1
