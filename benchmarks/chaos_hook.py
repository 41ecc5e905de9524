"""Inside the workers and trainers of the chaos benchmark: notes every commit, and kills its own process at the one it is told.

A commit has two boundaries: `before` it nothing of the transaction is kept, `after` it everything is, and nobody was told. Which
commit it is, is named by the lines of `workers` that lead to it. Python imports this at its start, through a `sitecustomize` that
`chaos_processes` puts on PYTHONPATH; the product knows nothing of it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

JOURNAL = "CHAOS_JOURNAL"  # the variable that names the folder of these files
PASSED = "passed.jsonl"  # every boundary that was passed
KILLS = "kills.jsonl"  # the kills that were done here
ARMED = "armed-{}.json"  # boundaries to kill at, and whom; gone when one of them was met

# The last functions on the way to a commit say which it is; these lead to all of them and tell nothing.
_STEPS = 3
_UNTOLD = frozenset({"<lambda>", "patiently", "run_by_id", "run_here"})


def install() -> None:
    """Watch this process's commits, if it is a worker or a trainer of the benchmark; end with the benchmark."""
    if "cli.trainer" not in sys.orig_argv:  # a trainer must end with its worker by itself
        threading.Thread(target=_end_with, args=[os.getppid()], name="chaos", daemon=True).start()
    journal = os.environ.get(JOURNAL)
    if journal is not None:
        watch = _Watch(Path(journal), role="trainer" if "cli.trainer" in sys.orig_argv else "worker")
        event.listen(Engine, "commit", watch.before)
        event.listen(Session, "after_commit", watch.after)


class _Watch:
    """Gets SQLAlchemy's events. The one before a commit knows where it stands; the one after it comes in the same thread."""

    def __init__(self, journal: Path, *, role: str) -> None:
        self._journal = journal
        self._role = role
        self._open = threading.local()

    def before(self, _connection: object) -> None:
        self._open.place = _place(sys._getframe(1))  # noqa: SLF001 (there is no public name for it)
        self._pass("before")

    def after(self, _session: object) -> None:
        self._pass("after")
        self._open.place = None  # a SAVEPOINT's release calls this too

    def _pass(self, when: str) -> None:
        place = getattr(self._open, "place", None)
        if place is None:
            return
        passed = {"time": time.time(), "pid": os.getpid(), "role": self._role, "when": when, **place}
        _append(self._journal / PASSED, passed)
        boundary = [passed["kind"], passed["role"], passed["place"], when]
        for path in self._journal.glob(ARMED.format("*")):
            try:
                armed = json.loads(path.read_text())
                if boundary not in armed["boundaries"]:
                    continue
                path.unlink()
            except FileNotFoundError:  # another thread or process is just being killed for it
                continue
            self._kill(passed, to_worker=armed["victim"] == "worker")

    def _kill(self, passed: dict[str, Any], *, to_worker: bool) -> None:
        """to_worker: where this is a trainer, the worker that started it is killed with it."""
        victims = [os.getppid(), os.getpid()] if to_worker and self._role == "trainer" else [os.getpid()]
        victim = "trainer" if self._role == "trainer" and not to_worker else "worker"
        _append(self._journal / KILLS, {**passed, "time": time.time(), "victim": victim, "victim_pid": victims[0]})
        for pid in victims:
            os.kill(pid, signal.SIGKILL)


def _place(frame: FrameType | None) -> dict[str, Any] | None:
    """Where in `workers` the commit stands, and for which job; None elsewhere."""
    steps: list[str] = []
    claim: Any = None
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("workers."):
            if frame.f_code.co_name not in _UNTOLD:
                steps.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            claim = claim or _claim_in(frame.f_locals)
        frame = frame.f_back
    if not steps:
        return None
    job = {"kind": "none", "job_id": None, "token": None}
    if claim is not None:
        job = {"kind": claim.kind, "job_id": claim.job_id, "token": claim.token}
    return {**job, "place": " ".join(reversed(steps[:_STEPS]))}


def _claim_in(variables: Mapping[str, Any]) -> Any:
    """The claim among a function's variables. By name: importing the class would load the service into every process."""
    for value in variables.values():
        if type(value).__name__ == "Claim":
            return value
        if type(value).__name__ == "Supervision":
            return value.claim
    return None


def _append(path: Path, row: dict[str, Any]) -> None:
    """One write of one line: several processes append to the same file."""
    with path.open("ab", buffering=0) as stream:
        stream.write(json.dumps(row).encode() + b"\n")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
