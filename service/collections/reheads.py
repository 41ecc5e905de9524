"""Letting every collection of a model follow what is live."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.collections.queries import ready_versions
from service.jobs.queueing import queue_job
from service.queue import JobQueue
from service.tables import Collection, Job, Model


def schedule_reheads(session: Session, queue: JobQueue, model: Model) -> list[Job]:
    """Queue a rehead job for every collection of the model in which the live version is not ready."""
    behind = [
        collection
        for collection in session.scalars(select(Collection).filter_by(model_id=model.id, deleting=False)).all()
        if model.live_version not in ready_versions(session, collection)
    ]
    return [
        queue_job(
            session,
            queue,
            project_id=collection.project_id,
            kind="rehead",
            request={},  # whatever is live when it runs
            model_id=model.id,
            collection_id=collection.id,
        )
        for collection in behind
    ]
