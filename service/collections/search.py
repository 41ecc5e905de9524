"""Searching a collection with the vectors of one version."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from service.collections.queries import get_collection, vector_rows
from service.collections.targets import Target, choose_target
from service.embeddings.operations import check_texts, embed
from service.errors import InvalidRequest, NotFound
from service.resources import Resources
from service.vectors.engine import Hit
from zerogate.folded import FoldedHead
from zerogate.instant import best_of, candidates_for, first_stage_query, wider


def search(
    resources: Resources,
    project_id: str,
    collection: str,
    *,
    version: int | None,
    strength: float | None,
    query: str | None,
    vector: list[float] | None,
    limit: int,
    where: dict[str, Any] | None,
) -> tuple[Target, list[Hit]]:
    """The best documents for a text, or for a vector of the same version; and where they were searched. See `choose_target`."""

    def chosen() -> Target:
        with resources.database.read() as session:  # closed before the encoder works
            return choose_target(session, project_id, collection, version=version, strength=strength, by_text=query is not None)

    def attempt() -> tuple[Target, list[Hit]]:
        target = chosen()
        if query is not None:
            texts = check_texts(query, param="query")
            found = embed(resources.models, target.version, texts, role="query", strength=strength).vectors[0]
        else:
            found = _unit_vector(vector or [], target)
        return target, hits_of(resources, target, found, limit=limit, where=where)

    try:
        return attempt()
    except NotFound:
        target = chosen()
        with resources.database.read() as session:
            is_empty = not any(row.points for row in vector_rows(session, get_collection(session, project_id, collection).id))
        if is_empty:  # not yet in Qdrant: whoever writes to it first makes it there
            return target, []
        # A name may be dropped between choosing and searching it; then the version is searched through `base`.
        return attempt()


def hits_of(
    resources: Resources, target: Target, query: NDArray[np.float32], *, limit: int, where: dict[str, Any] | None = None
) -> list[Hit]:
    """The best documents for a vector of the target's version and strength, (version.dim,), a unit vector; best first."""
    if target.path == "instant":
        return _instant(resources, target, query, limit=limit, where=where)
    if target.vector_name == "base":
        query = query[: target.version.encoder.dim]  # with strength 0 only zeros stand behind it
    return resources.vectors.search(target.qdrant_collection, target.vector_name, query, limit=limit, where=where)


def _instant(
    resources: Resources, target: Target, query: NDArray[np.float32], *, limit: int, where: dict[str, Any] | None
) -> list[Hit]:
    """The hits that the version's own vectors would give, from the stored base vectors; see `zerogate.instant`."""
    vectors, name = resources.vectors, target.qdrant_collection
    head = cast("FoldedHead", resources.models.head(target.version, target.strength))  # others have no instant target
    first_stage = first_stage_query(head, query)
    found = vectors.candidates(name, "base", first_stage, limit=candidates_for(limit), where=where)
    rows, scores = best_of(head, query, found.matrix, limit=limit)
    more = wider(rows, limit=limit) if len(found.ids) == candidates_for(limit) else None
    if more is not None:
        found = vectors.candidates(name, "base", first_stage, limit=more, where=where)
        rows, scores = best_of(head, query, found.matrix, limit=limit)
    ids = [found.ids[row] for row in rows]
    payloads = vectors.payloads(name, ids)
    # One that was deleted between the two reads is no hit any more.
    return [Hit(key, float(score), payloads[key]) for key, score in zip(ids, scores, strict=True) if key in payloads]


def _unit_vector(numbers: list[float], target: Target) -> NDArray[np.float32]:
    dim = target.version.dim
    vector = np.asarray(numbers, dtype=np.float64)
    norm = float(np.linalg.norm(vector))
    if vector.shape != (dim,) or not np.isfinite(norm) or norm == 0.0:
        raise InvalidRequest(f"'vector' must be {dim} finite numbers, not all 0; found {len(numbers)}", param="vector")
    # A vector that is a unit already is left alone: dividing by 1.0000000001 would change its bits.
    unit = vector if abs(norm - 1.0) < 1e-5 else vector / norm
    return unit.astype(np.float32)
