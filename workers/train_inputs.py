"""What a training works on: the job's rows as plain values, its datasets as a task and a guard, and their base vectors."""

import hashlib
import importlib.resources
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import zerogate
from service.artifacts import Artifacts
from service.datasets.queries import read_dataset
from service.db import Database
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.queries import facts_of
from service.jobs.requests import TrainingRequest
from service.tables import Dataset, DatasetKind, EncoderRow, Job, Model
from zerogate.guard import BUILTIN_FILE, Guard
from zerogate.recipe import Recipe
from zerogate.strength import choosing_texts
from zerogate.task_parts import Rows
from zerogate.tasks import Task
from zerogate.training import Examples
from zerogate.tuning_recipe import TuningRecipe
from zerogate.vectors import Vectors

if TYPE_CHECKING:
    from zerogate.cache import CachedEncoder  # loads torch, which a worker that only publishes never needs

OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total); may raise to stop."""


@dataclass(frozen=True)
class DatasetFacts:
    """What must be known of a dataset's row to read it. documents_key: of kind queries only."""

    kind: DatasetKind
    sha256: str
    artifact_key: str
    documents_key: str | None


@dataclass(frozen=True)
class Inputs:
    """What the job's rows say; plain values, because no session stays open while the work goes on.

    evaluation: None where the dataset's own held-out rows judge; guard: None for the built-in one; recipe: None for a search.
    """

    model_id: str
    model: str
    encoder: EncoderFacts
    dataset: DatasetFacts
    evaluation: DatasetFacts | None
    guard: DatasetFacts | None
    budget: float
    mode: str
    recipe: Recipe | None
    tuning: TuningRecipe | None
    promote: str
    publish: dict[str, Any] | None


@dataclass(frozen=True)
class Encoded:
    """Base vectors of the task's and of the guard's texts. texts: how many; encoded: how many of them the cache lacked."""

    task: Vectors
    guard: Vectors
    seconds: float
    texts: int
    encoded: int


def read_inputs(database: Database, job_id: str) -> Inputs:
    """The facts of a training job and of all that it refers to."""
    with database.read() as session:
        job = session.get_one(Job, job_id)
        asked = TrainingRequest.of(job.request)
        model = session.get_one(Model, str(job.model_id))

        def facts(dataset_id: str) -> DatasetFacts:
            row = session.get_one(Dataset, dataset_id)
            documents = None if row.documents_id is None else session.get_one(Dataset, row.documents_id)
            return DatasetFacts(row.kind, row.sha256, row.artifact_key, None if documents is None else documents.artifact_key)

        return Inputs(
            model_id=model.id,
            model=model.name,
            encoder=facts_of(session.get_one(EncoderRow, model.encoder_id)),
            dataset=facts(str(job.dataset_id)),
            evaluation=None if asked.evaluation_id is None else facts(asked.evaluation_id),
            guard=None if asked.guard_id is None else facts(asked.guard_id),
            budget=asked.forgetting_budget,
            mode=asked.mode,
            recipe=None if asked.recipe == "auto" else Recipe.from_dict(asked.recipe),
            tuning=None if asked.tuning is None else TuningRecipe.from_dict(asked.tuning),
            promote=job.request["promote"],
            publish=job.request["publish"],
        )


def read_task(artifacts: Artifacts, inputs: Inputs) -> Task:
    """The dataset as a task. Raises ZerogateError where it is too small, NotFound where its file is gone."""
    evaluation = None if inputs.evaluation is None else _rows(artifacts, inputs.evaluation)
    return zerogate.make_task(_rows(artifacts, inputs.dataset), evaluation)


def read_guard(artifacts: Artifacts, inputs: Inputs) -> Guard:
    """The job's guard. Raises ZerogateError where it is too small."""
    if inputs.guard is None:
        return zerogate.make_guard("scored", zerogate.builtin_guard())
    data = _rows(artifacts, inputs.guard)
    return zerogate.make_guard(data.kind, data.rows, data.documents)


def guard_facts(inputs: Inputs) -> dict[str, str]:
    """Which guard it was, for the manifest."""
    if inputs.guard is not None:
        return {"kind": inputs.guard.kind, "sha256": inputs.guard.sha256}
    content = importlib.resources.files("zerogate").joinpath(BUILTIN_FILE).read_bytes()
    return {"kind": "builtin", "sha256": hashlib.sha256(content).hexdigest()}


def encode(encoder: "CachedEncoder", task: Task, guard: Guard, on_progress: OnProgress) -> Encoded:
    """Base vectors of all texts, through the cache."""
    started = time.perf_counter()
    missing: dict[str, int] = {}

    def progress(stage: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            missing[stage] = total
            on_progress(stage, done, total)

        return tell

    vectors = Vectors(
        encoder.matrix(task.queries, role="query", on_progress=progress("encode queries")),
        encoder.matrix(task.documents, role="document", on_progress=progress("encode documents")),
    )
    guard_vectors = Vectors(
        encoder.matrix(guard.queries, role="query", on_progress=progress("encode the guard")),
        encoder.matrix(guard.documents, role="document", on_progress=progress("encode the guard's documents")),
    )
    texts = sum(len(side) for side in (task.queries, task.documents, guard.queries, guard.documents))
    return Encoded(vectors, guard_vectors, time.perf_counter() - started, texts, sum(missing.values()))


def matrix_sha256(vectors: Vectors, examples: Examples) -> str:
    """Digest of all that a head is fitted to: the vectors of both sides, and the examples' indices."""
    return _digest(vectors.queries, vectors.documents, *(getattr(examples, one.name) for one in fields(examples)))


def guard_matrix_sha256(guard: Guard, vectors: Vectors) -> str:
    """Digest of the vectors that a training with `stay_near_base` looks at besides."""
    return _digest(choosing_texts(guard, vectors))


def _digest(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        if array.size:  # the buffer of an empty one cannot be had
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _rows(artifacts: Artifacts, dataset: DatasetFacts) -> Rows:
    documents = {}
    if dataset.documents_key is not None:
        documents = {row["id"]: row["text"] for row in read_dataset(artifacts, dataset.documents_key)}
    return Rows(dataset.kind, list(read_dataset(artifacts, dataset.artifact_key)), documents)
