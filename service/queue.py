"""The broker: how a job's wake-up message gets to a worker. A message is only a job's id; the row is the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from sqlalchemy.orm import Session

from service.db import after_commit
from service.errors import Unavailable
from service.tables import Job, JobKind

TASK_NAME = "jobs.run"

# By class of device: training waits for the GPU worker, everything else runs beside it.
QUEUES: dict[JobKind, str] = {"train": "gpu", "publish": "cpu", "rehead": "cpu"}

_CONNECT_SECONDS = 3
# Longer than the broker keeps a waiting worker's question open (10 s): only a dead connection is that silent.
_SILENT_SECONDS = 30


class JobQueue(Protocol):
    """Where messages go. Raises Unavailable when the broker does not answer."""

    def send(self, job_id: str, kind: JobKind) -> None:
        """Wake a worker up for this job. May be called twice for the same job: the row decides who runs it."""

    def waiting(self, queue: str) -> int:
        """How many messages of the queue `gpu` or `cpu` no worker has taken yet."""

    def ping(self) -> None:
        """Return when the broker answers."""


def enqueue(session: Session, queue: JobQueue, job: Job) -> None:
    """Send the job's message once the transaction that makes it has been committed."""
    job_id, kind = job.id, job.kind
    after_commit(session, lambda: queue.send(job_id, kind))


class CeleryQueue:
    """Messages through Celery."""

    def __init__(self, app: Celery, *, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix
        self._outages = (OperationalError, OSError, *app.connection_for_write().connection_errors)

    def send(self, job_id: str, kind: JobKind) -> None:
        """See `JobQueue`."""
        with self._mapping_outages():
            self._app.send_task(TASK_NAME, args=[job_id], queue=self.name_of(QUEUES[kind]))

    def waiting(self, queue: str) -> int:
        """See `JobQueue`."""
        # Not its default channel, which asks a broker that is away for six seconds.
        with self._mapping_outages(), self._app.connection_for_write() as connection, connection.channel() as channel:
            try:
                count: int = channel.queue_declare(self.name_of(queue), passive=True).message_count
            except ChannelError:  # Redis forgets a queue that is empty
                return 0
            return count

    def ping(self) -> None:
        """See `JobQueue`."""
        with self._mapping_outages(), self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=True)

    def name_of(self, queue: str) -> str:
        """The broker's name of the queue `gpu` or `cpu`."""
        return f"{self._prefix}{queue}"

    @contextmanager
    def _mapping_outages(self) -> Iterator[None]:
        try:
            yield
        except self._outages as error:
            raise Unavailable("the broker does not answer; jobs wait in the database until it does") from error


def make_celery(broker_url: str) -> Celery:
    """The Celery application, without tasks: `workers/tasks.py` puts them in."""
    app = Celery("zerogate", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,  # the row holds the result
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # attempts are capped in the row, so this cannot loop
        # The sweep sends a lost message again, so a request need not wait for a broker that is away.
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # the lease decides, not the connection
        broker_connection_timeout=_CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever
    )
    if broker_url.startswith("memory"):
        # The default of one second would be the delay of every job; 20 ms cost 0.3 % of a core.
        app.conf.broker_transport_options = {"polling_interval": 0.02}
    else:
        app.conf.broker_transport_options = {"socket_connect_timeout": _CONNECT_SECONDS, "socket_timeout": _SILENT_SECONDS}
    return app
