"""One collection in this process, published and re-headed by the real jobs over SQLite and Qdrant Edge, without an encoder.

Base vectors come out of the texts' checksums at next to no cost, and are not cached. Jobs run at once, in the calling thread.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import select

import zerogate
from benchmarks.publish_at_size_data import SeededEncoder, as_jsonl, documents
from cli.migrate import migrate
from service.artifacts import Artifacts
from service.collections.operations import create_collection, submit_publish
from service.collections.queries import get_collection
from service.datasets.operations import add_dataset
from service.db import Database, make_engine, now
from service.embeddings.loaded_models import EncoderFacts, LoadedModels
from service.encoders.operations import ensure_project, register_encoder
from service.ids import new_id
from service.models.operations import add_version, get_or_create_model, promote
from service.models.queries import get_model
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import EncoderSpec, Settings
from service.tables import Job, JobKind
from service.vectors.engine import VectorEngine
from workers.tasks import run_here, run_job
from zerogate.encoder_files import EncoderFiles, Role
from zerogate.folded import FoldedHead
from zerogate.head_files import dump_head
from zerogate.head_shapes import HeadShape

NAME = "docs"  # of the model and of the collection
_ENCODER = "seeded"
PHYSICAL = f"{DEFAULT_PROJECT}_{NAME}"


def a_head(dim: int, *, seed: int) -> FoldedHead:
    """A head with a bias that turns every vector by some 20 degrees, as trained ones do."""
    drawn = np.random.default_rng(seed)
    matrix = np.eye(dim) + drawn.standard_normal((dim, dim)) * 0.35 / np.sqrt(dim)
    offset = drawn.standard_normal(dim) * 0.1 / np.sqrt(dim)
    return FoldedHead(matrix.astype(np.float32), offset.astype(np.float32))


@dataclass
class Workplace:
    """The parts of a service. heads: of versions 1, 2, ..."""

    resources: Resources
    dim: int
    heads: list[FoldedHead] = field(default_factory=list)

    @property
    def vectors(self) -> VectorEngine:
        return self.resources.vectors

    def publish(self, rows: int) -> Any:
        """Publish `rows` documents of eight words; gives the job's result. The dataset is stored before."""
        database, artifacts = self.resources.database, self.resources.artifacts
        with artifacts.scratch() as scratch:
            file, digest = scratch / "rows.jsonl", hashlib.sha256()
            with file.open("wb") as stream:
                for part in as_jsonl(documents(rows)):
                    digest.update(part)
                    stream.write(part)
            sha256 = digest.hexdigest()
            dataset, _ = add_dataset(
                database, artifacts, DEFAULT_PROJECT, file, sha256=sha256, kind="documents", filename=file.name
            )
        with database.write() as session:
            collection = get_collection(session, DEFAULT_PROJECT, NAME)
            job = submit_publish(session, self.resources.queue, collection, dataset_id=dataset.id)
        return self._run(job.id)

    def add_version(self) -> int:
        """Store a new version with another head, which is not live; gives its number."""
        head = a_head(self.dim, seed=len(self.heads))
        fingerprint = SeededEncoder.fingerprint
        dumped = dump_head(head, shape=HeadShape(), strength=1.0, encoder_fingerprint=fingerprint, facts={})
        with self.resources.database.write() as session:
            model = get_model(session, DEFAULT_PROJECT, NAME)
            job = Job(
                id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", state="succeeded", request={}, model_id=model.id
            )
            job.created_at = job.finished_at = now()
            session.add(job)
            session.flush()
            key = f"heads/{job.id}/1"
            self.resources.artifacts.write(key, dumped.files)
            facts: dict[str, Any] = {"manifest": dumped.manifest, "scores": {}, "verdict": {}}
            version = add_version(session, model.id, job_id=job.id, artifact_key=key, strength=1.0, **facts)
        self.heads.append(head)
        return version.number

    def rehead(self, version: int) -> float:
        """Promote the version and run the re-head job that follows; gives the seconds from its claim to its end."""
        with self.resources.database.write() as session:
            promote(session, self.resources.queue, get_model(session, DEFAULT_PROJECT, NAME), version, force=True)
        with self.resources.database.read() as session:
            job_id = session.scalars(select(Job.id).where(Job.kind == "rehead", Job.state == "queued")).one()
        started = time.perf_counter()
        self._run(job_id)
        return time.perf_counter() - started

    def _run(self, job_id: str) -> Any:
        run_job(self.resources, job_id, threading.Event(), run_here)
        with self.resources.database.read() as session:
            job = session.get_one(Job, job_id)
        if job.state != "succeeded":
            raise RuntimeError(f"{job.kind} {job.state}: {job.error}")
        return job.result


@contextmanager
def workplace(folder: Path, *, dim: int) -> Iterator[Workplace]:
    """A fresh service in the folder with an empty collection whose base vectors have `dim` numbers."""
    structlog.configure(processors=[_drop])  # the last line of the output is the figures', not a job's
    settings = Settings(data_dir=folder)
    database = Database(make_engine(settings.sql_url))
    migrate(database.engine)
    database.close()
    resources = open_resources(settings, _NoQueue())
    resources.models.close()  # one process may open a cache's folder once
    resources = replace(resources, models=_SeededModels(settings, resources.artifacts, dim))
    files = EncoderFiles(Path(_ENCODER), SeededEncoder.fingerprint, dim=dim, max_length=256, prompts={})
    with resources.database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        register_encoder(session, DEFAULT_PROJECT, EncoderSpec(name=_ENCODER, source=_ENCODER), files)
        get_or_create_model(session, DEFAULT_PROJECT, NAME, encoder=_ENCODER, default_encoder=_ENCODER)
    create_collection(resources.database, resources.vectors, DEFAULT_PROJECT, NAME, model=NAME, indexes={"year": "integer"})
    try:
        yield Workplace(resources, dim)
    finally:
        resources.close()


class _Uncached:
    """The seeded encoder in the place of one with a cache."""

    def __init__(self, dim: int) -> None:
        self._encoder = SeededEncoder(dim)

    def encode(
        self, texts: Sequence[str], *, role: Role, on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """See `CachedEncoder`."""
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return self._encoder.encode(texts, role=role)


class _SeededModels(LoadedModels):
    def __init__(self, settings: Settings, artifacts: Artifacts, dim: int) -> None:
        super().__init__(settings, artifacts)
        self._seeded = cast("zerogate.CachedEncoder", _Uncached(dim))

    def encoder(self, facts: EncoderFacts) -> zerogate.CachedEncoder:  # noqa: ARG002 (there is one)
        """See `LoadedModels`."""
        return self._seeded


class _NoQueue:
    """A queue without workers: jobs are run here."""

    def send(self, job_id: str, kind: JobKind) -> None:
        """Nobody waits for it."""

    def waiting(self, queue: str) -> int:  # noqa: ARG002 (a queue's signature)
        return 0

    def ping(self) -> None:
        """It always answers."""


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent
