"""The embedded profile: API, workers, database, broker and vectors in one process, on one data folder."""

import fcntl
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from celery.concurrency.thread import TaskPool
from celery.worker import WorkController
from fastapi import FastAPI

from cli.migrate import migrate
from service.collections.operations import delete_collection
from service.collections.queries import unfinished_deletions
from service.datasets.queries import artifact_keys as dataset_files
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.operations import describe, ensure_project, register_encoder
from service.encoders.queries import facts_of, stored_keys
from service.errors import Conflict
from service.jobs.lifecycle import claimable_jobs, take_over
from service.main import create_app
from service.models.queries import artifact_keys as version_files
from service.queue import QUEUES, CeleryQueue, make_celery
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import Settings
from workers.sweep import sweep, sweep_until
from workers.tasks import register_tasks

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class EmbeddedService:
    """A running service. `app` is not listening yet: uvicorn, or a test's client, serves it."""

    app: FastAPI
    resources: Resources
    stopping: threading.Event


@contextmanager
def embedded_service(settings: Settings) -> Iterator[EmbeddedService]:
    """Start everything but the HTTP server, take up the jobs that were queued or running, and stop it all after the block.

    Raises Conflict when another process uses the data folder.
    """
    stopping = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(exclusive(settings.data_dir))
        # In-memory queues belong to the whole process: a prefix keeps two services in one process (tests) apart.
        queue = CeleryQueue(make_celery(settings.broker_url), prefix=f"{uuid.uuid4().hex[:8]}-")
        resources = open_resources(settings, queue)
        stack.callback(resources.close)
        migrate(resources.database.engine)
        encoders = _register_encoders(resources)
        stack.enter_context(_workers(resources, queue, stopping))
        _go_on(resources)
        threading.Thread(target=sweep_until, args=[stopping, resources.database, resources.queue], daemon=True).start()
        # The first import and load takes some seconds: better now than in the first request. `encoder` waits for it.
        threading.Thread(target=resources.models.encoder, args=[encoders[0]], daemon=True).start()
        yield EmbeddedService(create_app(resources, stopping=stopping), resources, stopping)


def _register_encoders(resources: Resources) -> list[EncoderFacts]:
    found = [(spec, describe(spec)) for spec in resources.settings.encoders]  # reads 90 MB each: not inside a transaction
    with resources.database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        return [facts_of(register_encoder(session, DEFAULT_PROJECT, spec, files)) for spec, files in found]


def _go_on(resources: Resources) -> None:
    """Take up what the last process left. This one is alone on the folder, so whatever is `running` or half-made is its own."""
    with resources.database.write() as session:
        take_over(session)
        known = dataset_files(session) | version_files(session) | stored_keys(session)
        working = [job_id for job_id, _ in claimable_jobs(session)]
        deleting = unfinished_deletions(session)
    orphans = resources.artifacts.tidy(known, working=working)
    if orphans:
        log.warning("artifacts.tidied", keys=orphans)
    for collection_id in deleting:
        delete_collection(resources.database, resources.vectors, collection_id)
    sweep(resources.database, resources.queue)


@contextmanager
def _workers(resources: Resources, queue: CeleryQueue, stopping: threading.Event) -> Iterator[None]:
    """One worker a queue, each with one thread: a training never keeps a publish waiting."""
    controllers = [_worker(resources, name, queue.name_of(name), stopping) for name in sorted(set(QUEUES.values()))]
    threads = [threading.Thread(target=one.start, name=one.hostname, daemon=True) for one in controllers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()  # `stop` waits for the running task, which ends at its next callback
        for controller in controllers:
            controller.stop()
        for thread in threads:
            thread.join(_STOP_SECONDS)


def _worker(resources: Resources, name: str, queue_name: str, stopping: threading.Event) -> WorkController:
    # An application of its own: which queues are consumed is kept in the application, not in the worker.
    celery = make_celery(resources.settings.broker_url)
    register_tasks(celery, resources, stopping)
    controller = WorkController(
        app=celery,
        hostname=f"{name}@embedded",
        pool_cls=_OwnThread,
        concurrency=1,
        queues=[queue_name],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
    )
    # The fast path looks a task up in the application that was started last in this process, whoever received the message.
    celery.use_fast_trace_task = False
    return controller


class _OwnThread(TaskPool):  # type: ignore[misc]
    """A pool of one thread in which tasks belong to this worker's application, not to whichever is the process's default."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor = ThreadPoolExecutor(max_workers=self.limit, initializer=self.app.set_current)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep every other process off the folder; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another zerogate process uses the data folder '{folder}'; stop it or choose another", code="folder_in_use"
            ) from None
        yield
