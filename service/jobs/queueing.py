"""Making a job: its row, its first event, and its message after the commit."""

from typing import Any

from sqlalchemy.orm import Session

from service.db import now
from service.ids import new_id
from service.jobs.lifecycle import add_event
from service.queue import JobQueue, enqueue
from service.tables import Job, JobKind


def queue_job(
    session: Session, queue: JobQueue, *, project_id: str, kind: JobKind, request: dict[str, Any], **refs: str | None
) -> Job:
    """A queued job. refs: the row's `model_id`, `dataset_id`, `collection_id` and `parent_job_id`, where there are any."""
    job = Job(id=new_id("job"), project_id=project_id, kind=kind, request=request, created_at=now(), **refs)
    session.add(job)
    session.flush()
    add_event(session, job.id, "queued")
    enqueue(session, queue, job)
    return job
