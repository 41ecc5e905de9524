"""Reading collections and what they hold."""

from collections.abc import Iterable, Sequence, Set

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models.queries import list_promotions
from service.tables import Collection, CollectionVector, Model, Version


def find_collection(session: Session, project_id: str, name: str) -> Collection | None:
    """The collection of this name, or None."""
    return session.scalar(select(Collection).filter_by(project_id=project_id, name=name))


def get_collection(session: Session, project_id: str, name: str) -> Collection:
    """The collection of this name. Raises NotFound."""
    collection = find_collection(session, project_id, name)
    if collection is None or collection.deleting:
        raise NotFound(
            f"there is no collection '{name}'; GET /v1/collections lists them", code="collection_not_found", param="collection"
        )
    return collection


def list_collections(session: Session, project_id: str) -> Sequence[Collection]:
    """All collections, by name."""
    return session.scalars(select(Collection).filter_by(project_id=project_id, deleting=False).order_by(Collection.name)).all()


def vector_rows(session: Session, collection_id: str) -> Sequence[CollectionVector]:
    """The collection's named vectors, by version."""
    return session.scalars(
        select(CollectionVector).filter_by(collection_id=collection_id).order_by(CollectionVector.version)
    ).all()


def ready_versions(session: Session, collection: Collection) -> set[int]:
    """The versions that may be searched here: those whose named vector is ready, and those that map queries only.

    The latter compare a query with the documents' base vectors, which are in every collection.
    """
    ready = {row.version for row in vector_rows(session, collection.id) if row.state == "ready"}
    return ready | query_only_versions(session, collection.model_id)


def query_only_versions(session: Session, model_id: str) -> set[int]:
    """The numbers of the model's versions whose documents keep their base vectors."""
    return set(session.scalars(select(Version.number).where(Version.model_id == model_id, Version.query_only)))


def serving_version(session: Session, collection: Collection) -> int:
    """The version that searches use: the live one if it is ready here, else of those that are the one that was live last.

    `base` (version 0) is ready from the first moment, so there always is one.
    """
    ready = ready_versions(session, collection)
    model = session.get_one(Model, collection.model_id)
    if model.live_version in ready:
        return model.live_version
    return last_ready(ready, (promotion.to_version for promotion in reversed(list_promotions(session, model.id))))


def last_ready(ready: Set[int], were_live: Iterable[int]) -> int:
    """Of the versions that were live, the last first, the first that is ready."""
    return next((version for version in were_live if version in ready), 0)


def unfinished_deletions(session: Session) -> Sequence[str]:
    """Ids of the collections whose deletion was interrupted."""
    return session.scalars(select(Collection.id).filter_by(deleting=True)).all()
