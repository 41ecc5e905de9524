"""Reading jobs and their events."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.tables import TERMINAL_STATES, Job, JobEvent


def get_job(session: Session, project_id: str, job_id: str) -> Job:
    """The job. Raises NotFound."""
    job = session.scalar(select(Job).filter_by(project_id=project_id, id=job_id))
    if job is None:
        raise NotFound(f"there is no job '{job_id}'; GET /v1/jobs lists them", code="job_not_found")
    return job


def events_after(session: Session, job_id: str, number: int, *, limit: int) -> Sequence[JobEvent]:
    """The job's events whose number is above `number`, in order."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > number)
    return session.scalars(query.order_by(JobEvent.number).limit(limit)).all()


def publish_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """The ids of the publish jobs that followed the given jobs, by the parent's id."""
    query = select(Job.parent_job_id, Job.id).where(Job.parent_job_id.in_(job_ids), Job.kind == "publish")
    return {str(parent_id): child_id for parent_id, child_id in session.execute(query)}


def unfinished_tokens(session: Session) -> dict[str, int]:
    """The tokens of all jobs that have not ended, by id."""
    found = session.execute(select(Job.id, Job.token).where(Job.state.not_in(TERMINAL_STATES)))
    return {row.id: row.token for row in found}
