"""One callback between long work and everything that may stop it: cancel, takeover, shutdown. It also tells the progress."""

import threading
import time

from service.db import Database
from service.errors import Unavailable
from service.jobs.lifecycle import LEASE, Claim, renew

_WRITE_EVERY_SECONDS = 0.5


class Stopped(Exception):
    """This worker is being stopped; the job goes back into the queue."""


class Supervision:
    """Called from inside the work, often. Writes to the database at most twice a second.

    Each write renews the lease and checks that the job is still ours, so a cancelled job stops within a second. A database that
    does not answer is no reason to stop while the lease still runs.
    """

    def __init__(self, database: Database, claim: Claim, stopping: threading.Event) -> None:
        self._database = database
        self._claim = claim
        self._stopping = stopping
        self._stage: str | None = None
        self._next_write = 0.0
        self._lease_ends = time.monotonic() + LEASE.total_seconds()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell that `done` of `total` steps of the stage are done. Raises Stopped, LeaseLost or Unavailable: let them pass."""
        if self._stopping.is_set():
            raise Stopped
        moment = time.monotonic()
        if moment < self._next_write and stage == self._stage:
            return
        self._stage = stage
        self._next_write = moment + _WRITE_EVERY_SECONDS
        try:
            with self._database.write() as session:
                renew(session, self._claim, {"stage": stage, "done": done, "total": total})
        except Unavailable:
            if time.monotonic() >= self._lease_ends:
                raise
        else:
            self._lease_ends = moment + LEASE.total_seconds()
