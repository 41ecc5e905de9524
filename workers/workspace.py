"""Keeping a job's checkpoints where another machine finds them."""

import time
from collections.abc import Callable

import structlog

from service.artifacts import Workspace
from service.errors import StorageFull, Unavailable
from workers.supervision import Supervision

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_SAVE_SECONDS = 15.0


def saving(work: Workspace, supervise: Supervision) -> Callable[[str, int, int], None]:
    """The supervision, as a callback that also saves the workspace now and then."""
    saved = time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal saved
        supervise(stage, done, total)
        if time.monotonic() - saved >= _SAVE_SECONDS:
            try:
                work.save()
            except (Unavailable, StorageFull) as error:  # perhaps it is saved the next time; the work itself needs it not
                log.warning("workspace.not_saved", job_id=supervise.claim.job_id, reason=error.message)
            saved = time.monotonic()

    return tell
