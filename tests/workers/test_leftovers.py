"""Which files nobody needs any more, by the rows of their jobs; what is being made is never touched."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from service.artifacts import Artifacts, Unit
from service.db import Database, now
from service.embeddings.loaded_models import STORED
from service.errors import Unavailable
from service.ids import new_id
from service.jobs.lifecycle import cancel, release, succeed
from service.models.operations import add_version
from service.resources import DEFAULT_PROJECT, Resources
from service.tables import Dataset, EncoderRow, Job
from tests.service.jobs.job_rows import DIM, claimed, let_lease_expire, new_job, new_model
from workers.leftovers import forget_leftovers, tidy
from workers.sweep import sweep

WEEK = 7 * 86_400


def stored(resources: Resources) -> set[str]:
    return {unit.key for unit in resources.artifacts.units()}


def made_by(resources: Resources, job_id: str, token: int) -> set[str]:
    """What an attempt at a training leaves when it is killed at its end: head, tuned encoder, workspace, scratch."""
    resources.artifacts.write(f"heads/{job_id}/{token}", {"head.safetensors": b"h"})
    resources.artifacts.write(f"encoders/{job_id}/{token}", {"model.safetensors": b"e"})
    (resources.artifacts.workspace(job_id, token).folder / "state").write_bytes(b"s")
    scratch = files(resources) / "scratch" / f"{job_id}-{token}.abc"
    scratch.mkdir()
    return {f"heads/{job_id}/{token}", f"encoders/{job_id}/{token}", f"work/{job_id}/{token}", f"scratch/{scratch.name}"}


def files(resources: Resources) -> Path:
    return resources.settings.data_dir / "files"


def upload(resources: Resources, key: str, *, age: float = 0.0) -> str:
    path = files(resources) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"rows")
    os.utime(path, (time.time() - age,) * 2)
    return key


def test_what_a_running_attempt_has_made_is_kept_and_what_earlier_ones_made_is_removed(resources: Resources) -> None:
    job_id = new_job(resources.database, "train")
    first = claimed(resources.database, job_id)
    before = made_by(resources, job_id, first.token)
    let_lease_expire(resources.database, job_id)
    second = claimed(resources.database, job_id)
    mine = made_by(resources, job_id, second.token)  # whose workspace is what the first one had in its own

    removed = tidy(resources)

    assert set(removed) == before - {f"work/{job_id}/{first.token}"}
    assert stored(resources) == mine


def test_a_job_that_waits_keeps_its_work_and_nothing_else(resources: Resources) -> None:
    job_id = new_job(resources.database, "train")
    mine = claimed(resources.database, job_id)
    made_by(resources, job_id, mine.token)
    with resources.database.write() as session:
        release(session, mine)

    tidy(resources)

    assert stored(resources) == {f"work/{job_id}/{mine.token}"}


@pytest.mark.parametrize("end", ["cancelled", "succeeded without a version", "row is gone"])
def test_of_a_job_that_has_ended_nothing_stays_that_no_row_knows(resources: Resources, end: str) -> None:
    job_id = new_job(resources.database, "train")
    mine = claimed(resources.database, job_id)
    made_by(resources, job_id, mine.token)
    with resources.database.write() as session:
        match end:
            case "cancelled":
                cancel(session, session.get_one(Job, job_id))
            case "succeeded without a version":
                succeed(session, mine, {})
            case _:
                session.delete(session.get_one(Job, job_id))

    tidy(resources)

    assert stored(resources) == set()


def test_versions_tuned_encoders_and_datasets_keep_their_files(resources: Resources) -> None:
    database = resources.database
    model_id = new_model(database)
    job_id = new_job(database, "train", model_id=model_id)
    mine = claimed(database, job_id)
    made_by(resources, job_id, mine.token)
    head, encoder, rows = f"heads/{job_id}/{mine.token}", f"encoders/{job_id}/{mine.token}", "datasets/ds_1.jsonl"
    upload(resources, rows, age=WEEK)
    tuned = EncoderRow(
        id=new_id("enc"), project_id=DEFAULT_PROJECT, name="tuned", source=f"{STORED}{encoder}", dim=DIM, prompts={},
        max_length=8, fingerprint="1" * 64, created_at=now(),
    )  # fmt: skip
    dataset = Dataset(
        id=new_id("ds"), project_id=DEFAULT_PROJECT, kind="pairs", sha256="2" * 64, columns={}, columns_sha256="3" * 64, rows=1,
        size_bytes=4, report={}, artifact_key=rows, created_at=now(),
    )  # fmt: skip
    with database.write() as session:
        facts: dict[str, Any] = {"manifest": {"dim": DIM}, "scores": {}, "verdict": {}}
        add_version(session, model_id, job_id=job_id, artifact_key=head, strength=1.0, **facts)
        session.add_all([tuned, dataset])
        succeed(session, mine, {})

    tidy(resources, alone=True)

    assert stored(resources) == {head, encoder, rows}


def test_an_upload_that_is_under_way_is_kept_until_it_cannot_be_any_more(resources: Resources) -> None:
    young = upload(resources, "datasets/ds_young.jsonl", age=3600)
    old = upload(resources, "datasets/ds_old.jsonl", age=7 * 3600)
    with resources.artifacts.scratch() as folder:
        (folder / "half").write_bytes(b"h")
        assert tidy(resources) == [old]
        assert stored(resources) == {young, f"scratch/{folder.name}"}


def test_a_process_that_is_alone_removes_uploads_of_any_age(resources: Resources) -> None:
    upload(resources, "datasets/ds_young.jsonl")
    upload(resources, "scratch/tmp_young/half")

    tidy(resources, alone=True)

    assert stored(resources) == set()


def test_what_somebody_else_put_there_is_left_alone(resources: Resources) -> None:
    foreign = {upload(resources, key, age=WEEK) for key in ("README.txt", "backups/heads/old", "lost+found/1")}

    assert tidy(resources, alone=True) == []

    assert stored(resources) == foreign


class Slow:
    """Files that are listed while something happens."""

    def __init__(self, artifacts: Artifacts, happens: Any) -> None:
        self._artifacts = artifacts
        self._happens = happens

    def __getattr__(self, method: str) -> Any:
        return getattr(self._artifacts, method)

    def units(self, below: str = "") -> Iterator[Unit]:
        yield from self._artifacts.units(below)
        self._happens()


def test_what_is_registered_while_the_files_are_listed_is_kept(resources: Resources) -> None:
    """The rows are read after the list: the other way round, this version would lose its files."""
    database = resources.database
    model_id = new_model(database)
    job_id = new_job(database, "train", model_id=model_id)
    mine = claimed(database, job_id)
    key = f"heads/{job_id}/{mine.token}"
    resources.artifacts.write(key, {"head.safetensors": b"h"})

    def register() -> None:
        with database.write() as session:
            facts: dict[str, Any] = {"manifest": {"dim": DIM}, "scores": {}, "verdict": {}}
            add_version(session, model_id, job_id=job_id, artifact_key=key, strength=1.0, **facts)
            succeed(session, mine, {})

    tidy(replace(resources, artifacts=cast("Artifacts", Slow(resources.artifacts, register))))

    assert stored(resources) == {key}


def test_after_an_attempt_only_its_own_job_is_tidied(resources: Resources) -> None:
    job_id, other = (new_job(resources.database, "train") for _ in range(2))
    mine = claimed(resources.database, job_id)
    made_by(resources, job_id, mine.token)
    others = made_by(resources, other, 1)
    with resources.database.write() as session:
        cancel(session, session.get_one(Job, job_id))
        cancel(session, session.get_one(Job, other))

    forget_leftovers(resources, job_id)

    assert stored(resources) == others | {f"scratch/{job_id}-{mine.token}.abc"}


class Away:
    """Files that do not answer."""

    def units(self, below: str = "") -> Iterator[Unit]:
        raise Unavailable("the bucket does not answer")

    def delete(self, key: str) -> None:
        raise Unavailable("the bucket does not answer")


class CannotDelete(Slow):
    def delete(self, key: str) -> None:
        raise Unavailable("the bucket does not answer")


@pytest.mark.parametrize("away", ["files", "files when deleting", "database"])
def test_an_outage_leaves_the_rest_for_the_next_time(resources: Resources, away: str) -> None:
    job_id = new_job(resources.database, "train")
    with resources.database.write() as session:
        cancel(session, session.get_one(Job, job_id))
    left = made_by(resources, job_id, 1)
    match away:
        case "files":
            broken = replace(resources, artifacts=cast("Artifacts", Away()))
        case "files when deleting":
            broken = replace(resources, artifacts=cast("Artifacts", CannotDelete(resources.artifacts, lambda: None)))
        case _:
            broken = replace(resources, database=cast("Database", NoDatabase()))

    forget_leftovers(broken, job_id)  # what the job did is done: nobody is told of this
    with pytest.raises(Unavailable):
        tidy(broken)

    assert stored(resources) == left
    sweep(resources)
    assert stored(resources) == set()


class NoDatabase:
    """A database that does not answer."""

    @contextmanager
    def read(self) -> Iterator[Any]:
        raise Unavailable("the database does not answer")
        yield
