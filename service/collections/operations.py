"""Making and deleting collections, and asking for documents to be written or removed."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.collections.physical import ensure, physical_of
from service.collections.queries import find_collection, query_only_versions
from service.collections.writer import has_writer
from service.db import Database, now
from service.errors import Conflict, InvalidRequest, ServiceError, Unavailable, inside_a_body
from service.ids import new_id
from service.jobs.lifecycle import LEASE, cancel
from service.jobs.queueing import queue_job
from service.models.queries import get_model
from service.names import check_name, vector_name
from service.queue import JobQueue
from service.tables import TERMINAL_STATES, Collection, CollectionVector, Job, Model
from service.vectors.engine import DEFAULT_INDEX, FieldType, IndexSettings, VectorEngine

_FIELD = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_WAIT_FOR_WRITER_SECONDS = LEASE.total_seconds() + 2.0


def create_collection(
    database: Database,
    vectors: VectorEngine,
    project_id: str,
    name: str,
    *,
    model: str,
    indexes: Mapping[str, FieldType],
    settings: IndexSettings = DEFAULT_INDEX,
) -> Collection:
    """Make an empty collection bound to the model, with `base` and the live version ready, in the database and in Qdrant.

    Raises InvalidRequest for an unknown model, Conflict for a taken name, Unavailable while Qdrant does not answer; then nothing
    is left. A kill in between leaves an empty collection, which its first publish makes in Qdrant.
    """
    with database.write() as session:
        with inside_a_body():
            bound = get_model(session, project_id, model)
        row = add_collection(session, project_id, name, model=bound, indexes=indexes, settings=settings)
        physical = physical_of(session, row)
    try:
        ensure(vectors, physical)
    except ServiceError:
        with database.write() as session:  # but for one that somebody has begun to use meanwhile: its job makes it
            is_used = exists().where(Job.collection_id == row.id)
            session.execute(delete(Collection).where(Collection.id == row.id, ~is_used))
        raise
    return row


def add_collection(
    session: Session,
    project_id: str,
    name: str,
    *,
    model: Model,
    indexes: Mapping[str, FieldType],
    settings: IndexSettings = DEFAULT_INDEX,
) -> Collection:
    """The rows of an empty collection; whoever writes to it first makes it in Qdrant. Raises Conflict for a taken name.

    indexes: metadata fields that filters will use, and their types; they cannot be added later.
    """
    taken = find_collection(session, project_id, check_name(name))
    if taken is not None:
        reason = "one that is being deleted; delete it again to finish that" if taken.deleting else "one already"
        raise Conflict(f"the name '{name}' is taken: there is {reason}", code="name_taken", param="name")
    for field in indexes:
        check_index(field)
    row = Collection(
        id=new_id("col"),
        project_id=project_id,
        name=name,
        model_id=model.id,
        qdrant_collection=f"{project_id}_{name}",
        indexes=dict(indexes),
        settings=asdict(settings),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    for version in sorted({0, model.live_version} - query_only_versions(session, model.id)):
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


def get_or_add_collection(
    session: Session, project_id: str, name: str, *, model: Model, indexes: Mapping[str, FieldType]
) -> Collection:
    """The collection of this name, added where it is missing. Raises InvalidRequest when it is bound to another model."""
    found = find_collection(session, project_id, name)
    if found is None:
        # PostgreSQL: another request may be faster, before our look or before our insert.
        with suppress(Conflict, IntegrityError), session.begin_nested():
            return add_collection(session, project_id, name, model=model, indexes=indexes)
        found = find_collection(session, project_id, name)
    if found is None or found.deleting:  # the latter is a Conflict that says so
        return add_collection(session, project_id, name, model=model, indexes=indexes)
    if found.model_id != model.id:
        own = session.get_one(Model, found.model_id).name
        raise InvalidRequest(
            f"collection '{name}' is bound to model '{own}' for good", code="other_model", param="publish.collection"
        )
    if indexes and dict(indexes) != found.indexes:
        raise InvalidRequest(
            f"collection '{name}' was made with the indexes {found.indexes}; they cannot be changed",
            code="other_indexes",
            param="publish.indexes",
        )
    return found


def delete_collection(database: Database, vectors: VectorEngine, collection_id: str) -> None:
    """Hide the collection, cancel its unfinished jobs, wait for the one that writes, remove the points and then the row.

    In this order, and each step may be repeated: whatever interrupts it, deleting again goes on.
    Raises Unavailable while a job still writes.
    """
    with database.write() as session:
        collection = session.get(Collection, collection_id)
        if collection is None:
            return  # another process was faster
        collection.deleting = True
        name, physical = collection.name, collection.qdrant_collection
    _cancel_jobs(database, collection_id)
    _wait_for_writer(database, collection_id, name)
    vectors.drop_collection(physical, owner=collection_id)
    with database.write() as session:
        session.execute(delete(Collection).where(Collection.id == collection_id))


def _cancel_jobs(database: Database, collection_id: str) -> None:
    """Not in the transaction that marks the collection: a writer locks its job first, and on PostgreSQL they would be stuck."""
    unfinished = select(Job).where(Job.collection_id == collection_id, Job.state.not_in(TERMINAL_STATES)).order_by(Job.id)
    with database.write() as session:
        for job in session.scalars(unfinished).all():
            with suppress(Conflict):  # it has ended meanwhile
                cancel(session, job)


def _wait_for_writer(database: Database, collection_id: str, name: str) -> None:
    """A late upsert must not meet a new collection of the same name."""
    deadline = time.monotonic() + _WAIT_FOR_WRITER_SECONDS
    while True:
        with database.read() as session:
            if not has_writer(session, collection_id):
                return
        if time.monotonic() > deadline:
            raise Unavailable(f"a job still writes to collection '{name}'; delete it again in a moment")
        time.sleep(0.05)


def check_index(field: str) -> None:
    """Raise InvalidRequest unless the name is that of a metadata field, as the user writes it in a document."""
    if not _FIELD.match(field):
        raise InvalidRequest(
            f"{field!r} is no field for an index: letters, digits, '_' and '-' are allowed, and '.' before a nested field",
            param="indexes",
        )
    if field.startswith("metadata."):
        raise InvalidRequest(f"{field!r} names the payload's field; give the document's own: '{field[9:]}'", param="indexes")


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
    return queue_job(
        session,
        queue,
        project_id=collection.project_id,
        kind="publish",
        request=request,
        model_id=collection.model_id,
        dataset_id=dataset_id,
        collection_id=collection.id,
        parent_job_id=parent_job_id,
    )
