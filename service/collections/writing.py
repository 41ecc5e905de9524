"""The facts that a job which writes to a collection reads and leaves: what to write, and the states of the named vectors.

One writer at a time. An upsert replaces a whole point, so the writer gives every name that is `building` or `ready`; a name
becomes ready when as many points have it as there are points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.collections.physical import Physical, physical_of
from service.collections.queries import query_only_versions, ready_versions, vector_rows
from service.db import now
from service.embeddings.loaded_models import EncoderFacts, VersionFacts
from service.encoders.queries import facts_of
from service.models.queries import get_version, locked, version_before_live, version_facts
from service.names import vector_name
from service.tables import Collection, CollectionVector, EncoderRow


@dataclass(frozen=True)
class WritingPlan:
    """What a writer needs to know; plain values. versions: all that every upsert must give, base (0) first."""

    collection_id: str
    physical: Physical
    encoder: EncoderFacts
    versions: list[VersionFacts]
    building: list[VersionFacts]


def plan_writing(session: Session, collection_id: str) -> WritingPlan:
    """Enter the live version as building where it is missing, and tell what every upsert must give.

    A version that maps queries only has no vectors of its own: nothing is entered for it.
    """
    collection = session.get_one(Collection, collection_id)
    model = locked(session, collection.model_id)
    encoder = session.get_one(EncoderRow, model.encoder_id)
    live = session.get(CollectionVector, (collection_id, model.live_version))
    if live is not None and live.state == "dropping":
        live.state = "building"  # it was to go and was promoted again; whatever values are left are checked by their count
    elif live is None and model.live_version not in query_only_versions(session, model.id):
        session.add(
            CollectionVector(
                collection_id=collection_id,
                version=model.live_version,
                vector_name=vector_name(model.live_version),
                state="building",
                created_at=now(),
            )
        )
    session.flush()
    rows = [row for row in vector_rows(session, collection_id) if row.state != "dropping"]
    facts = {row.version: version_facts(get_version(session, model, row.version), model, encoder) for row in rows}
    return WritingPlan(
        collection_id=collection_id,
        physical=physical_of(session, collection),
        encoder=facts_of(encoder),
        versions=[facts[row.version] for row in rows],
        building=[facts[row.version] for row in rows if row.state == "building"],
    )


def mark_ready(session: Session, collection_id: str, version: int, *, points: int) -> None:
    """building -> ready: from now on searches may use the name."""
    row = session.get_one(CollectionVector, (collection_id, version))
    row.state, row.points, row.ready_at = "ready", points, now()
    session.flush()


def record_points(session: Session, collection_id: str, *, points: int) -> None:
    """Note the exact count of points for every ready name, after a write."""
    ready = (CollectionVector.collection_id == collection_id, CollectionVector.state == "ready")
    session.execute(update(CollectionVector).where(*ready).values(points=points))


def mark_dropping(session: Session, collection_id: str) -> Sequence[str]:
    """ready or building -> dropping for all but base, the live version and the one before it; gives their vector names.

    Nothing is dropped while the live version is not ready here: one of the others is being searched.
    """
    collection = session.get_one(Collection, collection_id)
    model = locked(session, collection.model_id)
    rows = vector_rows(session, collection_id)
    if model.live_version in ready_versions(session, collection):
        kept = {0, model.live_version, version_before_live(session, model)}
        for row in rows:
            if row.version not in kept:
                row.state = "dropping"
    session.flush()
    return [row.vector_name for row in rows if row.state == "dropping"]


def known_names(session: Session, collection_id: str) -> set[str]:
    """The named vectors that the collection has rows of, whatever their state."""
    return {row.vector_name for row in vector_rows(session, collection_id)}


def forget_name(session: Session, collection_id: str, name: str) -> None:
    """Remove the row of a named vector that has been dropped."""
    for row in vector_rows(session, collection_id):
        if row.vector_name == name and row.state == "dropping":
            session.delete(row)
    session.flush()
