"""A job's way through its states on a real SQLite file: who wins, who is told that it lost, and what is never written."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from cli.migrate import migrate
from service.collections.operations import create_collection, submit_deletion
from service.collections.writing import acquire_writer, release_writer
from service.db import Database, after_commit, make_engine, now
from service.encoders.operations import describe, ensure_project, register_encoder
from service.errors import Conflict
from service.ids import new_id
from service.jobs.lifecycle import (
    MAX_ATTEMPTS,
    Claim,
    LeaseLost,
    add_event,
    cancel,
    check_held,
    claim,
    claimable_jobs,
    fail,
    held,
    put_back,
    release,
    renew,
    succeed,
    take_over,
)
from service.models.operations import get_or_create_model
from service.queue import enqueue
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import Settings
from service.tables import Collection, Job, JobEvent, JobKind
from workers.sweep import sweep
from workers.tasks import run_job


class RecordingQueue:
    """A queue that only remembers, and whether the job's row could be seen from outside when its message was sent."""

    def __init__(self, database: Database | None = None) -> None:
        self.sent: list[tuple[str, JobKind]] = []
        self.row_was_there: list[bool] = []
        self._database = database

    def send(self, job_id: str, kind: JobKind) -> None:
        self.sent.append((job_id, kind))
        if self._database is not None:
            with self._database.read() as session:
                self.row_was_there.append(session.get(Job, job_id) is not None)


class BrokenQueue:
    """A broker that is down."""

    def send(self, job_id: str, kind: JobKind) -> None:
        raise ConnectionError("no broker")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(make_engine(f"sqlite:///{tmp_path / 'zerogate.db'}"))
    migrate(database.engine)
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
    yield database
    database.close()


def new_job(database: Database, kind: JobKind = "publish") -> str:
    job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind=kind, request={}, created_at=now())
    with database.write() as session:
        session.add(job)
    return job.id


def claimed(database: Database, job_id: str) -> Claim:
    with database.write() as session:
        mine = claim(session, job_id)
    assert mine is not None
    return mine


def look(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job_id)


def facts(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.columns}


def messages(database: Database, job_id: str) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(JobEvent.message).filter_by(job_id=job_id).order_by(JobEvent.number)))


def let_lease_expire(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=now() - timedelta(seconds=1)))


def at_once(*actions: Callable[[], None]) -> None:
    """Run all actions in threads that start together; errors come out here."""
    together = threading.Barrier(len(actions))

    def run(action: Callable[[], None]) -> None:
        together.wait()
        action()

    with ThreadPoolExecutor(len(actions)) as threads:
        for started in [threads.submit(run, action) for action in actions]:
            started.result()


WRITES: dict[str, Callable[[Any, Claim], None]] = {
    "renew": lambda session, mine: renew(session, mine, {"stage": "fit", "done": 1, "total": 2}),
    "succeed": lambda session, mine: succeed(session, mine, {"version": "faq@9"}),
    "fail": lambda session, mine: fail(session, mine, code="too_late", message="too late"),
    "release": release,
    "put back": lambda session, mine: put_back(session, mine, "no answer"),
    "check": check_held,
}


# --- claim --------------------------------------------------------------------------------------------------------------------


def test_of_workers_that_claim_at_once_exactly_one_wins(database: Database) -> None:
    for _ in range(15):
        job_id = new_job(database)
        won: list[Claim] = []

        def take(job_id: str = job_id, won: list[Claim] = won) -> None:
            with database.write() as session:
                mine = claim(session, job_id)
            if mine is not None:
                won.append(mine)

        at_once(take, take, take)

        assert [(one.token, one.attempts) for one in won] == [(1, 1)]
        assert messages(database, job_id) == ["started (attempt 1)"]


def test_a_job_under_a_living_lease_cannot_be_claimed(database: Database) -> None:
    job_id = new_job(database)
    claimed(database, job_id)
    before = facts(look(database, job_id))

    with database.write() as session:
        assert claim(session, job_id) is None

    assert facts(look(database, job_id)) == before


def test_a_job_that_is_not_there_cannot_be_claimed(database: Database) -> None:
    with database.write() as session:
        assert claim(session, "job_0") is None


@pytest.mark.parametrize("write", WRITES)
def test_after_a_takeover_the_old_worker_can_write_nothing(database: Database, write: str) -> None:
    job_id = new_job(database)
    old = claimed(database, job_id)
    let_lease_expire(database, job_id)
    new = claimed(database, job_id)
    before, told = facts(look(database, job_id)), messages(database, job_id)

    with pytest.raises(LeaseLost), database.write() as session:
        WRITES[write](session, old)

    assert (new.token, new.attempts) == (old.token + 1, 2)
    assert facts(look(database, job_id)) == before
    assert messages(database, job_id) == told
    with database.write() as session:
        succeed(session, new, {"version": "faq@1"})
    assert look(database, job_id).result == {"version": "faq@1"}


def test_what_a_lost_job_was_about_to_register_is_rolled_back_with_it(database: Database) -> None:
    job_id = new_job(database)
    old = claimed(database, job_id)
    let_lease_expire(database, job_id)
    claimed(database, job_id)

    with suppress(LeaseLost), database.write() as session:
        session.add(Job(id="job_follower", project_id=DEFAULT_PROJECT, kind="publish", request={}, created_at=now()))
        session.flush()
        succeed(session, old, {})

    with database.read() as session:
        assert session.get(Job, "job_follower") is None


def test_renewing_keeps_the_job_and_tells_the_progress(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    let_lease_expire(database, job_id)

    with database.write() as session:
        renew(session, mine, {"stage": "fit", "done": 3, "total": 9})

    with database.write() as session:
        assert claim(session, job_id) is None
    job = look(database, job_id)
    assert job.progress == {"stage": "fit", "done": 3, "total": 9}
    assert job.lease_expires_at is not None
    assert 20 < (job.lease_expires_at - now()).total_seconds() <= 30


ENDS: dict[str, Callable[[Any, Claim], None]] = {
    "succeed": WRITES["succeed"],
    "fail": WRITES["fail"],
    "release": release,
    "put back": WRITES["put back"],
    "cancel": lambda session, mine: cancel(session, session.get_one(Job, mine.job_id)),
    "take over": lambda session, _mine: take_over(session),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_does_not_run_any_more_has_no_lease_and_no_progress(database: Database, end: str) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        renew(session, mine, {"stage": "fit", "done": 1, "total": 2})

    with database.write() as session:
        ENDS[end](session, mine)

    job = look(database, job_id)
    assert (job.lease_expires_at, job.progress) == (None, None)
    assert (job.finished_at is None) == (job.state == "queued")
    with database.write() as session:
        assert (claim(session, job_id) is None) == (job.state != "queued")


# --- cancel, release, takeover ------------------------------------------------------------------------------------------------


def test_cancelling_a_queued_job_means_that_nobody_starts_it(database: Database) -> None:
    job_id = new_job(database)

    with database.write() as session:
        cancel(session, session.get_one(Job, job_id))

    with database.write() as session:
        assert claim(session, job_id) is None
    assert look(database, job_id).state == "cancelled"
    assert messages(database, job_id) == ["cancelled"]


@pytest.mark.parametrize("write", WRITES)
def test_after_a_cancel_the_running_worker_can_write_nothing(database: Database, write: str) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        cancel(session, session.get_one(Job, job_id))
    before = facts(look(database, job_id))

    with pytest.raises(LeaseLost), database.write() as session:
        WRITES[write](session, mine)

    assert facts(look(database, job_id)) == before
    assert (before["state"], before["token"]) == ("cancelled", mine.token + 1)
    assert before["finished_at"] is not None


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_a_finished_job_cannot_be_cancelled_and_the_error_names_its_state(database: Database, end: str) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        WRITES[end](session, mine)
    before = facts(look(database, job_id))

    with (
        pytest.raises(Conflict, match=f"is {before['state']}; only a job that is queued or running"),
        database.write() as session,
    ):
        cancel(session, session.get_one(Job, job_id))

    assert facts(look(database, job_id)) == before


def test_of_a_cancel_and_a_success_at_once_one_wins_and_the_other_is_told(database: Database) -> None:
    for _ in range(10):
        job_id = new_job(database)
        mine = claimed(database, job_id)
        lost: list[str] = []

        def finish(mine: Claim = mine, lost: list[str] = lost) -> None:
            try:
                with database.write() as session:
                    succeed(session, mine, {})
            except LeaseLost:
                lost.append("succeeded")

        def stop(job_id: str = job_id, lost: list[str] = lost) -> None:
            try:
                with database.write() as session:
                    cancel(session, session.get_one(Job, job_id))
            except Conflict:
                lost.append("cancelled")

        at_once(finish, stop)

        assert sorted([*lost, look(database, job_id).state]) == ["cancelled", "succeeded"]
        assert messages(database, job_id) == ["started (attempt 1)", look(database, job_id).state]


def test_a_released_job_is_queued_again_and_the_attempt_does_not_count(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)

    with database.write() as session:
        release(session, mine)

    job = look(database, job_id)
    assert (job.state, job.attempts, job.lease_expires_at) == ("queued", 0, None)
    with pytest.raises(LeaseLost), database.write() as session:
        succeed(session, mine, {})
    assert claimed(database, job_id).attempts == 1


def test_a_job_put_back_by_an_outage_is_queued_again_and_the_attempt_counts(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)

    with database.write() as session:
        put_back(session, mine, "the disk is full")

    job = look(database, job_id)
    assert (job.state, job.attempts) == ("queued", 1)
    assert messages(database, job_id)[-1] == "put back: the disk is full"
    with pytest.raises(LeaseLost), database.write() as session:
        succeed(session, mine, {})
    assert claimed(database, job_id).attempts == 2


def test_a_transaction_of_a_job_that_was_lost_does_not_begin(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        cancel(session, session.get_one(Job, job_id))
    begun = []

    with suppress(LeaseLost), held(database, mine):
        begun.append(mine)

    assert begun == []


def test_a_job_whose_worker_died_five_times_is_given_up_with_the_reason(database: Database) -> None:
    job_id = new_job(database)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claimed(database, job_id).attempts == attempt
        let_lease_expire(database, job_id)

    with database.write() as session:
        assert claim(session, job_id) is None

    job = look(database, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "too_many_attempts"
    assert "5 attempts ended without a result" in job.error["message"]
    assert messages(database, job_id)[-1] == f"failed: {job.error['message']}"


def test_a_restart_puts_running_jobs_back_and_leaves_all_others_alone(database: Database) -> None:
    waiting, running, done, cancelled = (new_job(database) for _ in range(4))
    mine = claimed(database, running)
    with database.write() as session:
        succeed(session, claim(session, done) or mine, {})
        cancel(session, session.get_one(Job, cancelled))
    others = [facts(look(database, one)) for one in (waiting, done, cancelled)]

    with database.write() as session:
        take_over(session)

    assert [facts(look(database, one)) for one in (waiting, done, cancelled)] == others
    assert look(database, running).state == "queued"
    assert messages(database, running)[-1] == "put back: the service was restarted"
    with pytest.raises(LeaseLost), database.write() as session:
        renew(session, mine, None)
    with database.read() as session:
        assert claimable_jobs(session) == [(waiting, "publish"), (running, "publish")]


# --- events and messages ------------------------------------------------------------------------------------------------------


def test_events_of_concurrent_writers_are_numbered_without_gaps(database: Database) -> None:
    job_id = new_job(database)

    def tell(writer: int) -> None:
        for number in range(20):
            with database.write() as session:
                add_event(session, job_id, f"{writer}:{number}")

    def tell_and_fail() -> None:
        for _ in range(10):
            with suppress(ZeroDivisionError), database.write() as session:
                add_event(session, job_id, "never")
                raise ZeroDivisionError

    at_once(lambda: tell(1), lambda: tell(2), lambda: tell(3), tell_and_fail)

    with database.read() as session:
        rows = session.scalars(select(JobEvent).filter_by(job_id=job_id).order_by(JobEvent.number)).all()
    assert [row.number for row in rows] == list(range(1, 61))
    assert look(database, job_id).event_count == 60
    for writer in (1, 2, 3):  # and the order of each writer is kept
        own = [row.message for row in rows if row.message.startswith(f"{writer}:")]
        assert own == [f"{writer}:{number}" for number in range(20)]


def test_the_message_goes_out_after_the_commit_when_the_row_can_be_seen(database: Database) -> None:
    queue = RecordingQueue(database)

    with database.write() as session:
        job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", request={}, created_at=now())
        session.add(job)
        session.flush()
        enqueue(session, queue, job)
        assert queue.sent == []

    assert queue.sent == [(job.id, "train")]
    assert queue.row_was_there == [True]


def test_no_message_goes_out_for_what_was_rolled_back(database: Database) -> None:
    queue = RecordingQueue()

    with suppress(ZeroDivisionError), database.write() as session:
        job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", request={}, created_at=now())
        session.add(job)
        session.flush()
        enqueue(session, queue, job)
        raise ZeroDivisionError

    assert queue.sent == []
    with database.write() as session:  # nor later, with somebody else's commit
        session.execute(select(func.count()).select_from(Job))
    assert queue.sent == []


def test_a_broker_that_is_down_loses_the_message_and_not_the_job(database: Database) -> None:
    others: list[str] = []

    with database.write() as session:
        job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", request={}, created_at=now())
        session.add(job)
        session.flush()
        enqueue(session, BrokenQueue(), job)
        after_commit(session, lambda: others.append("ran"))

    assert look(database, job.id).state == "queued"
    assert others == ["ran"]


def test_the_sweep_sends_a_message_for_every_job_that_could_be_claimed_and_no_other(database: Database) -> None:
    lost, expired, running, done, cancelled = (new_job(database, kind) for kind in ("train", *["publish"] * 4))
    for job_id in (expired, running, done):
        mine = claimed(database, job_id)
    let_lease_expire(database, expired)
    with database.write() as session:
        succeed(session, mine, {})
        cancel(session, session.get_one(Job, cancelled))
    queue = RecordingQueue()

    assert sweep(database, queue) == 2

    assert queue.sent == [(lost, "train"), (expired, "publish")]


# --- delivery -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def resources(tmp_path: Path) -> Iterator[Resources]:
    """Everything that a worker has, on real files, with an encoder registered and no worker that would run anything."""
    settings = Settings(data_dir=tmp_path, encoder_dtype="float32")
    opened = open_resources(settings, RecordingQueue())
    migrate(opened.database.engine)
    files = describe(settings.encoders[0])
    with opened.database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        register_encoder(session, DEFAULT_PROJECT, settings.encoders[0], files)
    yield opened
    opened.close()


@pytest.fixture
def publish_job(resources: Resources) -> str:
    """A queued job that deletes a document that is not there: real work for a worker, and no text to encode."""
    with resources.database.write() as session:
        model = get_or_create_model(
            session, DEFAULT_PROJECT, "faq", encoder=None, default_encoder=resources.settings.default_encoder
        )
        collection = create_collection(session, resources.vectors, DEFAULT_PROJECT, "docs", model=model, indexes={})
        where = {"must": [{"key": "document_id", "match": {"value": "nowhere"}}]}
        job = submit_deletion(session, resources.queue, collection, where)
    return job.id


def test_a_message_that_comes_again_after_the_job_has_ended_does_nothing(resources: Resources, publish_job: str) -> None:
    run_job(resources, publish_job, threading.Event())
    before, told = facts(look(resources.database, publish_job)), messages(resources.database, publish_job)

    run_job(resources, publish_job, threading.Event())

    assert before["state"] == "succeeded"
    assert facts(look(resources.database, publish_job)) == before
    assert messages(resources.database, publish_job) == told


def test_messages_that_come_at_once_run_the_job_once(resources: Resources, publish_job: str) -> None:
    def deliver() -> None:
        run_job(resources, publish_job, threading.Event())

    at_once(deliver, deliver, deliver)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts, job.token) == ("succeeded", 1, 1)
    told = messages(resources.database, publish_job)
    assert told.count("started (attempt 1)") == told.count("succeeded") == 1


def test_a_message_that_comes_while_the_job_runs_does_nothing(resources: Resources, publish_job: str) -> None:
    other = claimed(resources.database, new_job(resources.database))
    with resources.database.write() as session:  # another writer has the collection, so the job waits for it
        collection_id = session.scalars(select(Collection.id)).one()
        assert acquire_writer(session, collection_id, other)
    worker = threading.Thread(target=run_job, args=[resources, publish_job, threading.Event()])
    worker.start()
    wait_for_stage(resources.database, publish_job, "wait for the collection's writer")

    run_job(resources, publish_job, threading.Event())  # returns at once: otherwise it would wait for the same writer

    assert worker.is_alive()
    with resources.database.write() as session:
        release_writer(session, collection_id, other)
    worker.join(10)
    assert look(resources.database, publish_job).state == "succeeded"
    assert messages(resources.database, publish_job).count("started (attempt 1)") == 1


def test_a_worker_that_is_being_stopped_puts_its_job_back(resources: Resources, publish_job: str) -> None:
    other = claimed(resources.database, new_job(resources.database))
    with resources.database.write() as session:
        collection_id = session.scalars(select(Collection.id)).one()
        assert acquire_writer(session, collection_id, other)
    stopping = threading.Event()
    worker = threading.Thread(target=run_job, args=[resources, publish_job, stopping])
    worker.start()
    wait_for_stage(resources.database, publish_job, "wait for the collection's writer")

    stopping.set()
    worker.join(10)

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts) == ("queued", 0)
    run_job(resources, publish_job, stopping)  # what is still in the queue is not begun
    assert look(resources.database, publish_job).state == "queued"


def test_an_attempt_that_lost_its_job_does_not_give_the_collection_of_the_next_one_back(
    resources: Resources, publish_job: str
) -> None:
    database = resources.database
    old = claimed(database, publish_job)
    with database.write() as session:
        collection_id = session.scalars(select(Collection.id)).one()
        assert acquire_writer(session, collection_id, old)
    let_lease_expire(database, publish_job)
    new = claimed(database, publish_job)
    with database.write() as session:
        assert acquire_writer(session, collection_id, new)  # at once: the first attempt can write nothing any more

    with database.write() as session:
        release_writer(session, collection_id, old)

    with database.read() as session:
        assert session.get_one(Collection, collection_id).writer == f"{publish_job}:{new.token}"
    with pytest.raises(LeaseLost), database.write() as session:
        acquire_writer(session, collection_id, old)
    other = claimed(database, new_job(database))
    with database.write() as session:
        assert not acquire_writer(session, collection_id, other)


def test_an_outage_delays_a_job_and_does_not_fail_it(resources: Resources, publish_job: str) -> None:
    resources.vectors.close()  # every call answers Unavailable from now on

    run_job(resources, publish_job, threading.Event())

    job = look(resources.database, publish_job)
    assert (job.state, job.attempts, job.error) == ("queued", 1, None)
    assert messages(resources.database, publish_job)[-1] == "put back: The vector engine is closed."
    with resources.database.read() as session:  # and the collection is free for others meanwhile
        assert session.scalars(select(Collection.writer)).one() is None


def test_a_job_that_crashes_fails_with_the_kind_of_error_and_no_more(resources: Resources, publish_job: str) -> None:
    with resources.database.write() as session:
        session.execute(update(Job).where(Job.id == publish_job).values(kind="train"))  # a training without a dataset

    run_job(resources, publish_job, threading.Event())

    job = look(resources.database, publish_job)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "internal_error"
    assert "NoResultFound" in job.error["message"]


def test_a_job_whose_collection_is_gone_fails_and_says_so(resources: Resources, publish_job: str) -> None:
    with resources.database.write() as session:
        session.execute(update(Job).where(Job.id == publish_job).values(collection_id=None))

    run_job(resources, publish_job, threading.Event())

    assert look(resources.database, publish_job).error == {
        "code": "collection_not_found",
        "message": "the collection was deleted",
    }


def wait_for_stage(database: Database, job_id: str, stage: str) -> None:
    pause = threading.Event()
    for _ in range(500):
        if (look(database, job_id).progress or {}).get("stage") == stage:
            return
        pause.wait(0.01)
    raise AssertionError(f"job {job_id} never came to '{stage}': {look(database, job_id).state}")
