"""Jobs as rows, workers as threads, queues that only remember: what the tests of the jobs' lives share."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import select, update

from service.db import Database, now
from service.errors import Unavailable
from service.ids import new_id
from service.jobs.lifecycle import Claim, check_held, claim, fail, give_up_attempt, put_back, release, renew, succeed
from service.models.operations import add_model, add_version, promote
from service.queue import QUEUES
from service.resources import DEFAULT_PROJECT
from service.tables import EncoderRow, Job, JobEvent, JobKind, Model

T = TypeVar("T")

ENCODER = "small"
DIM = 4

Write = Callable[[Any, Claim], None]

# Every way in which a worker writes.
WRITES: dict[str, Write] = {
    "renew": lambda session, mine: renew(session, mine, {"stage": "fit", "done": 1, "total": 2}),
    "succeed": lambda session, mine: succeed(session, mine, {"version": "faq@9"}),
    "fail": lambda session, mine: fail(session, mine, code="too_late", message="too late"),
    "release": release,
    "put back": lambda session, mine: put_back(session, mine, "no answer"),
    "give up": lambda session, mine: give_up_attempt(session, mine, "it crashed"),
    "check": check_held,
}


class RecordingQueue:
    """A queue that only remembers, and whether the job's row could be seen from outside when its message was sent."""

    def __init__(self, database: Database | None = None) -> None:
        self.sent: list[tuple[str, JobKind]] = []
        self.row_was_there: list[bool] = []
        self.lost = 0  # messages that were sent and are not waiting any more
        self._database = database

    def send(self, job_id: str, kind: JobKind) -> None:
        self.sent.append((job_id, kind))
        if self._database is not None:
            with self._database.read() as session:
                self.row_was_there.append(session.get(Job, job_id) is not None)

    def waiting(self, queue: str) -> int:
        return sum(QUEUES[kind] == queue for _, kind in self.sent) - self.lost

    def ping(self) -> None:
        pass


class BrokenQueue:
    """A broker that is down."""

    def send(self, job_id: str, kind: JobKind) -> None:
        raise Unavailable("the broker does not answer")

    def waiting(self, queue: str) -> int:
        raise Unavailable("the broker does not answer")

    def ping(self) -> None:
        raise Unavailable("the broker does not answer")


def new_job(database: Database, kind: JobKind = "publish", **columns: Any) -> str:
    """The id of a queued job that nobody was told of."""
    job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind=kind, created_at=now(), **{"request": {}, **columns})
    with database.write() as session:
        session.add(job)
    return job.id


def new_model(database: Database, name: str = "faq", *, versions: int = 0, live: int = 0) -> str:
    """The id of a model over an encoder without files, with so many versions after 0, of which one is live."""
    with database.write() as session:
        encoder = session.scalar(select(EncoderRow).filter_by(name=ENCODER))
        if encoder is None:
            encoder = EncoderRow(
                id=new_id("enc"), project_id=DEFAULT_PROJECT, name=ENCODER, source=ENCODER, dim=DIM, prompts={}, max_length=8,
                fingerprint="0" * 64, created_at=now(),
            )  # fmt: skip
            session.add(encoder)
            session.flush()
        model = add_model(session, DEFAULT_PROJECT, name, encoder)
    for _ in range(versions):
        job_id = new_job(database, "train", model_id=model.id)
        with database.write() as session:
            session.get_one(Job, job_id).state = "succeeded"
            key = f"heads/{job_id}/1"
            manifest = {"dim": DIM, "query_only": False}
            add_version(
                session, model.id, job_id=job_id, artifact_key=key, strength=1.0, manifest=manifest, scores={}, verdict={}
            )
    if live:
        with database.write() as session:
            promote(session, RecordingQueue(), session.get_one(Model, model.id), live, force=True)
    return model.id


def claimed(database: Database, job_id: str) -> Claim:
    """The job, claimed."""
    with database.write() as session:
        mine = claim(session, job_id)
    assert mine is not None
    return mine


def look(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job_id)


def facts(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.columns}


def messages(database: Database, job_id: str) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(JobEvent.message).filter_by(job_id=job_id).order_by(JobEvent.number)))


def let_lease_expire(database: Database, job_id: str) -> None:
    set_columns(database, job_id, lease_expires_at=now() - timedelta(seconds=1))


def set_columns(database: Database, job_id: str, **values: Any) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def wait_until(holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Return when it holds."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError(f"it does not hold after {seconds} s")


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Run all actions in threads that start together; gives what they gave, and errors come out here."""
    together = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        together.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as threads:
        return [started.result() for started in [threads.submit(run, action) for action in actions]]


def waits_for_a_lock(database: Database) -> bool:
    """Whether a transaction of this PostgreSQL database waits for another."""
    with database.read() as session:
        found = session.connection().exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(found.scalar_one())
