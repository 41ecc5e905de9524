"""What `/metrics` tells of the jobs; read from the database when asked, so every API process tells the same."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from service.db import Database, now
from service.errors import Unavailable
from service.jobs.lifecycle import claimable
from service.queue import QUEUES
from service.tables import Job


class JobMetrics(Collector):
    """Jobs by kind and state, how long the oldest has waited for a worker, and whether the database answered."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        jobs = GaugeMetricFamily("zerogate_jobs", "Jobs by kind and state", labels=("kind", "state"))
        waiting = GaugeMetricFamily(
            "zerogate_oldest_waiting_job_seconds", "How long the oldest job of a queue could have been started", labels=("queue",)
        )
        up = GaugeMetricFamily("zerogate_database_up", "1 if the database answered this scrape")
        time = now()
        try:
            with self._database.read() as session:
                counts = session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)).all()
                since = func.min(func.coalesce(Job.available_at, Job.lease_expires_at, Job.created_at))
                oldest = session.execute(select(Job.kind, since).where(claimable(time)).group_by(Job.kind)).all()
        except Unavailable:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        for kind, state, count in counts:
            jobs.add_metric((kind, state), count)
        ages = dict.fromkeys(QUEUES.values(), 0.0)
        for kind, moment in oldest:
            ages[QUEUES[kind]] = max(ages[QUEUES[kind]], (time - moment).total_seconds())
        for queue, age in ages.items():
            waiting.add_metric((queue,), age)
        yield from (up, jobs, waiting)
