"""The rounds of the chaos benchmark: work is asked for, and things happen while it is done."""

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos_faults import Boundaries, Faults
from benchmarks.chaos_invariants import TERMINAL
from benchmarks.chaos_load import Load
from benchmarks.chaos_processes import Installation, children

_ROUND_SECONDS = 6.0
_KILLS_A_ROUND = 2  # or one more, when two processes meet their boundaries at once
_SAFE_ATTEMPTS = 3  # of five: a job that was killed so often is left alone
_SETTLE_SECONDS = 180.0  # without any job ending meanwhile

_TRAININGS: list[dict[str, Any]] = [
    {"publish": True, "promote": "always"},
    {"publish": True, "promote": "always"},
    {"publish": False, "promote": "always"},
    {"model": "other", "publish": False, "promote": "if_better"},
]


@dataclass
class Chaos:
    """One run."""

    installation: Installation
    load: Load
    faults: Faults
    boundaries: Boundaries
    rng: random.Random

    def warm_up(self) -> None:
        """One training with all that follows, in peace: from it the first boundaries are known."""
        self.load.upload()
        self.load.train(0)
        self.settle()

    def round(self, number: int) -> str:
        """Ask for work, and let things happen while it is done. Gives what happened."""
        self._ask(number)
        deadline = time.monotonic() + _ROUND_SECONDS
        before = len(self.boundaries.kills())
        self._arm(before)
        time.sleep(self.rng.uniform(0.2, 2.0))
        fault = self.faults.next() if self._is_safe() else "no other fault: a job has few attempts left"
        while time.monotonic() < deadline:
            self._arm(before)
            time.sleep(0.2)
        kills = self.boundaries.kills()[before:]
        return "; ".join([fault, *(f"{kill.victim} killed {' '.join(kill.boundary or ())}" for kill in kills)])

    def last_kill(self) -> None:
        """A worker is killed while it trains, and nothing else happens until its job is another's."""
        self.settle()
        self.load.train(0, publish=False)
        self.faults.kill_training_worker()

    def settle(self) -> None:
        """Leave everything in peace until all jobs have ended and no trainer runs, or nothing ends any more."""
        self.boundaries.disarm()
        deadline, unfinished = time.monotonic() + _SETTLE_SECONDS, -1
        while time.monotonic() < deadline:
            left = self._unfinished().total()
            if left == 0 and not any(children(worker.pid) for worker in self.installation.workers):
                return
            if left != unfinished:
                deadline, unfinished = time.monotonic() + _SETTLE_SECONDS, left
            time.sleep(0.1)

    def _ask(self, number: int) -> None:
        training = self.load.train(number, **self.rng.choice(_TRAININGS))
        written = self.load.write(number)
        self.load.change()
        if self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0.0, 3.0))
            self.load.cancel(self.rng.choice([training, written]))

    def _arm(self, before: int) -> None:
        if len(self.boundaries.kills()) < before + _KILLS_A_ROUND and self._is_safe():
            self.boundaries.arm()

    def _is_safe(self) -> bool:
        return all(job["attempts"] <= _SAFE_ATTEMPTS for job in self._jobs() if job["state"] not in TERMINAL)

    def has_room(self) -> bool:
        """Wait in peace until at most one training is left; False when that does not come true.

        With two workers a job then waits for the other one's death, and not for its turn.
        """
        self.boundaries.disarm()
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            unfinished = self._unfinished()
            if unfinished["train"] <= 1 and unfinished.total() <= 5:
                return True
            time.sleep(0.1)
        return False

    def _unfinished(self) -> Counter[str]:
        return Counter(job["kind"] for job in self._jobs() if job["state"] not in TERMINAL)

    def _jobs(self) -> list[dict[str, Any]]:
        """All jobs as they are now; the load takes note of what has ended."""
        jobs = self.installation.rows("SELECT id, kind, state, attempts FROM jobs")
        self.load.settle({job["id"]: job["state"] for job in jobs})
        return jobs
