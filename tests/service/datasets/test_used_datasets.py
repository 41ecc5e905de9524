"""A dataset that any part of a job's request names is in use, and no other is."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from service.datasets.queries import is_used
from service.db import Database, now
from service.jobs.operations import submit_training
from service.resources import DEFAULT_PROJECT
from service.tables import Dataset
from tests.service.jobs.job_rows import ENCODER, RecordingQueue, new_model

KINDS = {
    "trained": "pairs",
    "judging": "pairs",
    "guarding": "scored",
    "shown": "documents",
    "idle": "pairs",
    "idle-too": "documents",
}


@pytest.fixture
def names(database: Database) -> dict[str, str]:
    """The datasets' ids by name."""
    new_model(database)
    with database.write() as session:
        for name, kind in KINDS.items():
            digest = hashlib.sha256(name.encode()).hexdigest()
            facts = {"columns": {}, "rows": 1, "size_bytes": 1, "report": {}, "created_at": now()}
            digests = {"sha256": digest, "columns_sha256": digest}
            key = f"datasets/{name}.jsonl"
            session.add(
                Dataset(id=f"ds_{name}", project_id=DEFAULT_PROJECT, name=name, kind=kind, artifact_key=key, **digests, **facts)
            )
    return {name: f"ds_{name}" for name in KINDS}


@pytest.mark.parametrize(
    ("request_of", "used"),
    [
        ({}, {"trained"}),
        ({"evaluation": "judging"}, {"trained", "judging"}),
        ({"guard": "guarding"}, {"trained", "guarding"}),
        ({"publish": {"collection": "docs", "documents": "shown"}}, {"trained", "shown"}),
        (
            {"evaluation": "judging", "guard": "guarding", "publish": {"collection": "docs", "documents": "shown"}},
            {"trained", "judging", "guarding", "shown"},
        ),
        ({"evaluation": "trained"}, {"trained"}),
    ],
)
def test_what_a_training_names_is_used(
    database: Database, names: dict[str, str], request_of: dict[str, Any], used: set[str]
) -> None:
    resources: Any = SimpleNamespace(queue=RecordingQueue(), settings=SimpleNamespace(default_encoder=ENCODER))
    with database.read() as session:
        assert not any(is_used(session, session.get_one(Dataset, id_)) for id_ in names.values())

    for _ in range(2):  # many jobs may use the same
        with database.write() as session:
            submit_training(session, resources, DEFAULT_PROJECT, model="faq", dataset="trained", **request_of)

    with database.read() as session:
        assert {name for name, id_ in names.items() if is_used(session, session.get_one(Dataset, id_))} == used
