"""The thread that keeps a job while the work is busy, and what the work is told by it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from service.db import Database, now
from service.errors import StorageFull, Unavailable
from service.jobs import lifecycle
from service.jobs.lifecycle import Claim, LeaseLost, cancel, claim, succeed
from service.tables import Job
from tests.service.jobs.job_rows import claimed, let_lease_expire, look, new_job, wait_until
from workers import supervision
from workers.supervision import Stopped, Supervision


class Interrupted(Database):
    """A database that can be away."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.engine)
        self.away: Exception | None = None
        self.refused = 0

    @contextmanager
    def write(self) -> Iterator[Any]:
        if self.away is not None:
            self.refused += 1
            raise self.away
        with super().write() as session:
            yield session


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """A lease of 0.9 s, renewed every 0.3 s; in seconds."""
    monkeypatch.setattr(lifecycle, "LEASE", timedelta(seconds=0.9))
    monkeypatch.setattr(supervision, "_RENEW_SECONDS", 0.3)
    return 0.9


@pytest.fixture
def mine(database: Database) -> Claim:
    return claimed(database, new_job(database))


def test_the_lease_is_renewed_while_the_work_sits_in_one_long_step(database: Database, short_lease: float) -> None:
    mine = claimed(database, new_job(database))
    with Supervision(database, mine, threading.Event()) as supervise:
        supervise("fit", 1, 2)
        for _ in range(8):
            time.sleep(short_lease / 4)
            with database.write() as session:
                assert claim(session, mine.job_id) is None
        supervise("fit", 2, 2)

    with database.write() as session:
        succeed(session, mine, {})


def test_without_anybody_who_renews_the_same_lease_does_expire(database: Database, short_lease: float) -> None:
    mine = claimed(database, new_job(database))
    with Supervision(database, mine, threading.Event()):
        pass
    time.sleep(1.2 * short_lease)

    assert claimed(database, mine.job_id).token == mine.token + 1


def test_the_progress_is_told_soon_and_not_at_every_step(
    database: Database, mine: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    plain = lifecycle.renew

    def recording(session: Any, claim: Claim, progress: dict[str, Any] | None) -> None:
        written.append(progress)
        plain(session, claim, progress)

    monkeypatch.setattr(supervision, "renew", recording)
    with Supervision(database, mine, threading.Event()) as supervise:
        for done in range(1, 101):
            supervise("fit", done, 100)
            time.sleep(0.01)
        wait_until(lambda: (look(database, mine.job_id).progress or {}).get("done") == 100, seconds=2)

    assert len(written) <= 6  # 1 s of steps and the last one, at most two a second


def test_a_worker_that_tells_nothing_leaves_the_progress_that_its_trainer_tells(
    database: Database, mine: Claim, short_lease: float
) -> None:
    with Supervision(database, mine, threading.Event()) as trainer:
        trainer("fit", 1, 2)
        wait_until(lambda: look(database, mine.job_id).progress is not None)
    with Supervision(database, mine, threading.Event()):
        time.sleep(short_lease)

    assert look(database, mine.job_id).progress == {"stage": "fit", "done": 1, "total": 2}


def test_a_cancel_is_noticed_within_a_second_by_work_that_makes_progress(database: Database, mine: Claim) -> None:
    with Supervision(database, mine, threading.Event()) as supervise:
        supervise("fit", 0, 10**6)
        with database.write() as session:
            cancel(session, session.get_one(Job, mine.job_id))
        started = time.monotonic()

        def work() -> None:
            for done in range(10**6):
                supervise("fit", done, 10**6)
                time.sleep(0.001)

        with pytest.raises(LeaseLost):
            work()

        assert time.monotonic() - started < 1.0


def test_a_takeover_is_noticed_by_work_that_tells_nothing(database: Database, mine: Claim, short_lease: float) -> None:
    with Supervision(database, mine, threading.Event()) as supervise:
        supervise.check()
        let_lease_expire(database, mine.job_id)
        taken_over = claim_by_force(database, mine)

        def is_lost() -> bool:
            try:
                supervise.check()
            except LeaseLost:
                return True
            return False

        wait_until(is_lost, seconds=3)

    job = look(database, mine.job_id)
    assert (job.state, job.token, job.progress) == ("running", taken_over.token, None)


def test_work_that_slept_past_its_lease_asks_before_it_writes_and_hears_that_the_job_is_gone(
    database: Database, mine: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = Interrupted(database)
    asleep.away = Unavailable("as long as the process is stopped, its thread does nothing either")
    with Supervision(asleep, mine, threading.Event()) as supervise:
        supervise.confirm()  # fresh: not asked
        monkeypatch.setattr(supervision, "LEASE", timedelta(0))
        with pytest.raises(Unavailable):
            supervise.confirm()
        asleep.away = None
        supervise.confirm()
        claim_by_force(database, mine)
        with pytest.raises(LeaseLost):
            supervise.confirm()


def claim_by_force(database: Database, mine: Claim) -> Claim:
    """The job, claimed by another although its worker renews the lease."""
    while True:
        with database.write() as session:
            session.get_one(Job, mine.job_id).lease_expires_at = now() - timedelta(seconds=1)
            session.flush()
            taken = claim(session, mine.job_id)
        if taken is not None:
            return taken


def test_a_worker_that_is_being_stopped_hears_of_it_at_its_next_step(database: Database, mine: Claim) -> None:
    stopping = threading.Event()
    with Supervision(database, mine, stopping) as supervise:
        supervise("fit", 1, 2)
        stopping.set()
        with pytest.raises(Stopped):
            supervise("fit", 2, 2)


@pytest.mark.parametrize("reason", [Unavailable("it does not answer"), StorageFull("its disk is full")], ids=["away", "full"])
def test_work_goes_on_without_the_database_and_keeps_the_job_if_nobody_took_it(
    database: Database, mine: Claim, short_lease: float, reason: Exception
) -> None:
    interrupted = Interrupted(database)
    with Supervision(interrupted, mine, threading.Event()) as supervise:
        supervise("fit", 1, 9)
        interrupted.away = reason
        deadline = time.monotonic() + 2 * short_lease
        while time.monotonic() < deadline:
            supervise("fit", 2, 9)
            time.sleep(0.02)
        expired = look(database, mine.job_id).lease_expires_at
        assert expired is not None
        assert expired < now()
        assert interrupted.refused >= 2
        interrupted.away = None

        wait_until(lambda: (look(database, mine.job_id).lease_expires_at or now()) > now(), seconds=3)
        supervise("fit", 3, 9)

    job = look(database, mine.job_id)
    assert (job.token, job.attempts) == (mine.token, 1)


def test_what_is_done_patiently_is_done_again_until_the_system_answers(
    database: Database, mine: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_RETRY_SECONDS", 0.01)
    tried: list[int] = []

    def action() -> str:
        tried.append(1)
        if len(tried) < 4:
            raise Unavailable("it does not answer")
        return "done"

    with Supervision(database, mine, threading.Event()) as supervise:
        assert supervise.patiently(action) == "done"
    assert len(tried) == 4


def test_patience_ends_with_the_job_with_the_worker_and_with_any_other_error(
    database: Database, mine: Claim, monkeypatch: pytest.MonkeyPatch, short_lease: float
) -> None:
    monkeypatch.setattr(supervision, "_RETRY_SECONDS", 0.01)
    stopping = threading.Event()

    def never() -> None:
        raise Unavailable("it does not answer")

    def wrong() -> None:
        raise ZeroDivisionError

    with Supervision(database, mine, stopping) as supervise:
        with pytest.raises(ZeroDivisionError):
            supervise.patiently(wrong)
        threading.Timer(0.1, stopping.set).start()
        with pytest.raises(Stopped):
            supervise.patiently(never)
        stopping.clear()
        with database.write() as session:
            cancel(session, session.get_one(Job, mine.job_id))
        with pytest.raises(LeaseLost):
            supervise.patiently(never)
