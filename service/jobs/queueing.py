"""Making a job (its row, its first event, its message after the commit), and sending messages again that may be lost."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.ids import new_id
from service.jobs.lifecycle import add_event, claimable
from service.queue import QUEUES, JobQueue, enqueue
from service.tables import DatasetUse, Job, JobKind

# A message that was sent this recently is on its way.
_ON_ITS_WAY = timedelta(seconds=5)


def queue_job(
    session: Session,
    queue: JobQueue,
    *,
    project_id: str,
    kind: JobKind,
    request: dict[str, Any],
    uses: Iterable[str] = (),
    **refs: str | None,
) -> Job:
    """A queued job. uses: the ids of datasets that the request names, beside `dataset_id`.

    refs: the row's `model_id`, `dataset_id`, `collection_id` and `parent_job_id`, where there are any.
    """
    time = now()
    job = Job(id=new_id("job"), project_id=project_id, kind=kind, request=request, created_at=time, woken_at=time, **refs)
    session.add(job)
    session.flush()
    session.add_all(DatasetUse(job_id=job.id, dataset_id=dataset_id) for dataset_id in sorted(set(uses)))
    add_event(session, job.id, "queued")
    enqueue(session, queue, job)
    return job


def wake_waiting(database: Database, queue: JobQueue, *, leases_tell: bool = True) -> int:
    """Send messages for jobs that wait and have none that could wake a worker; gives their number.

    A job that nobody was told of since it can be claimed is told of at once. For the others it matters whether their messages
    are still there: when a queue holds fewer messages than jobs wait for it, so many were lost. Nobody knows whose, so those
    jobs are told of again that were told of longest ago; the next time it is the turn of others. A queue never holds many more
    messages than jobs. May run in any number of processes; a message too many does no harm.

    leases_tell: whether an expired lease says that its worker is dead; if not, only queued jobs are told of. Raises Unavailable.
    """
    time = now()
    with database.read() as session:
        rows = session.execute(
            select(Job.id, Job.kind, Job.state, Job.woken_at, Job.lease_expires_at).where(claimable(time)).order_by(Job.id)
        ).all()
    waiting: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row.state == "running" and not leases_tell:
            continue
        waiting[QUEUES[row.kind]].append(row)
    return sum(_wake(database, queue, name, jobs) for name, jobs in waiting.items())


def _wake(database: Database, queue: JobQueue, name: str, jobs: list[Any]) -> int:
    news = [job for job in jobs if _is_news(job)]
    told = sorted((job for job in jobs if not _is_news(job)), key=lambda job: job.woken_at)
    lost = max(0, len(told) - queue.waiting(name))
    due = [*news, *(job for job in told[:lost] if job.woken_at < now() - _ON_ITS_WAY)]
    sent = 0
    for job in due:
        if _note_waking(database, job):
            queue.send(job.id, job.kind)
            sent += 1
    return sent


def _is_news(job: Any) -> bool:
    """Whether nobody was told of it since it can be claimed."""
    return job.woken_at is None or (job.state == "running" and job.woken_at < job.lease_expires_at)


def _note_waking(database: Database, job: Any) -> bool:
    """False when another process has just sent it."""
    seen = Job.woken_at.is_(None) if job.woken_at is None else Job.woken_at == job.woken_at
    with database.write() as session:
        noted = update(Job).where(Job.id == job.id, seen).values(woken_at=now()).returning(Job.id)
        return session.execute(noted).first() is not None
