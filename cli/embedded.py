"""The embedded profile: API, workers, database, broker and vectors in one process, on one data folder."""

import fcntl
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from cli.celery_workers import celery_workers
from cli.encoders import register_encoders, start_loading
from cli.migrate import migrate
from service.errors import Conflict
from service.jobs.lifecycle import take_over
from service.jobs.queueing import wake_waiting
from service.main import create_app
from service.queue import QUEUES, CeleryQueue, make_celery
from service.resources import Resources, open_resources
from service.settings import Settings
from workers.sweep import finish, sweep_until
from workers.tasks import run_here

# Python's own 5 ms make a request that takes the interpreter's lock twenty times beside a busy job wait 100 ms; 1 ms made a pass
# of one text take 17 ms there, these 0.2 ms make it 6.
_SWITCH_SECONDS = 0.0002


@dataclass(frozen=True)
class EmbeddedService:
    """A running service. `app` is not listening yet: uvicorn, or a test's client, serves it."""

    app: FastAPI
    resources: Resources
    stopping: threading.Event
    loading: threading.Thread  # of the first encoder


@contextmanager
def embedded_service(settings: Settings) -> Iterator[EmbeddedService]:
    """Start everything but the HTTP server, take up the jobs that were queued or running, and stop it all after the block.

    Raises Conflict when another process uses the data folder.
    """
    stopping = threading.Event()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with ExitStack() as stack:
        stack.enter_context(exclusive(settings.data_dir))
        # In-memory queues belong to the whole process: a prefix keeps two services in one process (tests) apart.
        queue = CeleryQueue(make_celery(settings.broker_url), prefix=f"{uuid.uuid4().hex[:8]}-")
        resources = open_resources(settings, queue)
        stack.callback(resources.close)
        migrate(resources.database.engine)
        encoders = register_encoders(resources)
        _go_on(resources)
        stack.enter_context(celery_workers(resources, queue, stopping, dict.fromkeys(sorted(set(QUEUES.values())), run_here)))
        threading.Thread(target=sweep_until, args=[stopping, resources], daemon=True).start()
        loading = start_loading(resources, encoders[0])
        yield EmbeddedService(create_app(resources, stopping=stopping), resources, stopping, loading)


def _go_on(resources: Resources) -> None:
    """Take up what the last process left. This one is alone on the folder, so whatever is `running` or half-made is its own."""
    with resources.database.write() as session:
        take_over(session)
    finish(resources, alone=True)
    wake_waiting(resources.database, resources.queue)


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
