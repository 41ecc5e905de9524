"""A collection is a row first and points afterwards, and goes in the other order: whatever is lost in between, nothing stays."""

from collections.abc import Callable
from threading import Thread
from typing import Any, cast

import pytest
from sqlalchemy import select, update

from service.collections import operations
from service.collections.operations import create_collection, delete_collection, submit_publish
from service.collections.physical import ensure, physical_of
from service.collections.queries import unfinished_deletions
from service.collections.writer import acquire_writer, release_writer
from service.db import Database
from service.errors import Conflict, InvalidRequest, NotFound, Unavailable
from service.jobs.lifecycle import LeaseLost, check_held
from service.resources import DEFAULT_PROJECT
from service.tables import Collection, CollectionVector
from service.vectors.edge import EdgeEngine
from service.vectors.engine import VectorEngine
from tests.service.jobs.job_rows import DIM, RecordingQueue, claimed, look, new_job, new_model, wait_until, waits_for_a_lock


class Away:
    """A vector database that does not answer."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def refuse(*_args: object, **_options: object) -> None:
            raise Unavailable("Qdrant does not answer")

        return refuse


AWAY = cast("VectorEngine", Away())


def made(database: Database, engine: VectorEngine, *, model: str = "faq") -> Collection:
    return create_collection(database, engine, DEFAULT_PROJECT, "docs", model=model, indexes={"lang": "keyword"})


def rows(database: Database) -> tuple[int, int]:
    with database.read() as session:
        found = [session.execute(select(table)).all() for table in (Collection, CollectionVector)]
    return len(found[0]), len(found[1])


def test_a_new_collection_has_base_and_the_live_version_in_both_databases(database: Database, engine: EdgeEngine) -> None:
    new_model(database, versions=3, live=2)

    row = made(database, engine)

    assert engine.vector_names(row.qdrant_collection) == {"base", "v2"}
    with database.read() as session:
        found = session.execute(select(CollectionVector.vector_name, CollectionVector.state)).all()
    assert sorted(tuple(one) for one in found) == [("base", "ready"), ("v2", "ready")]


def test_a_collection_that_cannot_be_made_in_qdrant_leaves_nothing_and_can_be_made_later(
    database: Database, engine: EdgeEngine
) -> None:
    new_model(database, versions=1, live=1)

    with pytest.raises(Unavailable, match="Qdrant does not answer"):
        made(database, AWAY)

    assert rows(database) == (0, 0)
    made(database, engine)
    assert rows(database) == (1, 2)


def test_a_name_that_is_somebody_elses_in_qdrant_is_refused_and_leaves_nothing(
    database: Database, engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_model(database)

    def refuse(*_args: object, **_options: object) -> None:
        raise Conflict("a collection of this name is somebody else's", code="qdrant_name_taken")

    monkeypatch.setattr(engine, "create_collection", refuse)

    with pytest.raises(Conflict):
        made(database, engine)

    assert rows(database) == (0, 0)


def test_an_unknown_model_and_a_taken_name_are_refused(database: Database, engine: EdgeEngine) -> None:
    new_model(database)
    with pytest.raises(InvalidRequest, match="no model 'other'"):
        made(database, engine, model="other")
    made(database, engine)

    with pytest.raises(Conflict, match="the name 'docs' is taken"):
        made(database, engine)

    assert rows(database) == (1, 1)


def test_what_is_missing_in_qdrant_is_made_from_the_rows_as_often_as_it_is_asked_for(
    database: Database, engine: EdgeEngine
) -> None:
    new_model(database, versions=1, live=1)
    row = made(database, engine)
    engine.drop_collection(row.qdrant_collection, owner=row.id)
    with database.read() as session:
        physical = physical_of(session, session.get_one(Collection, row.id))

    ensure(engine, physical)
    ensure(engine, physical)

    assert physical.dims == {"base": DIM, "v1": DIM}
    assert engine.vector_names(row.qdrant_collection) == {"base", "v1"}


def test_deleting_takes_the_jobs_the_points_and_the_rows(database: Database, engine: EdgeEngine) -> None:
    new_model(database)
    row = made(database, engine)
    with database.write() as session:
        waiting = submit_publish(session, RecordingQueue(), session.get_one(Collection, row.id), dataset_id=cast("Any", None))

    delete_collection(database, engine, row.id)
    delete_collection(database, engine, row.id)  # another process was slower

    assert rows(database) == (0, 0)
    assert look(database, waiting.id).state == "cancelled"
    with pytest.raises(NotFound):
        engine.upsert(row.qdrant_collection, cast("Any", None))


def test_a_deletion_that_was_interrupted_is_found_and_goes_on(database: Database, engine: EdgeEngine) -> None:
    new_model(database)
    row = made(database, engine)

    with pytest.raises(Unavailable):
        delete_collection(database, AWAY, row.id)

    with database.read() as session:
        assert unfinished_deletions(session) == [row.id]
    with pytest.raises(Conflict, match="one that is being deleted"):
        made(database, engine)
    delete_collection(database, engine, row.id)
    assert rows(database) == (0, 0)


def test_deleting_waits_for_the_job_that_writes(database: Database, engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_WAIT_FOR_WRITER_SECONDS", 0.3)
    new_model(database)
    row = made(database, engine)
    mine = claimed(database, new_job(database, collection_id=row.id))
    with database.write() as session:
        assert acquire_writer(session, row.id, mine)

    with pytest.raises(Unavailable, match="a job still writes to collection 'docs'"):
        delete_collection(database, engine, row.id)

    assert engine.count(row.qdrant_collection) == 0  # it is still there
    with pytest.raises(LeaseLost), database.write() as session:  # the job was cancelled, and this is how it notices
        check_held(session, mine)
    with database.write() as session:
        release_writer(session, row.id, mine)
    delete_collection(database, engine, row.id)
    assert rows(database) == (0, 0)


def test_a_deletion_and_a_job_that_begins_to_write_do_not_get_stuck(shared_database: Database, engine: EdgeEngine) -> None:
    """The writer locks its job, then the collection. Were it the other way round in the deletion, PostgreSQL would kill one."""
    database = shared_database
    new_model(database)
    row = made(database, engine)
    mine = claimed(database, new_job(database, collection_id=row.id))
    failed: list[Exception] = []

    def delete() -> None:
        try:
            delete_collection(database, engine, row.id)
        except Unavailable as error:
            failed.append(error)

    deletion = Thread(target=delete)
    with database.write() as session:
        check_held(session, mine)  # holds the job's row
        deletion.start()
        wait_until(lambda: waits_for_a_lock(database))
        session.execute(update(Collection).where(Collection.id == row.id).values(writer="job_0:1"))
        session.rollback()
    deletion.join(20)

    assert failed == []
    assert rows(database) == (0, 0)
