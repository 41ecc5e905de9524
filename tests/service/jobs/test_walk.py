"""Many steps in any order: what must hold for a job whatever its workers, owners and outages do."""

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.db import Database, now
from service.errors import Conflict
from service.jobs.lifecycle import MAX_ATTEMPTS, Claim, LeaseLost, cancel, check_held, claim, take_over
from service.tables import TERMINAL_STATES, Job, JobEvent
from tests.service.jobs.job_rows import WRITES, facts, look, new_job, set_columns

_OTHERS = ("claim", "claim", "claim", "expire", "expire", "due", "cancel", "restart")
_ENDS = {"succeed", "fail", "release", "put back", "give up"}


@dataclass
class Walk:
    """One job, all the claims that were ever given out, and what was seen of the row so far.

    holder: the claim that may write, as the model of the test has it; None when there is none.
    """

    database: Database
    job_id: str
    random: random.Random
    claims: list[Claim] = field(default_factory=list)
    holder: Claim | None = None
    tokens: list[int] = field(default_factory=list)
    ended: dict[str, Any] | None = None

    def step(self) -> str:
        action = self.random.choice([*WRITES, *_OTHERS])
        match action:
            case "claim":
                self._claim()
            case "expire":
                if look(self.database, self.job_id).lease_expires_at is not None:
                    set_columns(self.database, self.job_id, lease_expires_at=now() - timedelta(seconds=1))
            case "due":
                set_columns(self.database, self.job_id, available_at=None)
            case "cancel":
                if self.random.random() < 0.1:
                    self._cancel()
            case "restart":
                if self.random.random() < 0.2:
                    with self.database.write() as session:
                        take_over(session)
                    self.holder = None
            case _:
                if self.claims and (action not in ("succeed", "fail") or self.random.random() < 0.2):
                    self._write(action, self.random.choice([*self.claims, self.claims[-1]]))
        return action

    def check(self) -> None:
        job = look(self.database, self.job_id)
        assert not self.tokens or job.token >= self.tokens[-1], "the token never falls"
        self.tokens.append(job.token)
        assert 0 <= job.attempts <= MAX_ATTEMPTS + 1
        assert (job.state == "running") == (self.holder is not None) == (job.lease_expires_at is not None)
        assert (job.state in TERMINAL_STATES) == (job.finished_at is not None)
        with self.database.read() as session:
            numbers = session.scalars(select(JobEvent.number).filter_by(job_id=self.job_id).order_by(JobEvent.number)).all()
        assert list(numbers) == list(range(1, job.event_count + 1))
        if self.ended is not None:
            assert facts(job) == self.ended, "a terminal state never changes"
        elif job.state in TERMINAL_STATES:
            self.ended = facts(job)
        writers = [one for one in {one.token: one for one in self.claims}.values() if self._may_write(one)]
        assert writers == ([] if self.holder is None else [self.holder])

    def _claim(self) -> None:
        before = look(self.database, self.job_id)
        is_due = before.state == "queued" and (before.available_at is None or before.available_at <= now())
        is_dead = before.state == "running" and before.lease_expires_at is not None and before.lease_expires_at < now()
        with self.database.write() as session:
            mine = claim(session, self.job_id)
        if not (is_due or is_dead):
            assert mine is None
        elif before.attempts >= MAX_ATTEMPTS:
            assert mine is None
            assert look(self.database, self.job_id).state == "failed"
            self.holder = None
        else:
            assert mine == Claim(self.job_id, "publish", before.token + 1, before.attempts + 1)
            self.claims.append(mine)
            self.holder = mine

    def _cancel(self) -> None:
        state = look(self.database, self.job_id).state
        try:
            with self.database.write() as session:
                cancel(session, session.get_one(Job, self.job_id))
        except Conflict:
            assert state in TERMINAL_STATES
        else:
            assert state in ("queued", "running")
        self.holder = None

    def _write(self, action: str, mine: Claim) -> None:
        before = facts(look(self.database, self.job_id))
        try:
            with self.database.write() as session:
                WRITES[action](session, mine)
        except LeaseLost:
            assert mine != self.holder
            assert facts(look(self.database, self.job_id)) == before
        else:
            assert mine == self.holder
            if action in _ENDS:
                self.holder = None

    def _may_write(self, mine: Claim) -> bool:
        try:
            with self.database.write() as session:
                check_held(session, mine)
                session.rollback()
        except LeaseLost:
            return False
        return True


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_a_job_one_worker_at_most_can_write_and_what_has_ended_stays(database: Database, seed: int) -> None:
    draw = random.Random(seed)
    seen = set()
    for _ in range(3):
        walk = Walk(database, new_job(database), draw)
        for _ in range(40):
            seen.add(walk.step())
            walk.check()
            if walk.ended is not None and draw.random() < 0.2:
                break

    assert len(seen) > 8  # a walk that only claims would prove nothing
