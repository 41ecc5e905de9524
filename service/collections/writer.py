"""The right to write to a collection: one attempt at a job at a time has it, as long as it has the job."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.db import now
from service.errors import NotFound
from service.jobs.lifecycle import LEASE, Claim, check_held
from service.tables import Collection, Job

# Within this time an attempt that lost its job has noticed, or its process is dead.
_NOTICED = LEASE


def acquire_writer(session: Session, collection_id: str, mine: Claim) -> bool:
    """Take the right to write to the collection; False while another attempt has it. Raises LeaseLost, NotFound."""
    check_held(session, mine)
    collection = session.get(Collection, collection_id)
    if collection is None or collection.deleting:
        raise NotFound("the collection was deleted", code="collection_not_found")
    if _job_of(collection.writer) != mine.job_id and has_writer(session, collection_id):
        return False
    seen = Collection.writer.is_(None) if collection.writer is None else Collection.writer == collection.writer
    taken = update(Collection).where(Collection.id == collection_id, Collection.deleting.is_(other=False), seen)
    return session.execute(taken.values(writer=_writer(mine)).returning(Collection.id)).first() is not None


def release_writer(session: Session, collection_id: str, mine: Claim) -> None:
    """Give the right to write back, if this attempt has it."""
    session.execute(
        update(Collection).where(Collection.id == collection_id, Collection.writer == _writer(mine)).values(writer=None)
    )


def has_writer(session: Session, collection_id: str) -> bool:
    """Whether an attempt may be writing: it has its job, or lost it so recently that it may not have noticed."""
    collection = session.get(Collection, collection_id)
    if collection is None or collection.writer is None:
        return False
    job = session.get(Job, _job_of(collection.writer))
    if job is None:
        return False
    if job.state == "running":
        return True  # whoever takes the job over takes the right over
    return job.finished_at is not None and job.finished_at > now() - _NOTICED


def writer_is_dead(session: Session, collection_id: str) -> bool:
    """Whether the attempt that has the right lost its worker: who takes its job over goes on with it, and comes first."""
    collection = session.get(Collection, collection_id)
    job = None if collection is None else session.get(Job, _job_of(collection.writer))
    return job is not None and job.state == "running" and job.lease_expires_at is not None and job.lease_expires_at < now()


def _writer(mine: Claim) -> str:
    """The attempt, not only the job: after a takeover the attempt that lost must not give the other's right back."""
    return f"{mine.job_id}:{mine.token}"


def _job_of(writer: str | None) -> str | None:
    return None if writer is None else writer.partition(":")[0]
