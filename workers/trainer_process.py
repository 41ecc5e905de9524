"""A job in a process of its own: its memory comes back whatever happens, and it can be killed without harm to the worker."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from service.jobs.lifecycle import Claim, LeaseLost, give_up_attempt, release
from service.resources import Resources
from workers.supervision import Stopped, Supervision

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_POLL_SECONDS = 0.1
# A stopped trainer ends at its next callback; what it was doing is safe to kill all the same.
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class TrainerProcess:
    """Runs a claimed job by a command, which gets the claim behind its other arguments (see `claim_of`).

    The command settles the job's row and exits with 0; any other end is this attempt's failure. It runs in a process group of its
    own, which is ended with it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """environment: what is added to this process's."""
        self._command = list(command)
        self._environment = {**os.environ, **environment}

    def __call__(self, resources: Resources, supervise: Supervision) -> None:
        """Wait until the process has ended. Raises LeaseLost and Stopped, when it is ended for that."""
        mine = supervise.claim
        arguments = [*self._command, str(os.getpid()), mine.job_id, mine.kind, str(mine.token), str(mine.attempts)]
        process = subprocess.Popen(arguments, env=self._environment, start_new_session=True)  # noqa: S603 (our own command)
        try:
            while process.poll() is None:
                supervise.check()
                time.sleep(_POLL_SECONDS)
        except LeaseLost:
            _end(process)
            if process.returncode != 0:
                raise
            return  # it has settled the row itself a moment ago: that is why the lease was lost
        except Stopped:
            _end(process)
            if process.returncode != 0:  # it could not put the job back itself
                supervise.patiently(lambda: _release(resources, mine))
            return
        finally:
            _end(process)
        if process.returncode != 0:
            supervise.patiently(lambda: _give_up(resources, mine, _told(process.returncode)))


def claim_of(arguments: Sequence[str]) -> Claim:
    """The claim that a trainer process got as arguments. The process ends with the worker that started it, from now on."""
    parent, job_id, kind, token, attempts = arguments
    # The kernel sends the signal when the parent dies; if it died before the call, it never will.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the worker that started this trainer is gone")
    return Claim(job_id, kind, int(token), int(attempts))  # type: ignore[arg-type]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process: asked first, then killed with all that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("trainer.killed", pid=process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(returncode: int) -> str:
    if returncode > 0:
        return f"the training process ended with exit code {returncode}; the worker's log has more"
    name = signal.Signals(-returncode).name
    hint = "; was there too little memory?" if name == "SIGKILL" else ""
    return f"the training process was ended by {name}{hint}"


def _give_up(resources: Resources, mine: Claim, failure: str) -> None:
    with resources.database.write() as session:
        give_up_attempt(session, mine, failure)


def _release(resources: Resources, mine: Claim) -> None:
    with resources.database.write() as session:
        release(session, mine)
