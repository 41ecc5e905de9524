"""How a running job comes back into the queue, and when that ends."""

from datetime import timedelta

import pytest

from service.db import Database, now
from service.jobs.lifecycle import (
    MAX_ATTEMPTS,
    LeaseLost,
    cancel,
    claim,
    give_up_attempt,
    put_back,
    release,
    renew,
    succeed,
    take_over,
)
from service.tables import Job
from tests.service.jobs.job_rows import claimed, facts, let_lease_expire, look, messages, new_job, set_columns


def is_claimable(database: Database, job_id: str) -> bool:
    with database.write() as session:
        found = claim(session, job_id) is not None
        session.rollback()
    return found


def test_a_released_job_is_queued_again_and_the_attempt_does_not_count(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)

    with database.write() as session:
        release(session, mine)

    job = look(database, job_id)
    assert (job.state, job.attempts, job.lease_expires_at, job.available_at) == ("queued", 0, None, None)
    with pytest.raises(LeaseLost), database.write() as session:
        succeed(session, mine, {})
    assert claimed(database, job_id).attempts == 1


def test_an_outage_delays_a_job_longer_every_time_and_never_uses_up_its_attempts(database: Database) -> None:
    job_id = new_job(database)
    waits = []
    for outage in range(1, 2 * MAX_ATTEMPTS):
        mine = claimed(database, job_id)
        assert mine.attempts == 1
        with database.write() as session:
            put_back(session, mine, "the files are away")

        job = look(database, job_id)
        assert (job.state, job.attempts, job.outages) == ("queued", 0, outage)
        assert job.available_at is not None
        wait = (job.available_at - now()).total_seconds()
        waits.append(round(wait))
        assert messages(database, job_id)[-1] == f"put back for {waits[-1]} s: the files are away"
        with pytest.raises(LeaseLost), database.write() as session:
            succeed(session, mine, {})
        with database.write() as session:
            assert claim(session, job_id) is None
        set_columns(database, job_id, available_at=now() - timedelta(microseconds=1))
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_a_job_that_was_put_back_keeps_the_attempts_that_others_used_up(database: Database) -> None:
    job_id = new_job(database)
    claimed(database, job_id)
    let_lease_expire(database, job_id)
    second = claimed(database, job_id)

    with database.write() as session:
        put_back(session, second, "no answer")

    assert look(database, job_id).attempts == 1


def test_an_attempt_that_came_to_an_end_counts_and_may_be_repeated_at_once(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)

    with database.write() as session:
        give_up_attempt(session, mine, "the process was ended by SIGKILL")

    job = look(database, job_id)
    assert (job.state, job.attempts, job.last_failure) == ("queued", 1, "the process was ended by SIGKILL")
    assert messages(database, job_id)[-1] == "put back: the process was ended by SIGKILL"
    with pytest.raises(LeaseLost), database.write() as session:
        succeed(session, mine, {})
    assert claimed(database, job_id).attempts == 2


def test_the_last_possible_attempt_that_came_to_an_end_fails_the_job_and_tells_how(database: Database) -> None:
    job_id = new_job(database)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        mine = claimed(database, job_id)
        assert mine.attempts == attempt
        with database.write() as session:
            give_up_attempt(session, mine, f"crash {attempt}")

    job = look(database, job_id)
    assert (job.state, job.attempts) == ("failed", MAX_ATTEMPTS)
    assert job.error == {"code": "too_many_attempts", "message": "all of 5 attempts ended; in the last, crash 5"}
    assert messages(database, job_id)[-1] == f"failed: {job.error['message']}"
    assert messages(database, job_id).count("put back: crash 4") == 1


def test_a_failure_as_long_as_a_log_is_cut_and_does_not_break_the_row(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)

    with database.write() as session:
        give_up_attempt(session, mine, "x" * 5000)

    assert look(database, job_id).last_failure == "x" * 1000


def test_a_takeover_tells_which_attempt_stopped_answering_and_where(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        renew(session, mine, {"stage": "fit", "done": 3, "total": 9})
    let_lease_expire(database, job_id)

    claimed(database, job_id)

    failure = "the worker of attempt 1 stopped answering at 'fit', step 3 of 9"
    assert look(database, job_id).last_failure == failure
    assert messages(database, job_id)[1:] == [f"taken over: {failure}", "started (attempt 2)"]


def test_a_job_whose_worker_died_five_times_is_given_up_with_the_reason(database: Database) -> None:
    job_id = new_job(database)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claimed(database, job_id).attempts == attempt
        let_lease_expire(database, job_id)

    with database.write() as session:
        assert claim(session, job_id) is None

    job = look(database, job_id)
    assert job.state == "failed"
    assert job.error == {
        "code": "too_many_attempts",
        "message": "5 attempts ended without a result, the last one because the worker of attempt 5 stopped answering; given up",
    }
    assert messages(database, job_id)[-1] == f"failed: {job.error['message']}"


def test_a_restart_puts_running_jobs_back_and_of_the_others_only_forgets_their_messages(database: Database) -> None:
    waiting, running, done, cancelled = (new_job(database, woken_at=now()) for _ in range(4))
    mine = claimed(database, running)
    with database.write() as session:
        renew(session, mine, {"stage": "fit", "done": 3, "total": 9})
        succeed(session, claim(session, done) or mine, {})
        cancel(session, session.get_one(Job, cancelled))
    before = {one: facts(look(database, one)) for one in (waiting, done, cancelled)}

    with database.write() as session:
        take_over(session)

    after = {one: facts(look(database, one)) for one in (waiting, done, cancelled)}
    assert after == {**before, waiting: {**before[waiting], "woken_at": None}}
    job = look(database, running)
    assert (job.state, job.attempts, job.woken_at) == ("queued", 1, None)
    assert job.last_failure == "the service was stopped at 'fit', step 3 of 9"
    assert messages(database, running)[-1] == "put back: the service was restarted"
    with pytest.raises(LeaseLost), database.write() as session:
        renew(session, mine, None)
    assert is_claimable(database, waiting)
    assert is_claimable(database, running)
