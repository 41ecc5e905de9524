"""Making and deleting collections, and asking for documents to be written or removed."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.collections.queries import find_collection
from service.db import now
from service.errors import Conflict, InvalidRequest
from service.ids import new_id
from service.jobs.lifecycle import add_event, cancel
from service.names import check_name, vector_name
from service.queue import JobQueue, enqueue
from service.tables import TERMINAL_STATES, Collection, CollectionVector, EncoderRow, Job, Model
from service.vectors.engine import FieldType, VectorEngine

# Always indexed: deleting a document finds its points by it.
_OWN_INDEXES: dict[str, FieldType] = {"document_id": "keyword"}


def create_collection(
    session: Session, vectors: VectorEngine, project_id: str, name: str, *, model: Model, indexes: Mapping[str, FieldType]
) -> Collection:
    """Make an empty collection bound to the model, with `base` and the live version ready. Raises Conflict for a taken name.

    indexes: metadata fields that filters will use, and their types; they cannot be added later.
    """
    if find_collection(session, project_id, check_name(name)) is not None:
        raise Conflict(f"there is a collection '{name}' already", code="name_taken", param="name")
    row = Collection(
        id=new_id("col"),
        project_id=project_id,
        name=name,
        model_id=model.id,
        qdrant_collection=f"{project_id}_{name}",
        indexes=dict(indexes),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    dim = session.get_one(EncoderRow, model.encoder_id).dim
    # Without a row of this name, whatever stands under it is what a killed process left behind.
    vectors.drop_collection(row.qdrant_collection)
    payload_indexes = {f"metadata.{field}": kind for field, kind in indexes.items()}
    vectors.create_collection(row.qdrant_collection, dim=dim, indexes={**_OWN_INDEXES, **payload_indexes})
    for version in sorted({0, model.live_version}):
        if version > 0:
            vectors.add_vector_name(row.qdrant_collection, vector_name(version), dim=dim)
        session.add(
            CollectionVector(
                collection_id=row.id,
                version=version,
                vector_name=vector_name(version),
                state="ready",
                created_at=now(),
                ready_at=now(),
            )
        )
    session.flush()
    return row


def get_or_create_collection(
    session: Session, vectors: VectorEngine, project_id: str, name: str, *, model: Model, indexes: Mapping[str, FieldType]
) -> Collection:
    """The collection of this name, made where it is missing. Raises InvalidRequest when it is bound to another model."""
    found = find_collection(session, project_id, name)
    if found is None or found.deleting:
        return create_collection(session, vectors, project_id, name, model=model, indexes=indexes)
    if found.model_id != model.id:
        own = session.get_one(Model, found.model_id).name
        raise InvalidRequest(f"collection '{name}' is bound to model '{own}' for good", code="other_model", param="collection")
    if indexes and dict(indexes) != found.indexes:
        raise InvalidRequest(
            f"collection '{name}' was made with the indexes {found.indexes}; they cannot be changed",
            code="other_indexes",
            param="indexes",
        )
    return found


def begin_deletion(session: Session, collection: Collection) -> None:
    """Hide the collection and cancel its unfinished jobs; `finish_deletion` must follow, and may be repeated."""
    collection.deleting = True
    for job in session.scalars(select(Job).where(Job.collection_id == collection.id, Job.state.not_in(TERMINAL_STATES))):
        cancel(session, job)
    session.flush()


def finish_deletion(session: Session, vectors: VectorEngine, collection: Collection) -> None:
    """Remove the points and then the row, in this order: a row that is left can be deleted again."""
    vectors.drop_collection(collection.qdrant_collection)
    session.delete(collection)
    session.flush()


def submit_publish(
    session: Session, queue: JobQueue, collection: Collection, *, dataset_id: str, parent_job_id: str | None = None
) -> Job:
    """Queue the writing of a documents dataset into the collection."""
    return _submit(session, queue, collection, {"delete": None}, dataset_id=dataset_id, parent_job_id=parent_job_id)


def submit_deletion(session: Session, queue: JobQueue, collection: Collection, where: Mapping[str, Any]) -> Job:
    """Queue the removal of the documents that the filter matches."""
    return _submit(session, queue, collection, {"delete": dict(where)})


def _submit(
    session: Session,
    queue: JobQueue,
    collection: Collection,
    request: dict[str, Any],
    *,
    dataset_id: str | None = None,
    parent_job_id: str | None = None,
) -> Job:
    job = Job(
        id=new_id("job"),
        project_id=collection.project_id,
        kind="publish",
        request=request,
        model_id=collection.model_id,
        dataset_id=dataset_id,
        collection_id=collection.id,
        parent_job_id=parent_job_id,
        created_at=now(),
    )
    session.add(job)
    session.flush()
    add_event(session, job.id, "queued")
    enqueue(session, queue, job)
    return job
