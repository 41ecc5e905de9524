"""What is told of models is what reading them row by row would find; what may be deleted is what no roll back returns to."""

import random
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.artifacts import Artifacts, open_artifacts
from service.db import Database
from service.encoders.queries import facts_of
from service.errors import Conflict
from service.models.deletion import delete_model, delete_version
from service.models.operations import add_version, promote, roll_back
from service.models.queries import describe_models, get_version, list_promotions, version_facts, version_numbers
from service.resources import DEFAULT_PROJECT
from service.settings import Settings
from service.tables import EncoderRow, Model, Version
from tests.service.jobs.job_rows import DIM, RecordingQueue, new_job, new_model


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(Settings(data_dir=tmp_path / "files"))


def add_wide_version(database: Database, model_id: str, dim: int) -> int:
    """The number of a version whose head makes vectors of `dim` numbers."""
    job_id = new_job(database, "train", model_id=model_id)
    with database.write() as session:
        key = f"heads/{job_id}/1"
        manifest = {"dim": DIM, "out_dim": dim, "query_only": dim % 2 == 1}
        return add_version(
            session, model_id, job_id=job_id, artifact_key=key, strength=1.0, manifest=manifest, scores={}, verdict=None
        ).number


def described_one_by_one(session: Session) -> list[tuple[str, str, list[int], int]]:
    """Name, encoder, numbers and dimension of every model, each by a look of its own at whole rows."""
    found = []
    for model in sorted(session.scalars(select(Model)), key=lambda model: model.name):
        versions = [version for version in session.scalars(select(Version)) if version.model_id == model.id]
        encoder = session.get_one(EncoderRow, model.encoder_id)
        live = next(version for version in versions if version.number == model.live_version)
        numbers = sorted(version.number for version in versions)
        found.append((model.name, encoder.name, numbers, version_facts(live, model, encoder).dim))
    return found


def test_models_are_described_as_their_rows_say_one_by_one(database: Database) -> None:
    rng = random.Random(0)
    for name in ("faq", "a-long-one", "Zebra", "fresh"):
        model_id = new_model(database, name, versions=0 if name == "fresh" else 3)
        wide = [add_wide_version(database, model_id, rng.randint(DIM, 20)) for _ in range(0 if name == "fresh" else 4)]
        with database.write() as session:
            session.execute(delete(Version).where(Version.model_id == model_id, Version.number == 2))
            if wide and name != "faq":
                promote(session, RecordingQueue(), session.get_one(Model, model_id), rng.choice(wide), force=True)

    with database.read() as session:
        described = [
            (one.model.name, one.encoder.name, one.numbers, one.dim) for one in describe_models(session, DEFAULT_PROJECT)
        ]
        expected = described_one_by_one(session)
        alone = [describe_models(session, DEFAULT_PROJECT, name=name)[0].numbers for name, *_ in expected]
        nobody = describe_models(session, DEFAULT_PROJECT, name="nobody"), describe_models(session, "another-project")

    assert sorted(described) == sorted(expected)  # how names in small and capital letters sort is the database's matter
    assert len({dim for *_, dim in expected}) > 1
    assert alone == [numbers for _, _, numbers, _ in expected]
    assert nobody == ([], [])


def test_the_column_says_of_every_version_what_its_manifest_says(database: Database) -> None:
    model_id = new_model(database, versions=1)
    for dim in (6, 7, 8, 9):
        add_wide_version(database, model_id, dim)

    with database.read() as session:
        model = session.get_one(Model, model_id)
        encoder = session.get_one(EncoderRow, model.encoder_id)
        versions = [get_version(session, model, number) for number in version_numbers(session, model_id)]
        assert facts_of(encoder).dim == DIM
        assert [version.query_only for version in versions] == [False, False, False, True, False, True]
        assert all(version.query_only == version_facts(version, model, encoder).query_only for version in versions)


def test_a_version_may_be_deleted_if_no_chain_of_roll_backs_returns_to_it(database: Database, artifacts: Artifacts) -> None:
    rng = random.Random(1)
    last = 9
    model_id = new_model(database, versions=last)
    before = [0]  # the twin: what a roll back returns to is a stack
    for _ in range(20):
        with database.write() as session:
            model = session.get_one(Model, model_id)
            number = rng.randint(1, last - 2)
            if len(before) > 1 and rng.random() < 0.55:
                roll_back(session, RecordingQueue(), model)
                before.pop()
            elif number != model.live_version:
                promote(session, RecordingQueue(), model, number, force=True)
                before.append(number)

    kept = set()
    for number in range(1, last + 1):
        try:
            with database.write() as session:
                delete_version(session, artifacts, session.get_one(Model, model_id), number)
        except Conflict:
            kept.add(number)

    with database.read() as session:
        assert list(version_numbers(session, model_id)) == sorted({0, *kept})
        assert len(list_promotions(session, model_id)) > len(before)
    assert kept == set(before) - {0}
    assert 0 < len(kept) < last - 2


def test_a_deleted_models_files_go_with_it_and_no_others(database: Database, artifacts: Artifacts) -> None:
    keys = {}
    for name in ("faq", "other"):
        model_id = new_model(database, name, versions=2)
        with database.read() as session:
            found = session.scalars(select(Version.artifact_key).filter_by(model_id=model_id))
            keys[name] = {key for key in found if key is not None}
        for key in keys[name]:
            artifacts.write(key, {"head.safetensors": b"weights"})

    with database.write() as session:
        delete_model(session, artifacts, session.scalars(select(Model).filter_by(name="faq")).one())

    assert {unit.key for unit in artifacts.units()} == keys["other"]
