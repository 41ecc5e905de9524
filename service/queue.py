"""The broker: how a job's wake-up message gets to a worker. A message is only a job's id; the row is the truth."""

from typing import Protocol

from celery import Celery
from sqlalchemy.orm import Session

from service.db import after_commit
from service.tables import Job, JobKind

TASK_NAME = "jobs.run"

# By class of device: training waits for the GPU worker, everything else runs beside it.
QUEUES: dict[JobKind, str] = {"train": "gpu", "publish": "cpu", "rehead": "cpu"}


class JobQueue(Protocol):
    """Where messages go."""

    def send(self, job_id: str, kind: JobKind) -> None:
        """Wake a worker up for this job. May be called twice for the same job: the row decides who runs it."""


def enqueue(session: Session, queue: JobQueue, job: Job) -> None:
    """Send the job's message once the transaction that makes it has been committed."""
    job_id, kind = job.id, job.kind
    after_commit(session, lambda: queue.send(job_id, kind))


class CeleryQueue:
    """Messages through Celery."""

    def __init__(self, app: Celery, *, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix

    def send(self, job_id: str, kind: JobKind) -> None:
        self._app.send_task(TASK_NAME, args=[job_id], queue=self.name_of(QUEUES[kind]))

    def name_of(self, queue: str) -> str:
        """The broker's name of the queue `gpu` or `cpu`."""
        return f"{self._prefix}{queue}"


def make_celery(broker_url: str) -> Celery:
    """The Celery application, without tasks: `workers/tasks.py` puts them in."""
    app = Celery("zerogate", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,  # the row holds the result
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # attempts are capped in the row, so this cannot loop
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the lease decides, not the connection
        broker_connection_retry_on_startup=True,
    )
    if broker_url.startswith("memory"):
        # The default of one second would be the delay of every job; 20 ms cost 0.3 % of a core.
        app.conf.broker_transport_options = {"polling_interval": 0.02}
    return app
