"""Sending messages again: they may be lost, and a worker may die with a job in its hands. The row is the truth."""

import threading

import structlog

from service.db import Database
from service.errors import Unavailable
from service.jobs.lifecycle import claimable_jobs
from service.queue import JobQueue

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVERY_SECONDS = 5.0


def sweep(database: Database, queue: JobQueue) -> int:
    """Wake a worker up for every job that waits or whose lease has expired; gives their number.

    A message too many does no harm: whoever comes second finds nothing to claim.
    """
    with database.read() as session:
        waiting = claimable_jobs(session)
    for job_id, kind in waiting:
        queue.send(job_id, kind)
    return len(waiting)


def sweep_until(stopping: threading.Event, database: Database, queue: JobQueue) -> None:
    """Sweep now and then until the event is set."""
    while not stopping.wait(EVERY_SECONDS):
        try:
            sweep(database, queue)
        except Unavailable as error:
            log.warning("sweep.failed", reason=error.message)
