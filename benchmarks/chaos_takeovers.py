"""How long it took until the jobs of killed workers were claimed again."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos_facts import Row
from benchmarks.chaos_faults import Kill, Outage

_ENDS = ("succeeded", "failed", "cancelled", "put back", "taken over", "started")


@dataclass(frozen=True)
class Takeover:
    """A job that was running in a worker when that was killed.

    disturbed: until it was claimed again the database, the broker or the other worker were away, or a worker was killed. Its
    message may have been lost with them; that a message is lost is noticed after 10 seconds.
    """

    job_id: str
    seconds: float
    disturbed: bool


def takeovers(
    kills: Sequence[Kill], passed: Iterable[dict[str, Any]], events: Iterable[Row], outages: Sequence[Outage]
) -> list[Takeover]:
    """One for each job that a killed worker was running, unless it was cancelled before it was claimed again.

    passed: the boundaries that the hook noted, which tell what worker had which job. events: rows, by number within a job.
    """
    told: dict[str, list[Row]] = defaultdict(list)
    for event in events:
        told[event["job_id"]].append(event)
    claimed: dict[int, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in passed:  # the first thing that a worker commits of an attempt is its claim
        if row["role"] == "worker" and row["job_id"] is not None and row["when"] == "after":
            claimed[row["pid"]].setdefault((row["job_id"], row["token"]), row["time"])
    found = []
    for kill in kills:
        if kill.victim != "worker":
            continue
        for (job_id, _), since in claimed[kill.pid].items():
            again = _claimed_again(told[job_id], since=since, killed=kill.time)
            if again is not None:
                away = any(outage.start < again and outage.end > kill.time for outage in outages)
                killed = any(kill.time < other.time < again for other in kills if other.victim == "worker")
                found.append(Takeover(job_id, again - kill.time, disturbed=away or killed))
    return found


def _claimed_again(events: list[Row], *, since: float, killed: float) -> float | None:
    """When a job was claimed again; None where the attempt of this claim had ended before the kill, or was cancelled."""
    started = [
        event["number"]
        for event in events
        if event["message"].startswith("started") and event["created_at"].timestamp() <= since <= killed
    ]
    if not started:
        return None
    following = [event for event in events if event["number"] > started[-1] and event["message"].startswith(_ENDS)]
    if not following or following[0]["created_at"].timestamp() <= killed:
        return None
    is_claim = following[0]["message"].startswith(("taken over", "started"))
    return float(following[0]["created_at"].timestamp()) if is_claim else None
