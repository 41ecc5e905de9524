"""Messages that come twice, late or while the job runs; a worker that is stopped, and systems that are away."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from service.collections.operations import create_collection, submit_deletion
from service.collections.writer import acquire_writer, release_writer
from service.db import Database
from service.errors import StorageFull, Unavailable
from service.jobs.lifecycle import MAX_ATTEMPTS, Claim
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import Settings
from service.tables import Collection
from tests.service.jobs.job_rows import (
    RecordingQueue,
    at_once,
    claimed,
    facts,
    let_lease_expire,
    look,
    messages,
    new_job,
    new_model,
    set_columns,
    wait_until,
)
from workers import tasks
from workers.supervision import Supervision
from workers.tasks import run_here, run_job


@pytest.fixture
def resources(database_url: str, database: Database, tmp_path: Path) -> Iterator[Resources]:
    """Everything that a worker has, on real files, and no worker that would run anything."""
    opened = open_resources(Settings(data_dir=tmp_path / "data", database_url=database_url), RecordingQueue())
    yield opened
    opened.close()


@pytest.fixture
def publish_job(resources: Resources) -> str:
    """A queued job that deletes a document that is not there: real work for a worker, and no text to encode."""
    new_model(resources.database)
    made = create_collection(resources.database, resources.vectors, DEFAULT_PROJECT, "docs", model="faq", indexes={})
    with resources.database.write() as session:
        where = {"must": [{"key": "document_id", "match": {"value": "nowhere"}}]}
        return submit_deletion(session, resources.queue, session.get_one(Collection, made.id), where).id


@pytest.fixture
def other_writer(resources: Resources, publish_job: str) -> tuple[str, Claim]:
    """The collection, and another job that has the right to write to it, so that the job has to wait."""
    collection_id = str(look(resources.database, publish_job).collection_id)
    other = claimed(resources.database, new_job(resources.database))
    with resources.database.write() as session:
        assert acquire_writer(session, collection_id, other)
    return collection_id, other


def deliver(resources: Resources, job_id: str, stopping: threading.Event | None = None) -> None:
    run_job(resources, job_id, stopping or threading.Event(), run_here)


def begun(resources: Resources, job_id: str, stopping: threading.Event) -> threading.Thread:
    """A worker that waits for the collection's writer by now."""
    worker = threading.Thread(target=deliver, args=[resources, job_id, stopping])
    worker.start()
    stage = "wait for the collection's writer"
    wait_until(lambda: (look(resources.database, job_id).progress or {}).get("stage") == stage)
    return worker


def test_a_message_that_comes_again_after_the_job_has_ended_does_nothing(resources: Resources, publish_job: str) -> None:
    deliver(resources, publish_job)
    before, told = facts(look(resources.database, publish_job)), messages(resources.database, publish_job)

    deliver(resources, publish_job)

    assert before["state"] == "succeeded"
    assert facts(look(resources.database, publish_job)) == before
    assert messages(resources.database, publish_job) == told


def test_messages_that_come_at_once_run_the_job_once(resources: Resources, publish_job: str) -> None:
    at_once([lambda: deliver(resources, publish_job)] * 4)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts, job.token) == ("succeeded", 1, 1)
    told = messages(resources.database, publish_job)
    assert told.count("started (attempt 1)") == told.count("succeeded") == 1


def test_a_message_that_comes_while_the_job_runs_does_nothing(
    resources: Resources, publish_job: str, other_writer: tuple[str, Claim]
) -> None:
    worker = begun(resources, publish_job, threading.Event())

    deliver(resources, publish_job)  # returns at once: otherwise it would wait for the same writer

    assert worker.is_alive()
    with resources.database.write() as session:
        release_writer(session, *other_writer)
    worker.join(10)
    assert look(resources.database, publish_job).state == "succeeded"
    assert messages(resources.database, publish_job).count("started (attempt 1)") == 1


def test_a_worker_that_is_being_stopped_puts_its_job_back(
    resources: Resources, publish_job: str, other_writer: tuple[str, Claim]
) -> None:
    stopping = threading.Event()
    worker = begun(resources, publish_job, stopping)

    stopping.set()
    worker.join(10)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts) == ("queued", 0)
    deliver(resources, publish_job, stopping)  # what is still in the queue is not begun
    assert look(resources.database, publish_job).state == "queued"


def test_a_job_does_not_wait_for_a_writer_whose_worker_died_in_the_place_that_its_job_needs(
    resources: Resources, publish_job: str, other_writer: tuple[str, Claim]
) -> None:
    _, other = other_writer
    let_lease_expire(resources.database, other.job_id)

    deliver(resources, publish_job)  # returns: with one worker, nobody else could take the other job over

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts, job.outages) == ("queued", 0, 1)
    assert (
        "the job that writes to the collection lost its worker; it comes first" in messages(resources.database, publish_job)[-1]
    )


def test_a_named_vector_of_ours_that_no_row_knows_is_dropped_and_others_stay(resources: Resources, publish_job: str) -> None:
    with resources.database.read() as session:
        physical = session.get_one(Collection, look(resources.database, publish_job).collection_id).qdrant_collection
    for name in ("v7", "theirs"):
        resources.vectors.add_vector_name(physical, name, dim=4)

    deliver(resources, publish_job)

    assert look(resources.database, publish_job).state == "succeeded"
    assert resources.vectors.vector_names(physical) == {"base", "theirs"}


def test_an_outage_delays_a_job_and_does_not_fail_it(resources: Resources, publish_job: str) -> None:
    resources.vectors.close()  # every call answers Unavailable from now on

    deliver(resources, publish_job)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts, job.outages, job.error) == ("queued", 0, 1, None)
    assert messages(resources.database, publish_job)[-1] == "put back for 1 s: The vector engine is closed."
    with resources.database.read() as session:  # and the collection is free for others meanwhile
        assert session.scalars(select(Collection.writer)).one() is None


def test_a_job_that_crashes_fails_with_the_kind_of_error_and_no_more(resources: Resources, publish_job: str) -> None:
    set_columns(resources.database, publish_job, kind="train")  # a training without a dataset

    deliver(resources, publish_job)

    job = look(resources.database, publish_job)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "internal_error"
    assert "NoResultFound" in job.error["message"]


def test_a_job_whose_collection_is_gone_fails_and_says_so(resources: Resources, publish_job: str) -> None:
    set_columns(resources.database, publish_job, collection_id=None)

    deliver(resources, publish_job)

    assert look(resources.database, publish_job).error == {
        "code": "collection_not_found",
        "message": "the collection was deleted",
    }


def test_a_disk_that_is_full_fails_the_job_and_tells_it(
    resources: Resources, publish_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_resources: Resources, _supervise: Supervision) -> None:
        raise StorageFull("the disk is full: free some space")

    monkeypatch.setitem(tasks._WORK, "publish", work)

    deliver(resources, publish_job)

    job = look(resources.database, publish_job)
    assert (job.state, job.error) == ("failed", {"code": "storage_full", "message": "the disk is full: free some space"})


def test_a_row_that_is_there_already_costs_an_attempt_so_that_it_cannot_go_on_for_ever(
    resources: Resources, publish_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_resources: Resources, _supervise: Supervision) -> None:
        raise IntegrityError("INSERT", {}, ValueError("it is there already"))

    monkeypatch.setitem(tasks._WORK, "publish", work)

    for _ in range(MAX_ATTEMPTS):
        assert look(resources.database, publish_job).state == "queued"
        deliver(resources, publish_job)

    job = look(resources.database, publish_job)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "too_many_attempts"
    assert "another job made the same thing at the same moment" in job.error["message"]


class Forgetful(Database):
    """Its answer to the n-th commit is lost: it is done, and whoever asked is told that nobody knows."""

    def __init__(self, database: Database, lost: int) -> None:
        super().__init__(database.engine)
        self.until_lost = lost

    def write(self) -> Any:
        self.until_lost -= 1
        return _LosingAnswer(super().write()) if self.until_lost == 0 else super().write()


class _LosingAnswer:
    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __enter__(self) -> Any:
        return self._plain.__enter__()

    def __exit__(self, *error: object) -> Any:
        ended = self._plain.__exit__(*error)
        if error[0] is None:
            raise Unavailable("the database does not answer; it did not say whether the change was saved")
        return ended


@pytest.mark.parametrize("lost", range(1, 9))
def test_wherever_the_answer_to_a_commit_is_lost_the_job_is_done_once_and_ends(
    resources: Resources, publish_job: str, lost: int
) -> None:
    """The claim's, a renewal's, the plan's, the end's: after as many deliveries as it takes the job has succeeded, once."""
    forgetful = replace(resources, database=cast("Database", Forgetful(resources.database, lost)))
    try:
        deliver(forgetful, publish_job)
    except Unavailable:
        assert lost == 1  # the claim's own: the message is gone, and the job is taken over when its lease has expired
    for _ in range(3):
        set_columns(resources.database, publish_job, available_at=None)
        job = look(resources.database, publish_job)
        if job.state == "running":
            set_columns(resources.database, publish_job, lease_expires_at=job.created_at)
        deliver(resources, publish_job)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts) == ("succeeded", 2 if lost == 1 else 1)
    assert messages(resources.database, publish_job).count("succeeded") == 1
    with resources.database.read() as session:
        assert session.scalars(select(Collection.writer)).one() is None
