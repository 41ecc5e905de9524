"""Who gets a job, who loses it, and what the loser can no longer write."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from service.db import Database, now
from service.errors import Conflict
from service.jobs.lifecycle import LEASE, Claim, LeaseLost, cancel, claim, held, renew, succeed, take_over
from service.resources import DEFAULT_PROJECT
from service.tables import Job
from tests.service.jobs.job_rows import WRITES, Write, at_once, claimed, facts, let_lease_expire, look, messages, new_job


def test_of_workers_that_claim_at_once_exactly_one_wins(database: Database) -> None:
    for _ in range(8):
        job_id = new_job(database)

        def take(job_id: str = job_id) -> Claim | None:
            with database.write() as session:
                return claim(session, job_id)

        won = [mine for mine in at_once([take] * 4) if mine is not None]

        assert [(one.token, one.attempts) for one in won] == [(1, 1)]
        assert messages(database, job_id) == ["started (attempt 1)"]


def test_of_workers_that_take_over_at_once_exactly_one_wins(database: Database) -> None:
    for _ in range(8):
        job_id = new_job(database)
        claimed(database, job_id)
        let_lease_expire(database, job_id)

        def take(job_id: str = job_id) -> Claim | None:
            with database.write() as session:
                return claim(session, job_id)

        won = [mine for mine in at_once([take] * 4) if mine is not None]

        assert [(one.token, one.attempts) for one in won] == [(2, 2)]
        assert messages(database, job_id)[1:] == [
            "taken over: the worker of attempt 1 stopped answering",
            "started (attempt 2)",
        ]


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


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_whose_lease_has_expired_may_write_as_long_as_nobody_took_its_job(database: Database, write: str) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    let_lease_expire(database, job_id)

    with database.write() as session:
        WRITES[write](session, mine)

    job = look(database, job_id)
    assert job.state != "running" or (job.lease_expires_at is not None and job.lease_expires_at > now())


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


def test_a_transaction_of_a_job_that_was_lost_does_not_begin(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        cancel(session, session.get_one(Job, job_id))
    begun = []

    with suppress(LeaseLost), held(database, mine):
        begun.append(mine)

    assert begun == []


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
    assert 0.8 < (job.lease_expires_at - now()) / LEASE <= 1.0


def test_renewing_without_news_leaves_the_progress_that_was_told(database: Database) -> None:
    job_id = new_job(database)
    mine = claimed(database, job_id)
    with database.write() as session:
        renew(session, mine, {"stage": "fit", "done": 3, "total": 9})

    with database.write() as session:  # the worker's own renewal, while its trainer tells
        renew(session, mine, None)

    assert look(database, job_id).progress == {"stage": "fit", "done": 3, "total": 9}


ENDS: dict[str, Write] = {
    **{name: WRITES[name] for name in ("succeed", "fail", "release", "put back", "give up")},
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
        is_due = job.state == "queued" and end != "put back"
        assert (claim(session, job_id) is not None) == is_due


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
    for _ in range(8):
        job_id = new_job(database)
        mine = claimed(database, job_id)

        def finish(mine: Claim = mine) -> str | None:
            try:
                with database.write() as session:
                    succeed(session, mine, {})
            except LeaseLost:
                return "succeeded"
            return None

        def stop(job_id: str = job_id) -> str | None:
            try:
                with database.write() as session:
                    cancel(session, session.get_one(Job, job_id))
            except Conflict:
                return "cancelled"
            return None

        actions: list[Callable[[], str | None]] = [finish, stop]
        (lost,) = [told for told in at_once(actions) if told is not None]

        assert sorted([lost, look(database, job_id).state]) == ["cancelled", "succeeded"]
        assert messages(database, job_id) == ["started (attempt 1)", look(database, job_id).state]
