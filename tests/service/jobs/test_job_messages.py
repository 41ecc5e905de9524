"""A job's events have numbers without gaps; its message goes out after the commit, or never."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy import func, select

from service.db import Database, after_commit
from service.jobs.lifecycle import add_event
from service.jobs.queueing import queue_job
from service.queue import JobQueue
from service.resources import DEFAULT_PROJECT
from service.tables import Job, JobEvent
from tests.service.jobs.job_rows import BrokenQueue, RecordingQueue, at_once, look, messages, new_job


def queued(database: Database, queue: JobQueue) -> str:
    with database.write() as session:
        return queue_job(session, queue, project_id=DEFAULT_PROJECT, kind="train", request={}).id


def test_events_of_concurrent_writers_are_numbered_without_gaps(database: Database) -> None:
    job_id = new_job(database)

    def tell(writer: int) -> None:
        for number in range(10):
            with database.write() as session:
                add_event(session, job_id, f"{writer}:{number}")

    def tell_and_fail() -> None:
        for _ in range(10):
            with suppress(ZeroDivisionError), database.write() as session:
                add_event(session, job_id, "never")
                raise ZeroDivisionError

    writers: list[Callable[[], None]] = [partial(tell, writer) for writer in range(4)]
    at_once([*writers, tell_and_fail])

    with database.read() as session:
        rows = session.scalars(select(JobEvent).filter_by(job_id=job_id).order_by(JobEvent.number)).all()
    assert [row.number for row in rows] == list(range(1, 41))
    assert look(database, job_id).event_count == 40
    for writer in range(4):  # and the order of each writer is kept
        own = [row.message for row in rows if row.message.startswith(f"{writer}:")]
        assert own == [f"{writer}:{number}" for number in range(10)]


def test_the_message_goes_out_after_the_commit_when_the_row_can_be_seen(database: Database) -> None:
    queue = RecordingQueue(database)

    with database.write() as session:
        job = queue_job(session, queue, project_id=DEFAULT_PROJECT, kind="train", request={})
        assert queue.sent == []

    assert queue.sent == [(job.id, "train")]
    assert queue.row_was_there == [True]
    assert messages(database, job.id) == ["queued"]


def test_no_message_goes_out_for_what_was_rolled_back(database: Database) -> None:
    queue = RecordingQueue()

    with suppress(ZeroDivisionError), database.write() as session:
        queue_job(session, queue, project_id=DEFAULT_PROJECT, kind="train", request={})
        raise ZeroDivisionError

    assert queue.sent == []
    with database.write() as session:  # nor later, with somebody else's commit
        assert session.scalar(select(func.count()).select_from(Job)) == 0
    assert queue.sent == []


def test_a_broker_that_is_down_loses_the_message_and_not_the_job(database: Database) -> None:
    others: list[str] = []

    with database.write() as session:
        job = queue_job(session, BrokenQueue(), project_id=DEFAULT_PROJECT, kind="train", request={})
        after_commit(session, lambda: others.append("ran"))

    assert look(database, job.id).state == "queued"
    assert others == ["ran"]
