"""The way of a publish or rehead job: documents in or out, then every building name filled, made ready, and old names dropped.

Everything here may be repeated from the start at any point: ids follow from documents, an upsert gives every name, and filling
a name goes on with the points that lack it.
"""

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID, uuid5

from service.collections.physical import ensure
from service.collections.writer import acquire_writer, release_writer, writer_is_dead
from service.collections.writing import (
    WritingPlan,
    forget_name,
    known_names,
    mark_dropping,
    mark_ready,
    plan_writing,
    record_points,
)
from service.datasets.queries import read_dataset
from service.db import Database
from service.embeddings.loaded_models import VersionFacts
from service.errors import ServiceError, Unavailable
from service.jobs.lifecycle import Claim, add_event, held, succeed
from service.names import is_vector_name, vector_name
from service.resources import Resources
from service.tables import Dataset, Job
from service.vectors.engine import Filter, Matrix, Payload, Points
from workers.supervision import Supervision

T = TypeVar("T")

_DOCUMENTS_PER_BATCH = 256
_WAIT_FOR_WRITER_SECONDS = 0.2
_MANY_DOCUMENTS = 10_000


@dataclass
class _Counts:
    """What one job did; told in its result."""

    documents: int = 0
    written: int = 0
    skipped: int = 0
    encode_seconds: float = 0.0
    vector_names_filled: list[str] = field(default_factory=list)


def run_publish(resources: Resources, supervise: Supervision) -> None:
    """Bring the collection up to date: with the job's documents, without those to delete, with the live version's vectors."""
    mine = supervise.claim
    with resources.database.read() as session:
        job = session.get_one(Job, mine.job_id)
        collection_id = str(job.collection_id)
        dataset = None if job.dataset_id is None else session.get_one(Dataset, job.dataset_id)
        dataset_key, rows = (None, 0) if dataset is None else (dataset.artifact_key, dataset.rows)
        where: Filter | None = job.request.get("delete")
    counts = _Counts()
    with _writing(resources.database, collection_id, supervise):
        started = time.perf_counter()
        with held(resources.database, mine) as session:
            plan = plan_writing(session, collection_id)
        supervise.confirm()
        ensure(resources.vectors, plan.physical)
        if where is not None:
            supervise.confirm()
            resources.vectors.delete(plan.physical.name, where=where)
        if dataset_key is not None:
            with _loading(resources, plan, rows):
                _write_documents(resources, plan, dataset_key, rows, counts, supervise)
        _fill_building(resources, mine, plan, counts, supervise)
        _drop_old(resources, mine, plan, supervise)
        points = resources.vectors.count(plan.physical.name)
        with resources.database.write() as session:
            record_points(session, collection_id, points=points)
            add_event(
                session, mine.job_id, f"{counts.written} documents written, {counts.skipped} unchanged, {points} points now"
            )
            succeed(session, mine, _result(resources, plan, counts, points, seconds=time.perf_counter() - started))


@contextmanager
def _writing(database: Database, collection_id: str, supervise: Supervision) -> Iterator[None]:
    """Wait until no other job writes to the collection, and keep it so inside the block.

    Raises Unavailable where the other one's worker died: this one must not wait in the place that its job needs.
    """
    while not _acquired(database, collection_id, supervise.claim):
        supervise("wait for the collection's writer", 0, 1)
        time.sleep(_WAIT_FOR_WRITER_SECONDS)
    try:
        yield
    finally:
        # Where the database does not answer, the right ends with the job; that must not hide why the work ended.
        with suppress(Unavailable), database.write() as session:
            release_writer(session, collection_id, supervise.claim)


def _acquired(database: Database, collection_id: str, mine: Claim) -> bool:
    with database.write() as session:
        if acquire_writer(session, collection_id, mine):
            return True
        if writer_is_dead(session, collection_id):
            raise Unavailable("the job that writes to the collection lost its worker; it comes first")
        return False


def _loading(resources: Resources, plan: WritingPlan, rows: int) -> AbstractContextManager[None]:
    """For many documents the server's indexing pauses until all are written."""
    return resources.vectors.bulk_load(plan.physical.name) if rows >= _MANY_DOCUMENTS else nullcontext()


def _write_documents(
    resources: Resources, plan: WritingPlan, dataset_key: str, rows: int, counts: _Counts, keep: Supervision
) -> None:
    keep("publish", 0, rows)
    # Nobody else writes, and no id comes twice: a documents dataset refuses that. So what is empty now holds none of them later.
    is_empty = resources.vectors.count(plan.physical.name) == 0
    for batch in _batches(read_dataset(resources.artifacts, dataset_key)):
        payloads = {str(point_id(plan.collection_id, row["id"])): _payload(row) for row in batch}
        stored = {} if is_empty else resources.vectors.payloads(plan.physical.name, list(payloads))
        changed = {key: payload for key, payload in payloads.items() if stored.get(key) != payload}
        if changed:
            _upsert(resources, plan, changed, counts, keep)
        counts.documents += len(payloads)
        counts.written += len(changed)
        counts.skipped += len(payloads) - len(changed)
        keep("publish", counts.documents, rows)


def _upsert(resources: Resources, plan: WritingPlan, payloads: dict[str, Payload], counts: _Counts, keep: Supervision) -> None:
    """Write whole points with every name that is building or ready: a name left out would be lost."""
    started = time.perf_counter()
    texts = [payload["text"] for payload in payloads.values()]
    base = resources.models.encoder(plan.encoder).encode(
        texts, role="document", on_progress=lambda done, total: keep("encode documents", done, total)
    )
    counts.encode_seconds += time.perf_counter() - started
    vectors = {vector_name(version.number): resources.models.vectors(version, base, role="document") for version in plan.versions}
    keep.confirm()
    resources.vectors.upsert(plan.physical.name, Points(list(payloads), vectors, list(payloads.values())))


def _fill_building(resources: Resources, mine: Claim, plan: WritingPlan, counts: _Counts, keep: Supervision) -> None:
    """Compute every building name from the stored base vectors; a name becomes ready when every point has it."""
    for version in plan.building:
        name = vector_name(version.number)
        total = resources.vectors.count(plan.physical.name)
        done = resources.vectors.count(plan.physical.name, having=name)
        for ids, vectors in _one_ahead(_lacking_vectors(resources, plan, version)):
            keep(f"compute {name}", done, total)
            keep.confirm()
            resources.vectors.set_vectors(plan.physical.name, name, ids, vectors)
            done += len(ids)
        _make_ready(resources, mine, plan, version.number)
        counts.vector_names_filled.append(name)


def _lacking_vectors(resources: Resources, plan: WritingPlan, version: VersionFacts) -> Iterator[tuple[Sequence[str], Matrix]]:
    """The version's vectors of the points that lack them, page by page.

    A point that has one was given it by an attempt before this one. It follows from the version and the base vector, and whoever
    replaces the base vector replaces the whole point. (Not covered: a request to a server that was on its way when its attempt
    ended, and arrives after such a replacement.)
    """
    for page in resources.vectors.scroll(plan.physical.name, "base", lacking=vector_name(version.number)):
        yield page.ids, resources.models.vectors(version, page.matrix, role="document")


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; a thread makes each while the one before is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="one ahead") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _make_ready(resources: Resources, mine: Claim, plan: WritingPlan, version: int) -> None:
    name = vector_name(version)
    having = resources.vectors.count(plan.physical.name, having=name)
    total = resources.vectors.count(plan.physical.name)
    if having != total:
        raise ServiceError(
            f"{having} of {total} points have '{name}' although all were written: does something else write to the Qdrant "
            f"collection '{plan.physical.name}'? Publishing again writes the missing ones",
            code="points_incomplete",
        )
    with held(resources.database, mine) as session:
        mark_ready(session, plan.collection_id, version, points=total)


def _drop_old(resources: Resources, mine: Claim, plan: WritingPlan, supervise: Supervision) -> None:
    """Drop the names that are not needed any more, and those that an attempt made again that had not noticed that it was over."""
    there = resources.vectors.vector_names(plan.physical.name)
    with held(resources.database, mine) as session:
        dropping = mark_dropping(session, plan.collection_id)
        known = known_names(session, plan.collection_id)
    for name in {*dropping, *(name for name in there - known if is_vector_name(name))}:
        supervise.confirm()
        resources.vectors.drop_vector_name(plan.physical.name, name)
        with held(resources.database, mine) as session:
            forget_name(session, plan.collection_id, name)


def _result(resources: Resources, plan: WritingPlan, counts: _Counts, points: int, *, seconds: float) -> dict[str, Any]:
    return {
        "documents": counts.documents,
        "written": counts.written,
        "skipped": counts.skipped,
        "points": points,
        "vector_names_filled": counts.vector_names_filled,
        "vector_names": sorted(resources.vectors.vector_names(plan.physical.name)),
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
