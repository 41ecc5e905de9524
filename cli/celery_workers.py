"""Celery's workers in threads of this process: one a queue, each with one job at a time."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from celery.bootsteps import CLOSE
from celery.concurrency.thread import TaskPool
from celery.worker import WorkController
from kombu.asynchronous import set_event_loop

from service.queue import CeleryQueue, make_celery
from service.resources import Resources
from workers.tasks import Run, register_tasks

_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.5  # how often a loop that waits for a message looks whether it shall end
_LOOP_SECONDS = 3.0


@contextmanager
def celery_workers(
    resources: Resources, queue: CeleryQueue, stopping: threading.Event, runs: Mapping[str, Run]
) -> Iterator[None]:
    """Work on the queues inside the block: a training never keeps a publish waiting. runs: how jobs are run, by queue."""
    controllers = [_worker(resources, name, queue.name_of(name), stopping, run) for name, run in runs.items()]
    threads = [threading.Thread(target=one.start, name=one.hostname, daemon=True) for one in controllers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()  # `stop` waits for the running task, which ends at its next callback
        if resources.settings.broker_url.startswith("redis"):
            _leave_loops(controllers, threads)
        for controller in controllers:
            controller.stop()
        for thread in threads:
            thread.join(_STOP_SECONDS)


def _leave_loops(controllers: Sequence[WorkController], threads: Sequence[threading.Thread]) -> None:
    """Let the threads that read from sockets leave their loops: `stop` would close the sockets under their hands."""
    for controller in controllers:
        if getattr(controller, "consumer", None) is not None:
            controller.consumer.blueprint.state = CLOSE
    for thread in threads:
        thread.join(_LOOP_SECONDS)


def _worker(resources: Resources, name: str, queue_name: str, stopping: threading.Event, run: Run) -> WorkController:
    # An application of its own: which queues are consumed is kept in the application, not in the worker.
    celery = make_celery(resources.settings.broker_url)
    register_tasks(celery, resources, stopping, run)
    # Celery takes the process's event loop where there is one: two workers in one loop would read from each other's connections,
    # and one waits for ever. Without the one before, it makes its own.
    set_event_loop(None)
    controller = WorkController(
        app=celery,
        hostname=f"{name}@{socket.gethostname()}",
        pool_cls=_OwnThread,
        concurrency=1,
        queues=[queue_name],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="WARNING",
        ready_callback=_look_about,
    )
    # The fast path looks a task up in the application that was started last in this process, whoever received the message.
    celery.use_fast_trace_task = False
    return controller


def _look_about(consumer: Any) -> None:
    """Called with every new connection; without a timer of its own the loop may sleep for ten seconds."""
    consumer.timer.call_repeatedly(_LOOK_SECONDS, bool)


class _OwnThread(TaskPool):  # type: ignore[misc]
    """A pool of one thread in which tasks belong to this worker's application, not to whichever is the process's default."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor = ThreadPoolExecutor(max_workers=self.limit, initializer=self.app.set_current)
