"""What keeps the service going whatever is lost: messages are sent again, and what was half done is finished or removed.

Any number of processes may sweep at once.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

import structlog

from service.collections.operations import delete_collection
from service.collections.queries import unfinished_deletions
from service.errors import ServiceError
from service.jobs.lifecycle import LEASE
from service.jobs.queueing import wake_waiting
from service.resources import Resources
from workers.leftovers import tidy

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# With a lease of 9 s a dead worker's job is given away after 11 s.
EVERY_SECONDS = 2.0
_TIDY_EVERY_SECONDS = 60.0


def sweep(resources: Resources) -> None:
    """Wake workers up for jobs whose messages were lost or whose worker died; finish deletions; remove what is left over."""
    wake_waiting(resources.database, resources.queue)
    finish(resources)


def finish(resources: Resources, *, alone: bool = False) -> None:
    """Finish the deletions of collections that were interrupted, and remove files that no row knows.

    alone: no other process uses the files.
    """
    with resources.database.read() as session:
        deleting = unfinished_deletions(session)
    for collection_id in deleting:
        _attempt(partial(delete_collection, resources.database, resources.vectors, collection_id))
    tidy(resources, alone=alone)


def sweep_until(stopping: threading.Event, resources: Resources) -> None:
    """Sweep now and then until the event is set.

    After an outage the leases tell nothing for a while: nobody could renew them, and those who work shall have time to.
    """
    next_tidy = time.monotonic() + _TIDY_EVERY_SECONDS
    leases_tell_from = 0.0
    while not stopping.wait(EVERY_SECONDS):
        wake = partial(wake_waiting, resources.database, resources.queue, leases_tell=time.monotonic() >= leases_tell_from)
        if not _attempt(wake):
            leases_tell_from = time.monotonic() + LEASE.total_seconds()
        if time.monotonic() > next_tidy:
            next_tidy = time.monotonic() + _TIDY_EVERY_SECONDS
            _attempt(lambda: finish(resources))


def _attempt(action: Callable[[], object]) -> bool:
    """Do it; what fails is tried again the next time, and keeps nothing else waiting: who sweeps must go on. False: it failed."""
    try:
        action()
        return True
    except ServiceError as error:
        log.warning("sweep.failed", reason=error.message)
    except Exception:
        log.exception("sweep.crashed")
    return False
