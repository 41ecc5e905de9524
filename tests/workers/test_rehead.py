"""A re-head that was killed goes on where it was; what it writes follows from the stored base vectors alone."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from benchmarks.scale_collection import PHYSICAL, Workplace, a_head, workplace
from service.jobs.lifecycle import take_over
from service.resources import open_resources
from service.settings import Settings
from service.tables import CollectionVector, Job
from service.vectors.edge import EdgeEngine
from service.vectors.edge_collection import PAGE
from service.vectors.engine import Matrix
from tests.service.jobs.job_rows import RecordingQueue
from workers import publish
from workers.tasks import run_here, run_job

DIM = 16
POINTS = 2 * PAGE + 1500

KILLED = f"""
import os, sys
from pathlib import Path
from benchmarks.scale_collection import workplace
from service.vectors.edge import EdgeEngine

with workplace(Path(sys.argv[1]), dim={DIM}) as place:
    place.publish({POINTS})
    version, write, written = place.add_version(), EdgeEngine.set_vectors, []

    def killed_before_the_third(engine, collection, name, ids, matrix):
        if len(written) == 2:
            os.kill(os.getpid(), 9)
        written.append(len(ids))
        write(engine, collection, name, ids, matrix)

    EdgeEngine.set_vectors = killed_before_the_third
    place.rehead(version)
"""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all points that vectors are set of from now on."""
    ids_written: list[str] = []
    write = EdgeEngine.set_vectors

    def noted(engine: EdgeEngine, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        ids_written.extend(ids)
        write(engine, collection, name, ids, matrix)

    monkeypatch.setattr(EdgeEngine, "set_vectors", noted)
    return ids_written


def stored(engine: EdgeEngine, name: str) -> tuple[list[str], Matrix]:
    pages = list(engine.scroll(PHYSICAL, name))
    return [i for page in pages for i in page.ids], np.vstack([page.matrix for page in pages])


def assert_is_head_of_base(engine: EdgeEngine, name: str, *, seed: int) -> None:
    head = a_head(DIM, seed=seed)
    assert head.offset is not None
    ids, base = stored(engine, "base")
    y = base.astype(np.float64) @ head.matrix.T + head.offset
    assert stored(engine, name)[0] == ids
    np.testing.assert_allclose(stored(engine, name)[1], y / np.linalg.norm(y, axis=1, keepdims=True), atol=1e-6, rtol=0)


def test_after_a_kill_only_the_points_that_lack_the_vectors_are_written(tmp_path: Path, written: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resources = open_resources(Settings(data_dir=tmp_path), RecordingQueue())  # its encoder has no files: nobody may ask for it
    engine = resources.vectors
    assert isinstance(engine, EdgeEngine)
    assert engine.count(PHYSICAL, having="v1") == 2 * PAGE
    lacking = set(stored(engine, "base")[0]) - set(stored(engine, "v1")[0])

    with resources.database.write() as session:
        take_over(session)
        job_id = session.scalars(select(Job.id).where(Job.kind == "rehead")).one()
    run_job(resources, job_id, threading.Event(), run_here)

    with resources.database.read() as session:
        job = session.get_one(Job, job_id)
    assert (job.state, job.attempts) == ("succeeded", 2)
    assert sorted(written) == sorted(lacking)
    assert len(written) == 1500
    assert_is_head_of_base(engine, "v1", seed=0)
    resources.close()


def test_name_that_was_to_go_and_is_live_again_gets_what_was_written_meanwhile(
    tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with workplace(tmp_path, dim=DIM) as place:
        place.publish(300)
        for _ in range(2):
            place.rehead(place.add_version())
        with place.resources.database.write() as session:
            session.scalars(select(CollectionVector).where(CollectionVector.version == 1)).one().state = "dropping"
        with monkeypatch.context() as killed:
            killed.setattr(publish, "_drop_old", lambda *_: None)  # a job that was killed right before it
            place.publish(400)
        before = having(place)
        written.clear()

        place.rehead(1)

        assert before == {"base": 400, "v1": 300, "v2": 400}
        assert having(place) == {"base": 400, "v1": 400, "v2": 400}
        assert len(written) == 100
        assert isinstance(place.vectors, EdgeEngine)
        assert_is_head_of_base(place.vectors, "v1", seed=0)


def having(place: Workplace) -> dict[str, int]:
    return {name: place.vectors.count(PHYSICAL, having=name) for name in sorted(place.vectors.vector_names(PHYSICAL))}


def test_items_come_in_order_and_an_error_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError

    ahead = publish._one_ahead(items())

    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    assert list(publish._one_ahead(iter([]))) == []


def test_thread_that_works_ahead_is_gone_when_nobody_wants_more() -> None:
    before = threading.active_count()
    ahead = publish._one_ahead(iter(range(1000)))

    assert next(ahead) == 0
    ahead.close()

    assert threading.active_count() == before
