"""The way of a publish or rehead job: documents in or out, then every building name filled, made ready, and old names dropped.

Everything here may be repeated from the start at any point: ids follow from documents, an upsert gives every name, and filling
a name again writes the same values.
"""

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from service.collections.writing import (
    WritingPlan,
    acquire_writer,
    forget_name,
    mark_dropping,
    mark_ready,
    plan_writing,
    record_points,
    release_writer,
)
from service.datasets.queries import read_dataset
from service.db import Database
from service.errors import Unavailable
from service.jobs.lifecycle import Claim, add_event, held, succeed
from service.names import vector_name
from service.resources import Resources
from service.tables import Dataset, Job
from service.vectors.engine import Filter, Payload, Points
from workers.supervision import Supervision

_DOCUMENTS_PER_BATCH = 256
_WAIT_FOR_WRITER_SECONDS = 0.2


@dataclass
class _Counts:
    """What one job did; told in its result."""

    documents: int = 0
    written: int = 0
    skipped: int = 0
    encode_seconds: float = 0.0
    vector_names_filled: list[str] = field(default_factory=list)


def run_publish(resources: Resources, mine: Claim, supervise: Supervision) -> None:
    """Bring the collection up to date: with the job's documents, without those to delete, with the live version's vectors."""
    with resources.database.read() as session:
        job = session.get_one(Job, mine.job_id)
        collection_id = str(job.collection_id)
        dataset = None if job.dataset_id is None else session.get_one(Dataset, job.dataset_id)
        dataset_key, rows = (None, 0) if dataset is None else (dataset.artifact_key, dataset.rows)
        where: Filter | None = job.request.get("delete")
    counts = _Counts()
    with _writing(resources.database, collection_id, mine, supervise) as keep:
        started = time.perf_counter()
        with held(resources.database, mine) as session:
            plan = plan_writing(session, collection_id)
        for version in plan.versions:
            resources.vectors.add_vector_name(plan.qdrant_collection, vector_name(version.number), dim=version.dim)
        if where is not None:
            resources.vectors.delete(plan.qdrant_collection, where=where)
        if dataset_key is not None:
            _write_documents(resources, plan, dataset_key, rows, counts, keep)
        _fill_building(resources, mine, plan, counts, keep)
        _drop_old(resources, mine, plan)
        points = resources.vectors.count(plan.qdrant_collection)
        with resources.database.write() as session:
            record_points(session, collection_id, points=points)
            add_event(
                session, mine.job_id, f"{counts.written} documents written, {counts.skipped} unchanged, {points} points now"
            )
            succeed(session, mine, _result(resources, plan, counts, points, seconds=time.perf_counter() - started))


class _Writer:
    """Supervision that also keeps the right to write to the collection."""

    def __init__(self, database: Database, collection_id: str, mine: Claim, supervise: Supervision) -> None:
        self._database, self._collection_id, self._mine, self._supervise = database, collection_id, mine, supervise
        self._next_renewal = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._supervise(stage, done, total)
        if time.monotonic() >= self._next_renewal:
            if not self.acquire():
                raise Unavailable("another job has taken over the collection")
            self._next_renewal = time.monotonic() + 5.0

    def acquire(self) -> bool:
        with self._database.write() as session:
            return acquire_writer(session, self._collection_id, self._mine)


@contextmanager
def _writing(database: Database, collection_id: str, mine: Claim, supervise: Supervision) -> Iterator[_Writer]:
    """Wait until no other job writes to the collection, and keep it so inside the block."""
    writer = _Writer(database, collection_id, mine, supervise)
    while not writer.acquire():
        supervise("wait for the collection's writer", 0, 1)
        time.sleep(_WAIT_FOR_WRITER_SECONDS)
    try:
        yield writer
    finally:
        # Where the database does not answer, the right expires by itself; that must not hide why the work ended.
        with suppress(Unavailable), database.write() as session:
            release_writer(session, collection_id, mine)


def _write_documents(
    resources: Resources, plan: WritingPlan, dataset_key: str, rows: int, counts: _Counts, keep: _Writer
) -> None:
    keep("publish", 0, rows)
    for batch in _batches(read_dataset(resources.artifacts, dataset_key)):
        # A batch with the same id twice cannot be: a documents dataset refuses it.
        payloads = {str(point_id(plan.collection_id, row["id"])): _payload(row) for row in batch}
        stored = resources.vectors.payloads(plan.qdrant_collection, list(payloads))
        changed = {key: payload for key, payload in payloads.items() if stored.get(key) != payload}
        if changed:
            _upsert(resources, plan, changed, counts, keep)
        counts.documents += len(payloads)
        counts.written += len(changed)
        counts.skipped += len(payloads) - len(changed)
        keep("publish", counts.documents, rows)


def _upsert(resources: Resources, plan: WritingPlan, payloads: dict[str, Payload], counts: _Counts, keep: _Writer) -> None:
    """Write whole points with every name that is building or ready: a name left out would be lost."""
    started = time.perf_counter()
    texts = [payload["text"] for payload in payloads.values()]
    base = resources.models.encoder(plan.encoder).encode(
        texts, role="document", on_progress=lambda done, total: keep("encode documents", done, total)
    )
    counts.encode_seconds += time.perf_counter() - started
    vectors = {vector_name(version.number): resources.models.vectors(version, base, role="document") for version in plan.versions}
    resources.vectors.upsert(plan.qdrant_collection, Points(list(payloads), vectors, list(payloads.values())))


def _fill_building(resources: Resources, mine: Claim, plan: WritingPlan, counts: _Counts, keep: _Writer) -> None:
    """Compute every building name from the stored base vectors; a name becomes ready when every point has it."""
    for version in plan.building:
        name = vector_name(version.number)
        total = resources.vectors.count(plan.qdrant_collection)
        done = 0
        if resources.vectors.count(plan.qdrant_collection, having=name) < total:
            for page in resources.vectors.scroll(plan.qdrant_collection, "base"):
                keep(f"compute {name}", done, total)
                vectors = resources.models.vectors(version, np.ascontiguousarray(page.matrix), role="document")
                resources.vectors.set_vectors(plan.qdrant_collection, name, page.ids, vectors)
                done += len(page.ids)
        _make_ready(resources, mine, plan, version.number)
        counts.vector_names_filled.append(name)


def _make_ready(resources: Resources, mine: Claim, plan: WritingPlan, version: int) -> None:
    name = vector_name(version)
    having = resources.vectors.count(plan.qdrant_collection, having=name)
    total = resources.vectors.count(plan.qdrant_collection)
    if having != total:
        raise Unavailable(f"{having} of {total} points have '{name}' although all were written")
    with held(resources.database, mine) as session:
        mark_ready(session, plan.collection_id, version, points=total)


def _drop_old(resources: Resources, mine: Claim, plan: WritingPlan) -> None:
    with held(resources.database, mine) as session:
        names = mark_dropping(session, plan.collection_id)
    for name in names:
        resources.vectors.drop_vector_name(plan.qdrant_collection, name)
        with held(resources.database, mine) as session:
            forget_name(session, plan.collection_id, name)


def _result(resources: Resources, plan: WritingPlan, counts: _Counts, points: int, *, seconds: float) -> dict[str, Any]:
    return {
        "documents": counts.documents,
        "written": counts.written,
        "skipped": counts.skipped,
        "points": points,
        "vector_names_filled": counts.vector_names_filled,
        "vector_names": sorted(resources.vectors.vector_names(plan.qdrant_collection)),
        "encode_seconds": counts.encode_seconds,
        "publish_seconds": seconds - counts.encode_seconds,
    }


def point_id(collection_id: str, document_id: str, *, chunk: int = 0) -> UUID:
    """The point of a document, the same whoever writes it: uuid5 of the collection's id and `document#chunk`."""
    return uuid5(UUID(collection_id.partition("_")[2]), f"{document_id}#{chunk}")


def _payload(row: dict[str, Any]) -> Payload:
    text: str = row["text"]
    return {
        "document_id": row["id"],
        "chunk": 0,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text": text,
        "metadata": row["metadata"],
    }


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, _DOCUMENTS_PER_BATCH)):
        yield batch
