"""One callback between long work and everything that may stop it: cancel, takeover, shutdown. It also tells the progress."""

import threading
import time

from service.db import Database
from service.jobs.lifecycle import Claim, renew

_WRITE_EVERY_SECONDS = 0.5


class Stopped(Exception):
    """This worker is being stopped; the job goes back into the queue."""


class Supervision:
    """Called from inside the work, often. Writes to the database at most twice a second.

    Each write renews the lease and checks that the job is still ours, so a cancelled job stops within a second.
    """

    def __init__(self, database: Database, claim: Claim, stopping: threading.Event) -> None:
        self._database = database
        self._claim = claim
        self._stopping = stopping
        self._stage: str | None = None
        self._next_write = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell that `done` of `total` steps of the stage are done. Raises Stopped or LeaseLost: let them pass."""
        if self._stopping.is_set():
            raise Stopped
        moment = time.monotonic()
        if moment < self._next_write and stage == self._stage:
            return
        self._stage = stage
        self._next_write = moment + _WRITE_EVERY_SECONDS
        with self._database.write() as session:
            renew(session, self._claim, {"stage": stage, "done": done, "total": total})
