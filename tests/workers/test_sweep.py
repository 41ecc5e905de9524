"""The sweep goes on whatever happens to it, and finishes what others began."""

import threading
from dataclasses import replace
from typing import Any, cast

import pytest

from service.collections.operations import create_collection
from service.errors import Unavailable
from service.resources import DEFAULT_PROJECT, Resources
from service.tables import Collection, Job
from service.vectors.engine import VectorEngine
from tests.service.jobs.job_rows import BrokenQueue, RecordingQueue, new_job, new_model, wait_until
from workers import sweep as module
from workers.sweep import sweep, sweep_until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_TIDY_EVERY_SECONDS", 0.03)


def half_deleted(resources: Resources) -> str:
    """The id of a collection whose deletion was interrupted right at its beginning."""
    new_model(resources.database)
    row = create_collection(resources.database, resources.vectors, DEFAULT_PROJECT, "docs", model="faq", indexes={})
    with resources.database.write() as session:
        session.get_one(Collection, row.id).deleting = True
    return row.id


def is_there(resources: Resources, collection_id: str) -> bool:
    with resources.database.read() as session:
        return session.get(Collection, collection_id) is not None


def test_one_sweep_wakes_workers_finishes_deletions_and_removes_files(resources: Resources) -> None:
    waiting = new_job(resources.database, "train")
    collection_id = half_deleted(resources)
    resources.artifacts.write("heads/job_0/1", {"head": b"h"})

    sweep(resources)

    assert cast("RecordingQueue", resources.queue).sent == [(waiting, "train")]
    assert not is_there(resources, collection_id)
    assert list(resources.artifacts.units()) == []


def test_a_second_sweep_has_nothing_left_to_do(resources: Resources) -> None:
    new_job(resources.database)
    half_deleted(resources)
    sweep(resources)
    sent = list(cast("RecordingQueue", resources.queue).sent)

    sweep(resources)

    assert cast("RecordingQueue", resources.queue).sent == sent


class Returning:
    """Something that fails for a while: as an outage, then as something that nobody expected."""

    def __init__(self, plain: Any, method: str, failures: list[Exception]) -> None:
        self._plain = plain
        self._method = method
        self.failures = failures

    def __getattr__(self, method: str) -> Any:
        if method == self._method and self.failures:
            raise self.failures.pop()
        return getattr(self._plain, method)


@pytest.mark.parametrize("broken", ["queue", "vectors", "artifacts"])
def test_whatever_fails_for_a_while_the_sweep_goes_on_and_catches_up(resources: Resources, quick: None, broken: str) -> None:
    waiting = new_job(resources.database)
    collection_id = half_deleted(resources)
    resources.artifacts.write("heads/job_0/1", {"head": b"h"})
    method = {"queue": "waiting", "vectors": "drop_collection", "artifacts": "units"}[broken]
    sent = cast("RecordingQueue", resources.queue).sent
    failing = Returning(getattr(resources, broken), method, [Unavailable("no answer"), ZeroDivisionError("who knows")])
    stopping = threading.Event()
    changed: dict[str, Any] = {broken: failing}
    thread = threading.Thread(target=sweep_until, args=[stopping, replace(resources, **changed)])

    thread.start()
    wait_until(lambda: not is_there(resources, collection_id) and not list(resources.artifacts.units()))
    wait_until(lambda: not failing.failures and bool(sent))
    stopping.set()
    thread.join(5)

    assert not thread.is_alive()
    assert sent == [(waiting, "publish")]


def test_files_are_tidied_while_the_broker_is_away(resources: Resources, quick: None) -> None:
    new_job(resources.database)
    resources.artifacts.write("heads/job_0/1", {"head": b"h"})
    stopping = threading.Event()
    without_broker = replace(resources, queue=cast("Any", BrokenQueue()))
    thread = threading.Thread(target=sweep_until, args=[stopping, without_broker])

    thread.start()
    try:
        wait_until(lambda: not list(resources.artifacts.units()), seconds=2)
    finally:
        stopping.set()
        thread.join(5)


def test_sweepers_that_finish_the_same_deletion_do_not_disturb_each_other(resources: Resources) -> None:
    collection_id = half_deleted(resources)
    failed: list[Exception] = []

    def run() -> None:
        try:
            sweep(resources)
        except Exception as error:  # noqa: BLE001 (told below)
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert failed == []
    assert not is_there(resources, collection_id)
    with resources.database.read() as session:
        assert session.query(Job).count() == 0


def test_a_deletion_that_cannot_be_finished_now_is_left_and_the_next_sweep_goes_on(resources: Resources) -> None:
    collection_id = half_deleted(resources)
    away = Returning(resources.vectors, "drop_collection", [Unavailable("no answer")])

    sweep(replace(resources, vectors=cast("VectorEngine", away)))

    assert is_there(resources, collection_id)
    sweep(resources)
    assert not is_there(resources, collection_id)
