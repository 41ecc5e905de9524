"""The one Celery task: run a job by its id.

The row decides whether there is anything to do, so messages may repeat or be late.
"""

import threading
from collections.abc import Callable

import structlog
from celery import Celery

from service.errors import ServiceError, Unavailable
from service.jobs.lifecycle import Claim, LeaseLost, claim, error_of, fail, put_back, release
from service.queue import TASK_NAME
from service.resources import Resources
from service.tables import TERMINAL_STATES, Job, JobKind
from workers.publish import run_publish
from workers.supervision import Stopped, Supervision
from workers.train import run_training
from zerogate.errors import ZerogateError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_RUN: dict[JobKind, Callable[[Resources, Claim, Supervision], None]] = {
    "train": run_training,
    "publish": run_publish,
    "rehead": run_publish,  # a publish without documents: the live version's name is filled from base
}


def register_tasks(app: Celery, resources: Resources, stopping: threading.Event) -> None:
    """Put the task into the application, bound to this process's resources."""

    def run(job_id: str) -> None:
        run_job(resources, job_id, stopping)

    # Not shared: Celery would otherwise put it into every application of the process, and two services share none.
    app.task(run, name=TASK_NAME, shared=False)


def run_job(resources: Resources, job_id: str, stopping: threading.Event) -> None:
    """Claim the job and work on it until it has ended, was cancelled, or this process is being stopped."""
    if stopping.is_set():
        return  # the row stays queued; the next start finds it
    with resources.database.write() as session:
        mine = claim(session, job_id)
    if mine is None:
        log.info("job.nothing_to_do", job_id=job_id)
        return
    log.info("job.started", job_id=job_id, kind=mine.kind, attempt=mine.attempts)
    try:
        _run_claimed(resources, mine, stopping)
    except LeaseLost:
        log.info("job.lost", job_id=job_id)
        with resources.database.read() as session:
            has_ended = session.get_one(Job, job_id).state in TERMINAL_STATES
        if has_ended:  # cancelled; otherwise another worker goes on with what is there
            resources.artifacts.forget_work(job_id)


def _run_claimed(resources: Resources, mine: Claim, stopping: threading.Event) -> None:
    try:
        _RUN[mine.kind](resources, mine, Supervision(resources.database, mine, stopping))
    except LeaseLost:
        raise
    except Stopped:
        with resources.database.write() as session:
            release(session, mine)
        return
    except Unavailable as error:  # an outage delays a job; the sweep sends its message again
        log.warning("job.put_back", job_id=mine.job_id, reason=error.message)
        with resources.database.write() as session:
            put_back(session, mine, error.message)
        return
    except (ServiceError, ZerogateError) as error:
        told = error_of(error)
    except Exception as error:
        log.exception("job.crashed", job_id=mine.job_id)
        told = {"code": "internal_error", "message": f"an error that nobody expected: {type(error).__name__}; the log has more"}
    else:
        log.info("job.succeeded", job_id=mine.job_id)
        return
    with resources.database.write() as session:
        fail(session, mine, **told)
    resources.artifacts.forget_work(mine.job_id)
    log.info("job.failed", job_id=mine.job_id, code=told["code"])
