"""Between long work and everything that may stop it: cancel, takeover, shutdown. It renews the lease and tells the progress."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import structlog

from service.db import Database
from service.errors import ServiceError, Unavailable
from service.jobs.lifecycle import LEASE, Claim, LeaseLost, check_held, renew

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

_RENEW_SECONDS = LEASE.total_seconds() / 3
_TELL_SECONDS = 0.5
_RETRY_SECONDS = 1.0


class Stopped(Exception):
    """This worker is being stopped; the job goes back into the queue."""


class Supervision:
    """Called from inside the work, often and at little cost; a thread of its own writes to the database.

    The thread renews the lease at a third of it, whether the work calls or is inside one long step, and tells the progress at
    most twice a second. When it finds the job lost, the next call raises. A database that does not answer is no reason to stop:
    nobody else can take the job either.

        with Supervision(database, claim, stopping) as supervise:
            supervise("fit", 3, 100)
    """

    def __init__(self, database: Database, claim: Claim, stopping: threading.Event) -> None:
        self.claim = claim
        self._database = database
        self._stopping = stopping
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._news = threading.Event()
        self._progress: tuple[str, int, int] | None = None
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._news.set()
        self._thread.join()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell that `done` of `total` steps of the stage are done. Raises Stopped or LeaseLost: let them pass."""
        self.check()
        self._progress = (stage, done, total)
        self._news.set()

    def check(self) -> None:
        """Raise Stopped or LeaseLost if the work must end."""
        if self._lost.is_set():
            raise LeaseLost(self.claim.job_id)
        if self._stopping.is_set():
            raise Stopped

    def confirm(self) -> None:
        """Return when the job is ours for certain; before each write to what the token does not guard, the vectors.

        A process that was stopped for a while, by its machine or a debugger, wakes up in the middle of its work: then nobody has
        renewed the lease meanwhile, and it asks the database first. Raises Stopped, LeaseLost, Unavailable.
        """
        self.check()
        if time.monotonic() < self._renewed + LEASE.total_seconds():
            return
        with self._database.write() as session:
            check_held(session, self.claim)

    def patiently(self, action: Callable[[], T], *, despite: type[ServiceError] = Unavailable) -> T:
        """Do it, again and again while an outside system does not answer; what it does must bear repetition.

        despite: what else to wait out. Raises Stopped, LeaseLost, and whatever else the action raises.
        """
        while True:
            try:
                return action()
            except despite as error:
                log.warning("job.waits", job_id=self.claim.job_id, reason=error.message)
            self.check()
            time.sleep(_RETRY_SECONDS)
            self.check()

    def _keep(self) -> None:
        told = None
        tried = 0.0
        while not self._ended.is_set():
            progress, is_due = self._progress, time.monotonic() >= tried + _RENEW_SECONDS
            if progress != told or is_due:
                tried = time.monotonic()
                if not self._renew(progress):
                    return
                told = progress
                self._ended.wait(_TELL_SECONDS)
            self._news.wait(max(0.0, tried + _RENEW_SECONDS - time.monotonic()))
            self._news.clear()

    def _renew(self, progress: tuple[str, int, int] | None) -> bool:
        """False when the job is not ours any more."""
        told = None if progress is None else dict(zip(("stage", "done", "total"), progress, strict=True))
        moment = time.monotonic()
        try:
            with self._database.write() as session:
                renew(session, self.claim, told)
            self._renewed = moment
        except LeaseLost:
            self._lost.set()
            return False
        except ServiceError as error:  # it does not answer, or its disk is full
            log.warning("job.lease_not_renewed", job_id=self.claim.job_id, reason=error.message)
        return True
