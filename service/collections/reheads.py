"""Letting every collection of a model follow what is live."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.collections.queries import vector_rows
from service.db import now
from service.ids import new_id
from service.jobs.lifecycle import add_event
from service.queue import JobQueue, enqueue
from service.tables import Collection, Job, Model


def schedule_reheads(session: Session, queue: JobQueue, model: Model) -> list[Job]:
    """Queue a rehead job for every collection of the model in which the live version is not ready."""
    jobs = []
    for collection in session.scalars(select(Collection).filter_by(model_id=model.id, deleting=False)):
        ready = {row.version for row in vector_rows(session, collection.id) if row.state == "ready"}
        if model.live_version not in ready:
            jobs.append(_rehead(session, queue, collection, model.live_version))
    return jobs


def _rehead(session: Session, queue: JobQueue, collection: Collection, version: int) -> Job:
    job = Job(
        id=new_id("job"),
        project_id=collection.project_id,
        kind="rehead",
        request={"version": version},
        model_id=collection.model_id,
        collection_id=collection.id,
        created_at=now(),
    )
    session.add(job)
    session.flush()
    add_event(session, job.id, "queued")
    enqueue(session, queue, job)
    return job
