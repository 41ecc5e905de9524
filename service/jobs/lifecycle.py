"""A job's way through its states, guarded by compare-and-set.

    queued --claim--> running --succeed--> succeeded
      ^ |                | | '--fail-----> failed
      | '-----cancel-----|-'-------------> cancelled
      '-release, put_back, give_up_attempt'

A claim hands out a *token*, one higher than any before. Every write of a worker names its token; a cancel or a takeover raises
the row's, so a worker that lost its job cannot write any more: `LeaseLost` tells it to stop. The token decides, not the clock: a
worker whose lease has expired goes on as long as nobody took its job. All functions flush and none commits, but `held`, which is
a transaction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.errors import Conflict, ServiceError
from service.tables import EventLevel, Job, JobEvent, JobKind, JobState

# A worker that dies is missed after this long; it renews at a third of it.
LEASE = timedelta(seconds=9)
MAX_ATTEMPTS = 5
CANCELLABLE: frozenset[JobState] = frozenset({"queued", "running"})

_LONGEST_WAIT = timedelta(seconds=30)  # between two looks at a system that does not answer


class LeaseLost(Exception):
    """The job was cancelled or is another worker's now; whatever was made must not be registered."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a job."""

    job_id: str
    kind: JobKind
    token: int
    attempts: int


def claim(session: Session, job_id: str) -> Claim | None:
    """Take the job if it is queued and due, or running under a lease that has expired; None when it is neither."""
    time = now()
    # Locked: on PostgreSQL another worker might change what is told below before the update.
    found = (
        select(Job.state, Job.progress, Job.attempts, Job.last_failure).where(Job.id == job_id).with_for_update(key_share=True)
    )
    before = session.execute(found).first()
    taken = session.execute(
        update(Job)
        .where(Job.id == job_id, claimable(time))
        .values(
            state="running",
            token=Job.token + 1,
            attempts=Job.attempts + 1,
            lease_expires_at=time + LEASE,
            available_at=None,
            started_at=time,
            progress=None,
        )
        .returning(Job.kind, Job.token, Job.attempts)
    ).first()
    if taken is None or before is None:
        return None
    mine = Claim(job_id, taken.kind, taken.token, taken.attempts)
    failure = before.last_failure
    if before.state == "running":
        failure = f"the worker of attempt {before.attempts} stopped answering{_where(before.progress)}"
        _write(session, mine, last_failure=failure)
        add_event(session, job_id, f"taken over: {failure}", level="warn")
    if mine.attempts > MAX_ATTEMPTS:
        fail(
            session,
            mine,
            code="too_many_attempts",
            message=f"{MAX_ATTEMPTS} attempts ended without a result, the last one because {failure or 'of a restart'}; given up",
        )
        return None
    add_event(session, job_id, f"started (attempt {mine.attempts})")
    return mine


def renew(session: Session, mine: Claim, progress: dict[str, Any] | None) -> None:
    """Extend the lease and tell how far the work is; None leaves what was told. Raises LeaseLost."""
    told = {} if progress is None else {"progress": progress}  # a worker waits for its trainer, which tells
    _write(session, mine, lease_expires_at=now() + LEASE, **told)


def succeed(session: Session, mine: Claim, result: dict[str, Any]) -> None:
    """running -> succeeded. Raises LeaseLost."""
    _finish(session, mine, state="succeeded", result=result)
    add_event(session, mine.job_id, "succeeded")


def fail(session: Session, mine: Claim, *, code: str, message: str) -> None:
    """running -> failed, with a reason for the person who asked. Raises LeaseLost."""
    _finish(session, mine, state="failed", error={"code": code, "message": message})
    add_event(session, mine.job_id, f"failed: {message}", level="error")


def check_held(session: Session, mine: Claim) -> None:
    """Pass while the job is ours, for a transaction that writes elsewhere than in the job's row. Raises LeaseLost."""
    _write(session, mine, lease_expires_at=now() + LEASE)


@contextmanager
def held(database: Database, mine: Claim) -> Iterator[Session]:
    """A writing transaction of a job; raises LeaseLost, before anything is written, when the job is no longer ours."""
    with database.write() as session:
        check_held(session, mine)
        yield session


def put_back(session: Session, mine: Claim, reason: str) -> None:
    """running -> queued, because an outside system does not answer: later, and as if not attempted. Raises LeaseLost."""
    outages = session.scalars(select(Job.outages).where(Job.id == mine.job_id)).one()
    wait = min(timedelta(seconds=2 ** min(outages, 10)), _LONGEST_WAIT)
    _requeue(session, mine, attempts=Job.attempts - 1, outages=Job.outages + 1, available_at=now() + wait)
    add_event(session, mine.job_id, f"put back for {wait.total_seconds():g} s: {reason}", level="warn")


def release(session: Session, mine: Claim) -> None:
    """running -> queued, because this worker is being stopped; the attempt does not count. Raises LeaseLost."""
    _requeue(session, mine, attempts=Job.attempts - 1)
    add_event(session, mine.job_id, "put back: the worker is being stopped")


def give_up_attempt(session: Session, mine: Claim, failure: str) -> None:
    """running -> queued, because the attempt's process came to an end; the last possible one fails the job. Raises LeaseLost."""
    if mine.attempts >= MAX_ATTEMPTS:
        fail(session, mine, code="too_many_attempts", message=f"all of {MAX_ATTEMPTS} attempts ended; in the last, {failure}")
        return
    _requeue(session, mine, last_failure=failure[:1000])
    add_event(session, mine.job_id, f"put back: {failure}", level="warn")


def cancel(session: Session, job: Job) -> None:
    """queued or running -> cancelled, at once: the token rises, so a worker that still runs can register nothing.

    Raises Conflict naming the state and the allowed ones.
    """
    changed = session.execute(
        update(Job)
        .where(Job.id == job.id, Job.state.in_(CANCELLABLE))
        .values(state="cancelled", token=Job.token + 1, lease_expires_at=None, progress=None, finished_at=now())
        .returning(Job.id)
    ).first()
    session.refresh(job)
    if changed is None:
        raise Conflict(
            f"job '{job.id}' is {job.state}; only a job that is queued or running can be cancelled", code="job_not_cancellable"
        )
    add_event(session, job.id, "cancelled")


def take_over(session: Session) -> None:
    """Put every running job back into the queue. Only for a process that is alone on the database (embedded profile)."""
    found = session.execute(select(Job.id, Job.token, Job.kind, Job.attempts, Job.progress).where(Job.state == "running")).all()
    for job in found:
        mine = Claim(job.id, job.kind, job.token, job.attempts)
        _requeue(session, mine, last_failure=f"the service was stopped{_where(job.progress)}")
        add_event(session, job.id, "put back: the service was restarted", level="warn")
    # The messages of those that waited went with the process.
    session.execute(update(Job).where(Job.state == "queued").values(woken_at=None))


def add_event(
    session: Session, job_id: str, message: str, *, level: EventLevel = "info", data: dict[str, Any] | None = None
) -> None:
    """Append to the job's events; the numbers have no gaps because the job's row is locked while one is drawn."""
    number = session.execute(
        update(Job).where(Job.id == job_id).values(event_count=Job.event_count + 1).returning(Job.event_count)
    ).scalar_one()
    session.add(JobEvent(job_id=job_id, number=number, level=level, message=message[:1000], data=data, created_at=now()))
    session.flush()


def error_of(error: Exception) -> dict[str, str]:
    """Code and message of an error that the person who asked can act on."""
    code = error.code if isinstance(error, ServiceError) else _snake(type(error).__name__)
    return {"code": code, "message": str(error)}


def claimable(time: datetime) -> ColumnElement[bool]:
    """The condition under which `claim` gives a job out at that time."""
    due = and_(Job.state == "queued", or_(Job.available_at.is_(None), Job.available_at <= time))
    return or_(due, and_(Job.state == "running", Job.lease_expires_at < time))


def _requeue(session: Session, mine: Claim, **values: Any) -> None:
    _write(session, mine, state="queued", token=Job.token + 1, lease_expires_at=None, woken_at=None, progress=None, **values)


def _finish(session: Session, mine: Claim, **values: Any) -> None:
    _write(session, mine, finished_at=now(), lease_expires_at=None, progress=None, **values)


def _write(session: Session, mine: Claim, **values: Any) -> None:
    held = and_(Job.id == mine.job_id, Job.state == "running", Job.token == mine.token)
    if session.execute(update(Job).where(held).values(**values).returning(Job.id)).first() is None:
        raise LeaseLost(mine.job_id)


def _where(progress: dict[str, Any] | None) -> str:
    return "" if progress is None else f" at '{progress['stage']}', step {progress['done']} of {progress['total']}"


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
