"""Messages are sent again when they were lost, and not otherwise: a queue never holds many more than jobs wait for it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from sqlalchemy import update

from service.db import Database, now
from service.errors import Unavailable
from service.jobs.lifecycle import cancel, put_back, release, renew, succeed
from service.jobs.queueing import queue_job, wake_waiting
from service.queue import CeleryQueue, JobQueue, make_celery
from service.resources import DEFAULT_PROJECT
from service.tables import Job
from tests.service.jobs.job_rows import (
    RecordingQueue,
    at_once,
    claimed,
    facts,
    let_lease_expire,
    look,
    new_job,
    set_columns,
)


@pytest.fixture
def broker(valkey: str) -> Iterator[CeleryQueue]:
    """Celery over a real Valkey that holds nothing."""
    celery = make_celery(valkey)
    yield CeleryQueue(celery)
    celery.close()


def queued(database: Database, queue: JobQueue, number: int) -> list[str]:
    made = []
    for _ in range(number):
        with database.write() as session:
            made.append(queue_job(session, queue, project_id=DEFAULT_PROJECT, kind="publish", request={}).id)
    return made


def let_messages_age(database: Database, *, seconds: float = 11.0) -> None:
    """As if the last messages had been sent this long ago, and all else that happened too."""
    with database.write() as session:
        session.execute(update(Job).where(Job.woken_at.is_not(None)).values(woken_at=now() - timedelta(seconds=seconds)))


def test_every_job_that_could_be_claimed_and_nobody_was_told_of_is_told_of_and_no_other(database: Database) -> None:
    unknown = new_job(database, "train")
    expired, running, done, cancelled, later = (new_job(database) for _ in range(5))
    for job_id in (expired, running, done, later):
        mine = claimed(database, job_id)
        if job_id == done:
            with database.write() as session:
                succeed(session, mine, {})
        if job_id == later:
            with database.write() as session:
                put_back(session, mine, "no answer")
    let_lease_expire(database, expired)
    with database.write() as session:
        cancel(session, session.get_one(Job, cancelled))
    queue = RecordingQueue()

    assert wake_waiting(database, queue) == 2

    assert sorted(queue.sent) == sorted([(unknown, "train"), (expired, "publish")])
    assert wake_waiting(database, queue) == 0


def test_a_job_that_came_back_is_told_of_again_as_soon_as_it_is_due(database: Database) -> None:
    queue = RecordingQueue()
    released, delayed = queued(database, queue, 2)
    queue.sent.clear()  # a worker has taken both
    first, second = claimed(database, released), claimed(database, delayed)
    with database.write() as session:
        release(session, first)
    with database.write() as session:
        put_back(session, second, "no answer")

    wake_waiting(database, queue)
    assert queue.sent == [(released, "publish")]

    set_columns(database, delayed, available_at=now() - timedelta(microseconds=1))
    wake_waiting(database, queue)
    assert queue.sent == [(released, "publish"), (delayed, "publish")]


def test_a_worker_that_died_twice_is_news_both_times(database: Database) -> None:
    queue = RecordingQueue()
    (job_id,) = queued(database, queue, 1)
    for deaths in (1, 2):
        claimed(database, job_id)
        let_messages_age(database, seconds=60)
        let_lease_expire(database, job_id)

        wake_waiting(database, queue)
        wake_waiting(database, queue)

        assert len(queue.sent) == 1 + deaths


def test_after_an_outage_expired_leases_tell_nothing_and_waiting_jobs_are_told_of(database: Database) -> None:
    waiting, expired = new_job(database), new_job(database)
    claimed(database, expired)
    let_lease_expire(database, expired)
    queue = RecordingQueue()

    wake_waiting(database, queue, leases_tell=False)
    assert [job_id for job_id, _ in queue.sent] == [waiting]

    wake_waiting(database, queue)
    assert [job_id for job_id, _ in queue.sent] == [waiting, expired]


def test_of_messages_of_which_some_were_lost_those_sent_longest_ago_are_sent_again(database: Database) -> None:
    queue = RecordingQueue()
    jobs = queued(database, queue, 5)
    queue.lost = 2
    let_messages_age(database)
    set_columns(database, jobs[3], woken_at=now() - timedelta(seconds=30))
    set_columns(database, jobs[1], woken_at=now() - timedelta(seconds=20))

    assert wake_waiting(database, queue) == 2

    assert [job_id for job_id, _ in queue.sent[5:]] == [jobs[3], jobs[1]]


def test_a_message_that_is_on_its_way_is_not_sent_again(database: Database) -> None:
    queue = RecordingQueue()
    queued(database, queue, 3)
    queue.lost = 3

    assert wake_waiting(database, queue) == 0

    let_messages_age(database)
    assert wake_waiting(database, queue) == 3


def test_messages_that_wait_for_a_busy_worker_are_left_alone_however_old(database: Database) -> None:
    queue = RecordingQueue()
    queued(database, queue, 20)

    for _ in range(50):
        let_messages_age(database, seconds=3600)
        wake_waiting(database, queue)

    assert len(queue.sent) == 20


def test_sweepers_that_look_at_once_send_one_message_a_job(database: Database) -> None:
    queue = RecordingQueue()
    jobs = [new_job(database) for _ in range(10)]

    sent = at_once([lambda: wake_waiting(database, queue)] * 4)

    assert sum(sent) == 10
    assert sorted(job_id for job_id, _ in queue.sent) == sorted(jobs)


def test_a_waking_does_not_touch_what_the_worker_writes(database: Database) -> None:
    """The sweeper saw the job waiting; a worker has it by the time the message is sent."""

    class Taking(RecordingQueue):
        def waiting(self, queue: str) -> int:
            mine = claimed(database, job_id)
            with database.write() as session:
                renew(session, mine, {"stage": "fit", "done": 1, "total": 2})
            before.update(facts(look(database, job_id)))
            return 0

    job_id = new_job(database)
    before: dict[str, object] = {}

    wake_waiting(database, Taking())

    after = facts(look(database, job_id))
    assert {**after, "woken_at": None} == {**before, "woken_at": None}


def test_messages_that_a_broker_lost_are_sent_again(shared_database: Database, broker: CeleryQueue, valkey: str) -> None:
    jobs = queued(shared_database, broker, 5)
    assert broker.waiting("cpu") == 5
    assert broker.waiting("gpu") == 0
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
    let_messages_age(shared_database)

    sent = at_once([lambda: wake_waiting(shared_database, broker)] * 3)

    assert sum(sent) == len(jobs)
    assert broker.waiting("cpu") == 5


def test_a_broker_never_holds_many_more_messages_than_jobs_wait(shared_database: Database, broker: CeleryQueue) -> None:
    jobs = queued(shared_database, broker, 10)
    for n in range(50):
        let_messages_age(shared_database)
        if n % 10 == 5:  # somebody took a job in between without a message
            claimed(shared_database, jobs.pop())
        wake_waiting(shared_database, broker)

    assert broker.waiting("cpu") <= 10


def test_while_the_broker_is_away_the_sweep_says_so_and_loses_nothing(database: Database) -> None:
    job_id = new_job(database)
    before = facts(look(database, job_id))
    away = CeleryQueue(make_celery("redis://127.0.0.1:1/0"))  # nobody listens on port 1

    with pytest.raises(Unavailable, match="the broker does not answer"):
        wake_waiting(database, away)

    assert facts(look(database, job_id)) == before
    queue = RecordingQueue()
    assert wake_waiting(database, queue) == 1
    assert queue.sent == [(job_id, "publish")]
