"""Searching a collection with the vectors of one version."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.collections.queries import get_collection, ready_versions, serving_version, vector_rows
from service.embeddings.loaded_models import VersionFacts
from service.embeddings.operations import check_texts, embed, serving_name
from service.errors import Conflict, InvalidRequest, NotFound
from service.models.queries import served_version
from service.names import Ref
from service.resources import Resources
from service.tables import Model
from service.vectors.engine import Hit


@dataclass(frozen=True)
class Target:
    """Where a search goes; plain values. All vectors of one search are of this version: query and documents."""

    qdrant_collection: str
    vector_name: str
    version: VersionFacts


def choose_target(session: Session, project_id: str, name: str, *, version: int | None) -> Target:
    """The named vector to search: of the version asked for, else of the one that the collection serves.

    Raises NotFound, and Conflict when the version asked for is not ready here, naming those that are.
    """
    collection = get_collection(session, project_id, name)
    model = session.get_one(Model, collection.model_id)
    if version is not None:
        ready = sorted(ready_versions(session, collection))
        if version not in ready:
            raise Conflict(
                f"version {version} of '{model.name}' is not ready in collection '{name}'; "
                f"ready are {', '.join(map(str, ready))}",
                code="version_not_ready",
                param="version",
            )
    chosen = serving_version(session, collection) if version is None else version
    facts = served_version(session, project_id, Ref(model.name, chosen))
    return Target(collection.qdrant_collection, serving_name(facts), facts)


def search(
    resources: Resources,
    project_id: str,
    collection: str,
    *,
    version: int | None,
    query: str | None,
    vector: list[float] | None,
    limit: int,
    where: dict[str, Any] | None,
) -> tuple[Target, list[Hit]]:
    """The best documents for a text, or for a vector of the same version; and where they were searched."""

    def attempt() -> tuple[Target, list[Hit]]:
        with resources.database.read() as session:  # closed before the encoder works
            target = choose_target(session, project_id, collection, version=version)
        if query is not None:
            found = embed(resources.models, target.version, check_texts(query, param="query"), role="query").vectors[0]
        else:
            found = _unit_vector(vector or [], target)
        return target, resources.vectors.search(target.qdrant_collection, target.vector_name, found, limit=limit, where=where)

    try:
        return attempt()
    except NotFound:
        with resources.database.read() as session:
            target = choose_target(session, project_id, collection, version=version)
            is_empty = not any(row.points for row in vector_rows(session, get_collection(session, project_id, collection).id))
        if is_empty:  # not yet in Qdrant: whoever writes to it first makes it there
            return target, []
        # A name may be dropped between choosing and searching it; then another one serves now.
        return attempt()


def _unit_vector(numbers: list[float], target: Target) -> NDArray[np.float32]:
    dim = target.version.dim
    vector = np.asarray(numbers, dtype=np.float64)
    norm = float(np.linalg.norm(vector))
    if vector.shape != (dim,) or not np.isfinite(norm) or norm == 0.0:
        raise InvalidRequest(f"'vector' must be {dim} finite numbers, not all 0; found {len(numbers)}", param="vector")
    # A vector that is a unit already is left alone: dividing by 1.0000000001 would change its bits.
    unit = vector if abs(norm - 1.0) < 1e-5 else vector / norm
    return unit.astype(np.float32)
