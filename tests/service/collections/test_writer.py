"""Who may write to a collection: one attempt at a time, for as long as it has its job."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from service.collections.operations import add_collection
from service.collections.writer import acquire_writer, has_writer, release_writer
from service.db import Database, now
from service.errors import NotFound
from service.jobs.lifecycle import LEASE, Claim, LeaseLost, cancel, put_back, release, succeed
from service.resources import DEFAULT_PROJECT
from service.tables import Collection, Job, Model
from tests.service.jobs.job_rows import at_once, claimed, let_lease_expire, new_job, new_model, set_columns


@pytest.fixture
def collection_id(database: Database) -> str:
    return new_collection(database)


def new_collection(database: Database) -> str:
    model_id = new_model(database)
    with database.write() as session:
        model = session.get_one(Model, model_id)
        return add_collection(session, DEFAULT_PROJECT, "docs", model=model, indexes={}).id


def new_attempt(database: Database, collection_id: str) -> Claim:
    return claimed(database, new_job(database, collection_id=collection_id))


def acquired(database: Database, collection_id: str, mine: Claim) -> bool:
    with database.write() as session:
        return acquire_writer(session, collection_id, mine)


def is_taken(database: Database, collection_id: str) -> bool:
    with database.read() as session:
        return has_writer(session, collection_id)


def test_a_second_job_waits_until_the_first_gives_the_right_back(database: Database, collection_id: str) -> None:
    first, second = new_attempt(database, collection_id), new_attempt(database, collection_id)

    assert acquired(database, collection_id, first)
    assert acquired(database, collection_id, first)  # asking again is no harm
    assert not acquired(database, collection_id, second)

    with database.write() as session:
        release_writer(session, collection_id, second)  # not his to give back
    assert not acquired(database, collection_id, second)
    with database.write() as session:
        release_writer(session, collection_id, first)
    assert acquired(database, collection_id, second)


def test_a_lease_that_expired_alone_takes_the_right_from_nobody(database: Database, collection_id: str) -> None:
    first, second = new_attempt(database, collection_id), new_attempt(database, collection_id)
    acquired(database, collection_id, first)

    let_lease_expire(database, first.job_id)

    assert not acquired(database, collection_id, second)
    assert is_taken(database, collection_id)


def test_the_next_attempt_has_the_right_at_once_and_the_one_before_cannot_give_it_back(
    database: Database, collection_id: str
) -> None:
    old = new_attempt(database, collection_id)
    acquired(database, collection_id, old)
    let_lease_expire(database, old.job_id)
    new = claimed(database, old.job_id)

    assert acquired(database, collection_id, new)

    with database.write() as session:
        release_writer(session, collection_id, old)
    with database.read() as session:
        assert session.scalars(select(Collection.writer)).one() == f"{new.job_id}:{new.token}"
    with pytest.raises(LeaseLost):
        acquired(database, collection_id, old)
    assert not acquired(database, collection_id, new_attempt(database, collection_id))


def test_an_attempt_that_was_cancelled_keeps_others_out_until_it_must_have_noticed(
    database: Database, collection_id: str
) -> None:
    first, second = new_attempt(database, collection_id), new_attempt(database, collection_id)
    acquired(database, collection_id, first)
    with database.write() as session:
        cancel(session, session.get_one(Job, first.job_id))

    assert not acquired(database, collection_id, second)
    set_columns(database, first.job_id, finished_at=now() - LEASE + timedelta(seconds=2))
    assert not acquired(database, collection_id, second)
    set_columns(database, first.job_id, finished_at=now() - LEASE)
    assert acquired(database, collection_id, second)


@pytest.mark.parametrize("end", ["release", "put back"])
def test_an_attempt_that_gave_its_job_back_itself_keeps_nobody_out(database: Database, collection_id: str, end: str) -> None:
    first, second = new_attempt(database, collection_id), new_attempt(database, collection_id)
    acquired(database, collection_id, first)
    with database.write() as session:
        release(session, first) if end == "release" else put_back(session, first, "no answer")

    assert acquired(database, collection_id, second)


def test_a_finished_job_that_released_keeps_nobody_out(database: Database, collection_id: str) -> None:
    first, second = new_attempt(database, collection_id), new_attempt(database, collection_id)
    acquired(database, collection_id, first)
    with database.write() as session:
        succeed(session, first, {})
    with database.write() as session:
        release_writer(session, collection_id, first)

    assert acquired(database, collection_id, second)


def test_nobody_gets_to_write_to_what_is_being_deleted_or_gone(database: Database, collection_id: str) -> None:
    mine = new_attempt(database, collection_id)
    with database.write() as session:
        session.get_one(Collection, collection_id).deleting = True

    with pytest.raises(NotFound, match="the collection was deleted"):
        acquired(database, collection_id, mine)
    with pytest.raises(NotFound, match="the collection was deleted"):
        acquired(database, "col_0", mine)


def test_of_jobs_that_ask_at_once_one_gets_the_right(shared_database: Database) -> None:
    database = shared_database
    collection_id = new_collection(database)
    for _ in range(6):
        attempts = [new_attempt(database, collection_id) for _ in range(8)]

        got = at_once([lambda mine=mine: acquired(database, collection_id, mine) for mine in attempts])  # type: ignore[misc]

        assert sum(got) == 1
        with database.write() as session:
            release_writer(session, collection_id, attempts[got.index(True)])
