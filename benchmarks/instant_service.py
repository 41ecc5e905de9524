"""A service with versions and collections as the benchmark of the instant search needs them, written straight where they lie."""

from collections.abc import Sequence
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from service.collections.operations import create_collection
from service.collections.targets import Target, choose_target
from service.db import now
from service.ids import new_id
from service.models.operations import add_version, get_or_create_model
from service.names import vector_name
from service.resources import DEFAULT_PROJECT, Resources
from service.tables import CollectionVector, EncoderRow, Job
from service.vectors.engine import Points
from zerogate.folded import FoldedHead, unit_rows
from zerogate.head_files import dump_head
from zerogate.head_shapes import HeadShape

MODEL = "model"
ENCODER = "all-MiniLM-L6-v2"
_BATCH = 1_000


def register(resources: Resources, head: FoldedHead, shape: HeadShape) -> int:
    """Store the head as the next version, as a training does; gives its number."""
    with resources.database.write() as session:
        model = get_or_create_model(session, DEFAULT_PROJECT, MODEL, encoder=None, default_encoder=ENCODER)
        fingerprint = session.get_one(EncoderRow, model.encoder_id).fingerprint
        dumped = dump_head(head, shape=shape, strength=1.0, encoder_fingerprint=fingerprint, facts={})
        job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", state="succeeded", request={}, model_id=model.id)
        job.created_at = job.finished_at = now()
        session.add(job)
        session.flush()
        key = f"heads/{job.id}/1"
        resources.artifacts.write(key, dumped.files)
        version = add_version(
            session,
            model.id,
            job_id=job.id,
            artifact_key=key,
            strength=1.0,
            manifest=dumped.manifest,
            scores={"base": {}, "tuned": {}},
            verdict={"outcome": "better"},
        )
        return version.number


def fill(resources: Resources, name: str, base: NDArray[np.float32], *, ready: int | None = None) -> None:
    """A collection with a document for every row of base; `ready`: a version whose own vectors it has too."""
    collection = create_collection(resources.database, resources.vectors, DEFAULT_PROJECT, name, model=MODEL, indexes={})
    physical = collection.qdrant_collection
    target = None
    if ready is not None:
        resources.vectors.add_vector_name(physical, vector_name(ready), dim=base.shape[1])
        with resources.database.write() as session:
            row = CollectionVector(collection_id=collection.id, version=ready, vector_name=vector_name(ready), state="ready")
            row.created_at = row.ready_at = now()
            row.points = len(base)
            session.add(row)
        target = target_of(resources, name, version=ready)
    for start in range(0, len(base), _BATCH):
        rows = base[start : start + _BATCH]
        vectors = {"base": rows}
        if target is not None:
            vectors[target.vector_name] = resources.models.vectors(target.version, rows, role="document")
        numbers = range(start, start + len(rows))
        resources.vectors.upsert(physical, Points([point_id(n) for n in numbers], vectors, [payload(n) for n in numbers]))


def target_of(resources: Resources, name: str, *, version: int) -> Target:
    """Where a search for the version goes in the collection."""
    with resources.database.read() as session:
        return choose_target(session, DEFAULT_PROJECT, name, version=version, strength=None, by_text=True)


def point_id(number: int) -> str:
    """The id of a document's point."""
    return str(uuid5(UUID(int=0), str(number)))


def payload(number: int) -> dict[str, object]:
    """A document of some 200 characters."""
    return {"document_id": str(number), "chunk": 0, "text_sha256": "", "text": f"document {number} " * 12, "metadata": {}}


def spread(base: NDArray[np.float32], count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """So many base vectors: those that there are, and neighbours of them (cosine about 0.9)."""
    draw = np.random.default_rng(seed)
    missing = max(0, count - len(base))
    of = base[draw.integers(len(base), size=missing)]
    noise = (0.5 / base.shape[1] ** 0.5 * draw.standard_normal(of.shape)).astype(np.float32)
    return np.concatenate([base[:count], unit_rows(of + noise)])


def same(found: Sequence[str], scores: NDArray[np.float64], *, limit: int) -> float:
    """The share of the best `limit` that was found: a document counts when its exact score reaches the last of them."""
    least = np.sort(scores)[-limit] - 1e-6
    return float(np.mean([scores[int(key)] >= least for key in found] + [False] * (limit - len(found))))
