"""Jobs with the names of what they refer to, as the API shows them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.queries import publish_jobs
from service.jobs.schemas import JobAnswer, job_answer
from service.tables import Collection, Job, Model


def answer_for(session: Session, job: Job) -> JobAnswer:
    """The job with the names of what it refers to."""
    return answers_for(session, [job])[0]


def answers_for(session: Session, jobs: list[Job]) -> list[JobAnswer]:
    """The same for a page of jobs, in three SELECTs."""
    models = dict(session.execute(select(Model.id, Model.name).where(Model.id.in_({job.model_id for job in jobs}))).all())
    collections = dict(
        session.execute(
            select(Collection.id, Collection.name).where(Collection.id.in_({job.collection_id for job in jobs}))
        ).all()
    )
    published = publish_jobs(session, [job.id for job in jobs])
    return [
        job_answer(
            job,
            model=models.get(job.model_id or ""),
            collection=collections.get(job.collection_id or ""),
            publish_job_id=published.get(job.id),
        )
        for job in jobs
    ]
