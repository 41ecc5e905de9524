"""The one Celery task: run a job by its id.

The row decides whether there is anything to do, so messages may repeat or be late.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

import structlog
from celery import Celery

from service.db import AlreadyThere
from service.errors import ServiceError, Unavailable
from service.jobs.lifecycle import Claim, LeaseLost, claim, error_of, fail, give_up_attempt, put_back, release
from service.queue import TASK_NAME
from service.resources import Resources
from service.tables import JobKind
from workers.leftovers import forget_leftovers
from workers.publish import run_publish
from workers.supervision import Stopped, Supervision
from workers.train import run_training
from zerogate.errors import ZerogateError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Run = Callable[[Resources, Supervision], None]
"""Does the work of a job that was claimed, and leaves its row in another state than running."""

_WORK: dict[JobKind, Run] = {
    "train": run_training,
    "publish": run_publish,
    "rehead": run_publish,  # a publish without documents: the live version's name is filled from base
}


def register_tasks(app: Celery, resources: Resources, stopping: threading.Event, run: Run) -> None:
    """Put the task into the application, bound to this process's resources. run: `run_here`, or another process's way to it."""

    def run_by_id(job_id: str) -> None:
        run_job(resources, job_id, stopping, run)

    # Not shared: Celery would otherwise put it into every application of the process, and two services share none.
    app.task(run_by_id, name=TASK_NAME, shared=False)


def run_job(resources: Resources, job_id: str, stopping: threading.Event, run: Run) -> None:
    """Claim the job and work on it until it has ended, was cancelled, or this process is being stopped."""
    if stopping.is_set():
        return  # the row stays queued; the next start finds it
    with resources.database.write() as session:
        mine = claim(session, job_id)
    if mine is None:
        log.info("job.nothing_to_do", job_id=job_id)
        return
    log.info("job.started", job_id=job_id, kind=mine.kind, attempt=mine.attempts)
    with Supervision(resources.database, mine, stopping) as supervise:
        try:
            run(resources, supervise)
        except LeaseLost:
            log.info("job.lost", job_id=job_id)
        except Stopped:  # while the database was away: whoever starts next takes the job over
            log.warning("job.left", job_id=job_id)
    forget_leftovers(resources, job_id)


def run_here(resources: Resources, supervise: Supervision) -> None:
    """Do the job's work in this process. Raises LeaseLost, and Stopped where its end could not be written down."""
    mine = supervise.claim
    try:
        _WORK[mine.kind](resources, supervise)
    except LeaseLost:
        raise
    except Stopped:
        with suppress(Unavailable), resources.database.write() as session:
            release(session, mine)
        return
    except Unavailable as error:  # not the job's fault: it is done later
        reason = error.message
        log.warning("job.put_back", job_id=mine.job_id, reason=reason)
        supervise.patiently(lambda: _put_back(resources, mine, reason), despite=ServiceError)
        return
    except AlreadyThere:  # it may be there for good: the attempt counts
        log.warning("job.collided", job_id=mine.job_id, exc_info=True)
        supervise.patiently(lambda: _give_up(resources, mine), despite=ServiceError)
        return
    except (ServiceError, ZerogateError) as error:
        told = error_of(error)
    except Exception as error:
        log.exception("job.crashed", job_id=mine.job_id)
        told = {"code": "internal_error", "message": f"an error that nobody expected: {type(error).__name__}; the log has more"}
    else:
        log.info("job.succeeded", job_id=mine.job_id)
        return
    supervise.patiently(lambda: _fail(resources, mine, told), despite=ServiceError)
    log.info("job.failed", job_id=mine.job_id, code=told["code"])


def _put_back(resources: Resources, mine: Claim, reason: str) -> None:
    with resources.database.write() as session:
        put_back(session, mine, reason)


def _give_up(resources: Resources, mine: Claim) -> None:
    with resources.database.write() as session:
        give_up_attempt(session, mine, "another job made the same thing at the same moment")


def _fail(resources: Resources, mine: Claim, told: dict[str, str]) -> None:
    with resources.database.write() as session:
        fail(session, mine, **told)
