"""The production profile: `zerogate api`, `worker` and `sweep`, processes that share PostgreSQL, Redis, Qdrant and files."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cli.encoders import register_encoders, settle, start_loading
from cli.migrate import check_migrated
from service.errors import InvalidRequest
from service.queue import QUEUES, CeleryQueue, make_celery
from service.resources import Resources, open_resources
from service.settings import Settings
from workers.supervision import Supervision
from workers.sweep import sweep, sweep_until
from workers.tasks import Run, run_here
from workers.trainer_process import TrainerProcess, claim_of


def api(settings: Settings) -> None:
    """Serve HTTP until SIGINT or SIGTERM; jobs are left to workers."""
    from cli.serve import run_server  # here: workers and trainers start without FastAPI
    from service.main import create_app

    stopping = threading.Event()
    with _opened(settings) as (resources, _):
        encoders = register_encoders(resources)
        threading.Thread(target=settle, args=[start_loading(resources, encoders[0])], daemon=True).start()
        run_server(create_app(resources, stopping=stopping), settings.host, settings.port, stopping)


def work(settings: Settings, queues: Sequence[str]) -> None:
    """Work on the queues, one job each at a time, and sweep, until SIGINT or SIGTERM."""
    from cli.celery_workers import celery_workers  # here: trainers start without it

    unknown = set(queues) - set(QUEUES.values())
    if unknown or not queues:
        raise InvalidRequest(f"--queues names {', '.join(sorted(unknown)) or 'none'}; there are gpu and cpu", param="queues")
    stopping = _stopped_by_signals()
    with _opened(settings) as (resources, queue), celery_workers(resources, queue, stopping, _runs(settings, queues)):
        sweep_until(stopping, resources)


def sweep_alone(settings: Settings, *, once: bool) -> None:
    """Sweep until SIGINT or SIGTERM, or one time."""
    stopping = _stopped_by_signals()
    with _opened(settings) as (resources, _):
        if once:
            sweep(resources)
        else:
            sweep_until(stopping, resources)


def run_claimed(settings: Settings, arguments: Sequence[str]) -> None:
    """Do the work of one claimed job in this process: what `TrainerProcess` starts."""
    mine, stopping = claim_of(arguments), _stopped_by_signals()
    with _opened(settings) as (resources, _), Supervision(resources.database, mine, stopping) as supervise:
        run_here(resources, supervise)


def _runs(settings: Settings, queues: Sequence[str]) -> dict[str, Run]:
    """Trainings get a process each, and with it all of the machine's memory back; the rest runs in a thread of the worker."""
    command = [sys.executable, "-m", "cli.trainer"]
    trainer = TrainerProcess(command, {"ZEROGATE_DATA_DIR": str(settings.data_dir.absolute())})
    return {queue: trainer if queue == QUEUES["train"] else run_here for queue in queues}


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Resources, CeleryQueue]]:
    _check_shared(settings)
    queue = CeleryQueue(make_celery(settings.broker_url))
    resources = open_resources(settings, queue)
    try:
        check_migrated(resources.database.engine)
        yield resources, queue
    finally:
        resources.close()


def _check_shared(settings: Settings) -> None:
    """Raise InvalidRequest where processes would not meet."""
    if settings.broker_url.startswith("memory"):
        raise InvalidRequest(
            "ZEROGATE_BROKER_URL is not set: api and workers meet at a broker, redis://... (`zerogate serve` needs none)"
        )
    if settings.qdrant_url is None:
        raise InvalidRequest(
            "ZEROGATE_QDRANT_URL is not set: api and workers share a Qdrant server, http://... (`zerogate serve` needs none)"
        )


def _stopped_by_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():  # asked twice: whoever waits does not want to wait any longer
            os._exit(1)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping
