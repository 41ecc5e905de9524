"""The faults of the chaos benchmark, and the list of the boundaries of commits that are still to be visited."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.chaos_hook import ARMED, KILLS, PASSED
from benchmarks.chaos_processes import Installation, Process, children
from service.jobs.lifecycle import LEASE
from service.queue import CeleryQueue, make_celery

Boundary = tuple[str, str, str, str]
"""Kind of the job, role of the process, place of the commit, and `before` or `after` it."""

_FIND_TRAINER_SECONDS = 6.0
_PAUSE_SECONDS = LEASE.total_seconds() + 3.0
_OUTAGE_SECONDS = (1.0, 5.0)
_NEW = 0.75  # of the kills at boundaries: some boundaries are met so rarely that waiting for them alone would be peace


@dataclass(frozen=True)
class Outage:
    """A time in which something did not answer: the database, the broker (or it forgot what it held), or a stopped worker."""

    what: str
    start: float
    end: float


@dataclass(frozen=True)
class Kill:
    """A SIGKILL. victim: worker (with its trainers) or trainer; boundary: None at a random moment."""

    time: float
    victim: str
    pid: int
    boundary: Boundary | None


@dataclass
class Faults:
    """Does them, one at a time, and keeps account."""

    installation: Installation
    rng: random.Random
    kills: list[Kill] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)

    def next(self) -> str:
        """Do the next fault: all kinds in a random order, and then all again. Gives its name, or why nothing was done."""
        kinds: dict[str, Callable[[], bool]] = {
            "worker killed": self._kill_worker,
            "trainer killed": self._kill_trainer,
            "worker stopped past its lease": self._pause_worker,
            "messages sent twice": self._repeat_messages,
            "messages dropped": self._drop_messages,
            "broker restarted empty": self._restart_broker,
            "database away": self._stop_database,
            "Qdrant hangs": self._pause_qdrant,
            "Qdrant restarted": self._restart_qdrant,
        }
        self._order = self._order or self.rng.sample(sorted(kinds), len(kinds))
        kind = self._order.pop()
        if not kinds[kind]():
            self._order.insert(0, kind)
            return f"{kind}: there was none"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return kind

    def kill_training_worker(self) -> None:
        """Kill a worker as soon as it trains."""
        worker = self._worker_with_trainer()
        if worker is not None:
            self._kill(worker)

    def _kill_worker(self) -> bool:
        worker = self._worker_with_trainer() or self.rng.choice(self.installation.workers)
        time.sleep(self.rng.uniform(0.0, 1.5))
        if worker.code() is not None:
            return False
        self._kill(worker)
        return True

    def _kill(self, worker: Process) -> None:
        self.kills.append(Kill(time.time(), "worker", worker.pid, None))
        worker.send(signal.SIGKILL)

    def _kill_trainer(self) -> bool:
        worker = self._worker_with_trainer()
        time.sleep(self.rng.uniform(0.0, 1.5))
        for pid in [] if worker is None else children(worker.pid):
            self.kills.append(Kill(time.time(), "trainer", pid, None))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return True
        return False

    def _pause_worker(self) -> bool:
        """The worker and its trainers sleep, and wake up when their job is another's."""
        worker = self._worker_with_trainer()
        if worker is None:
            return False
        pids = [worker.pid, *children(worker.pid)]
        start = time.time()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(_PAUSE_SECONDS)
        self.outages.append(Outage("worker", start, time.time()))
        return True

    def _repeat_messages(self) -> bool:
        """The newest jobs, ended or not, are told of twice more."""
        jobs = self.installation.rows("SELECT id, kind FROM jobs ORDER BY created_at DESC LIMIT 4")
        queue = CeleryQueue(make_celery(self.installation.valkey.url))
        for job in jobs * 2:
            queue.send(job["id"], job["kind"])
        return True

    def _drop_messages(self) -> bool:
        start = time.time()
        with suppress(redis.RedisError):
            self.installation.valkey.flush()
        self.outages.append(Outage("broker", start, time.time()))
        return True

    def _restart_broker(self) -> bool:
        start = time.time()
        self.installation.valkey.kill()
        time.sleep(self.rng.uniform(*_OUTAGE_SECONDS))
        self.installation.valkey.start()
        self.outages.append(Outage("broker", start, time.time()))
        return True

    def _stop_database(self) -> bool:
        start = time.time()
        self.rng.choice([self.installation.postgres.stop, self.installation.postgres.kill])()
        time.sleep(self.rng.uniform(*_OUTAGE_SECONDS))
        self.installation.postgres.start()
        self.outages.append(Outage("database", start, time.time()))
        return True

    def _pause_qdrant(self) -> bool:
        self.installation.qdrant.send(signal.SIGSTOP)
        time.sleep(self.rng.uniform(*_OUTAGE_SECONDS))
        self.installation.qdrant.send(signal.SIGCONT)
        return True

    def _restart_qdrant(self) -> bool:
        """In order: what the stand-in acknowledged it keeps, but unlike Qdrant it may lose half a request when it is killed."""
        self.installation.qdrant.stop()
        time.sleep(self.rng.uniform(*_OUTAGE_SECONDS))
        self.installation.qdrant.start()
        return True

    def _worker_with_trainer(self) -> Process | None:
        deadline = time.monotonic() + _FIND_TRAINER_SECONDS
        while time.monotonic() < deadline:
            found = [worker for worker in self.installation.workers if worker.code() is None and children(worker.pid)]
            if found:
                return self.rng.choice(found)
            time.sleep(0.05)
        return None


class Boundaries:
    """The boundaries of commits that were passed, and those that a process was killed at."""

    def __init__(self, journal: Path, rng: random.Random) -> None:
        self._journal = journal
        self._rng = rng
        self._passed: list[dict[str, Any]] = []
        self._seen: set[Boundary] = set()
        self._read_bytes = 0

    def passed(self) -> list[dict[str, Any]]:
        """Every boundary that was passed: a row of the hook each."""
        path = self._journal / PASSED
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(self._read_bytes)
                lines = [line for line in stream.read().splitlines(keepends=True) if line.endswith(b"\n")]
            new = [json.loads(line) for line in lines]
            self._read_bytes += sum(len(line) for line in lines)
            self._passed += new
            # Where there is one side of a commit there is the other.
            self._seen |= {boundary_of({**row, "when": when}) for row in new for when in ("before", "after")}
        return self._passed

    def kills(self) -> list[Kill]:
        """The kills at boundaries."""
        path = self._journal / KILLS
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [Kill(row["time"], row["victim"], row["victim_pid"], boundary_of(row)) for row in rows]

    def seen(self) -> set[Boundary]:
        """All that are known."""
        self.passed()
        return self._seen

    def visited(self) -> set[Boundary]:
        """Those that a process was killed at."""
        return {kill.boundary for kill in self.kills() if kill.boundary is not None}

    def arm(self) -> None:
        """Let the next process end that meets a boundary in a training, and the next that meets one elsewhere.

        Mostly one that was not visited yet, of the kind of jobs that has the most of them. What is armed already stays so.
        """
        seen, visited = sorted(self.seen()), self.visited()
        for group in ("train", "other"):
            target = self._journal / ARMED.format(group)
            mine = [boundary for boundary in seen if (boundary[0] == "train") == (group == "train")]
            if target.exists() or not mine:
                continue
            left = Counter(boundary[0] for boundary in mine if boundary not in visited)
            new = [boundary for boundary in mine if boundary not in visited and left[boundary[0]] == max(left.values())]
            chosen = new if new and self._rng.random() < _NEW else [self._rng.choice(mine)]
            made = self._journal / "arming"
            made.write_text(json.dumps({"boundaries": chosen, "victim": self._rng.choice(["worker", "trainer"])}))
            made.rename(target)

    def disarm(self) -> None:
        """Let all processes live."""
        for path in self._journal.glob(ARMED.format("*")):
            path.unlink(missing_ok=True)


def boundary_of(row: dict[str, Any]) -> Boundary:
    """The boundary in a row of the hook."""
    return row["kind"], row["role"], row["place"], row["when"]
