"""Requests and jobs that meet on PostgreSQL: the same name made at once, and what is live while names come and go."""

import random
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.collections.operations import add_collection, create_collection, get_or_add_collection
from service.collections.queries import ready_versions
from service.collections.writing import forget_name, mark_dropping, mark_ready, plan_writing
from service.db import Database
from service.errors import Conflict
from service.jobs.lifecycle import held
from service.models.operations import promote
from service.resources import DEFAULT_PROJECT
from service.tables import Collection, CollectionVector, Job, Model
from service.vectors.edge import EdgeEngine
from tests.service.jobs.job_rows import RecordingQueue, at_once, claimed, new_job, new_model, wait_until, waits_for_a_lock

SESSIONS = 32


def test_a_training_that_names_a_new_collection_finds_the_one_that_another_made_at_that_moment(
    shared_database: Database,
) -> None:
    database = shared_database
    model_id = new_model(database)

    def ask() -> str:
        with database.write() as session:
            model = session.get_one(Model, model_id)
            return get_or_add_collection(session, DEFAULT_PROJECT, "docs", model=model, indexes={}).id

    assert len(set(at_once([ask] * SESSIONS))) == 1
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Collection)) == 1
        assert session.scalar(select(func.count()).select_from(CollectionVector)) == 1


def test_of_requests_that_make_the_same_collection_at_once_one_succeeds(shared_database: Database, engine: EdgeEngine) -> None:
    database = shared_database
    new_model(database)

    def ask() -> str | None:
        try:
            return create_collection(database, engine, DEFAULT_PROJECT, "docs", model="faq", indexes={}).id
        except (Conflict, IntegrityError):  # both are a 409
            return None

    made = [one for one in at_once([ask] * SESSIONS) if one is not None]

    assert len(made) == 1
    with database.read() as session:
        assert session.scalars(select(Collection.id)).all() == made
    assert engine.vector_names(f"{DEFAULT_PROJECT}_docs") == {"base"}


class Publishing:
    """A publish without points: fill and make ready what is live, drop what is old. The names in `there` stand for Qdrant's."""

    def __init__(self, database: Database, collection_id: str) -> None:
        self.database = database
        self.collection_id = collection_id
        self.there = {"base"}

    def run(self) -> None:
        mine = claimed(self.database, new_job(self.database, collection_id=self.collection_id))
        with held(self.database, mine) as session:
            plan = plan_writing(session, self.collection_id)
        self.there |= set(plan.physical.dims)
        for version in plan.building:
            with held(self.database, mine) as session:
                mark_ready(session, self.collection_id, version.number, points=0)
        with held(self.database, mine) as session:
            names = mark_dropping(session, self.collection_id)
        for name in names:
            self.there.discard(name)
            with held(self.database, mine) as session:
                forget_name(session, self.collection_id, name)


@pytest.mark.parametrize("seed", range(3))
def test_promotions_that_meet_a_publish_never_leave_a_live_version_without_vectors_and_without_a_job(
    shared_database: Database, seed: int
) -> None:
    database = shared_database
    model_id = new_model(database, versions=4)
    queue = RecordingQueue()
    with database.write() as session:
        model = session.get_one(Model, model_id)
        collection_id = add_collection(session, DEFAULT_PROJECT, "docs", model=model, indexes={}).id
    publishing = Publishing(database, collection_id)
    draw = random.Random(seed)

    def make_live(number: int) -> None:
        with database.write() as session:
            promote(session, queue, session.get_one(Model, model_id), number, force=True)

    for _ in range(12):
        actions: list[Callable[[], None]] = [partial(make_live, draw.randint(0, 4)) for _ in range(3)]
        at_once([publishing.run, *actions])

        with database.read() as session:
            model = session.get_one(Model, model_id)
            ready = ready_versions(session, session.get_one(Collection, collection_id))
            waiting = session.scalar(select(func.count()).select_from(Job).where(Job.kind == "rehead", Job.state == "queued"))
            rows = session.scalars(select(CollectionVector)).all()
        assert model.live_version in ready or waiting
        assert {row.vector_name for row in rows if row.state == "ready"} <= publishing.there
        publishing.run()  # the rehead that was queued
        with database.write() as session:
            session.execute(Job.__table__.update().where(Job.kind == "rehead").values(state="succeeded"))  # type: ignore[attr-defined]
            model = session.get_one(Model, model_id)
            assert model.live_version in ready_versions(session, session.get_one(Collection, collection_id))


@pytest.mark.parametrize("first", ["promotion", "dropping"])
def test_a_version_is_not_dropped_and_made_live_at_once(shared_database: Database, first: str) -> None:
    """Version 1 is old, and ready. Whoever comes second waits, and then sees what the first has done."""
    database = shared_database
    model_id = new_model(database, versions=3)
    queue = RecordingQueue()
    with database.write() as session:
        model = session.get_one(Model, model_id)
        collection_id = add_collection(session, DEFAULT_PROJECT, "docs", model=model, indexes={}).id
    for number in (1, 2, 3):
        with database.write() as session:
            promote(session, queue, session.get_one(Model, model_id), number, force=True)
            plan_writing(session, collection_id)
            mark_ready(session, collection_id, number, points=0)
    queue.sent.clear()

    def make_live(session: Session) -> None:
        promote(session, queue, session.get_one(Model, model_id), 1, force=True)

    def drop(session: Session) -> None:
        mark_dropping(session, collection_id)

    early, late = (make_live, drop) if first == "promotion" else (drop, make_live)

    def come_late() -> None:
        with database.write() as session:
            late(session)

    thread = Thread(target=come_late)
    with database.write() as session:
        early(session)
        thread.start()
        wait_until(lambda: waits_for_a_lock(database))
    thread.join(10)

    with database.read() as session:
        state = session.get_one(CollectionVector, (collection_id, 1)).state
    assert (state, len(queue.sent)) == (("ready", 0) if first == "promotion" else ("dropping", 1))
