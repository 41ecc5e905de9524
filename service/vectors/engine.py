"""The one interface to a vector database. Two engines fill it: `edge.py` (embedded) and `server.py` (Qdrant server).

A *physical* collection holds points with several named vectors: `base`, `v1`, `v2`, ... All use distance Dot on unit vectors,
which the engine stores bit for bit. An upsert replaces the whole point, as Qdrant's own does: a name left out is lost.
What lives here knows nothing of models, versions or SQL. Every method blocks. A write that returned survives a killed
process; a write that raised Unavailable may be partly there, and writing it again is safe. What power loss may take is
the engine's matter and stands in its file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FieldType = Literal["keyword", "integer", "float", "bool", "datetime", "text"]

Matrix = NDArray[np.float32]  # (n, dim), unit rows
Payload = dict[str, Any]
Filter = Mapping[str, Any]  # a Qdrant JSON filter object: {"must": [{"key": "metadata.lang", "match": {"value": "en"}}]}


@dataclass(frozen=True)
class Points:
    """A batch of whole points: row i of every matrix belongs to ids[i] and payloads[i]."""

    ids: Sequence[str]  # UUIDs
    vectors: Mapping[str, Matrix]
    payloads: Sequence[Payload]


@dataclass(frozen=True)
class StoredVectors:
    """Some points' vectors of one name, as stored; row i of `matrix` belongs to ids[i]."""

    ids: Sequence[str]
    matrix: Matrix


@dataclass(frozen=True)
class Hit:
    """A point that a search found. `score` is the inner product; `payload` is what was upserted."""

    id: str
    score: float
    payload: Payload


@dataclass(frozen=True)
class IndexSettings:
    """How a server indexes a collection, base and later names alike; None: as the server is configured.

    quantization: what the server searches through before it scores the best again with the stored vectors. `scalar` takes a
    quarter of the memory of float32 (int8), `turbo` an eighth (TurboQuant, 4 bits; server >= 1.18). Stored vectors and
    scores stay exact; what is approximate is which points are found.
    hnsw_m: edges a node of the HNSW graph, 0 for no graph; hnsw_ef_construct: neighbours considered while it is built.
    """

    quantization: Literal["none", "scalar", "turbo"] = "none"
    hnsw_m: int | None = None
    hnsw_ef_construct: int | None = None


DEFAULT_INDEX = IndexSettings()


class VectorEngine(Protocol):
    """What the service needs of a vector database.

    Raises everywhere: `service.errors.Unavailable` when the engine cannot be reached, `service.errors.InvalidRequest`
    for a filter, dimension, id, payload or number (NaN, infinity) that the engine must not store, and then nothing is
    written; `service.errors.NotFound` for an unknown collection or an unknown named vector in `upsert`, `set_vectors`,
    `scroll`, `search` and `candidates` (`count` gives 0 for it).
    """

    def create_collection(
        self,
        collection: str,
        *,
        dim: int,
        indexes: Mapping[str, FieldType],
        owner: str,
        settings: IndexSettings = DEFAULT_INDEX,
    ) -> None:
        """Make sure the collection is there: with the named vector `base`, its payload indexes and the mark of its owner.

        owner: the id of the row that this collection belongs to. One that exists with the same owner keeps its points and its
        settings, and gets the payload indexes it lacks. Raises Conflict (`qdrant_name_taken`) when a server holds a
        collection of this name with another mark or none, which is never touched; InvalidRequest when the existing one has
        another dimension, or the engine does not know the settings.
        """

    def drop_collection(self, collection: str, *, owner: str) -> None:
        """Remove the collection and its files if it is this owner's; a missing one, and somebody else's, is left as it is."""

    def bulk_load(self, collection: str) -> AbstractContextManager[None]:
        """While inside, no search index is built beside the writes: many points at once are written faster.

        Searches stay right meanwhile and get slower with every point. May be entered again, also after a kill inside.
        """

    def vector_names(self, collection: str) -> set[str]:
        """The named vectors that exist, `base` included."""

    def add_vector_name(self, collection: str, name: str, *, dim: int) -> None:
        """Add an empty named vector to a live collection; an existing one is left as it is.

        Raises InvalidRequest when the existing one has another dimension.
        """

    def drop_vector_name(self, collection: str, name: str) -> None:
        """Remove a named vector and its values; a missing one is fine."""

    def upsert(self, collection: str, points: Points) -> None:
        """Write whole points; a point that exists is replaced, names and payload."""

    def set_vectors(self, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """Set one named vector of existing points and keep everything else. Ids that are not there (any more) are passed over."""

    def payloads(self, collection: str, ids: Sequence[str]) -> dict[str, Payload]:
        """The payloads of those of the points that exist, by id."""

    def scroll(
        self, collection: str, name: str, *, lacking: str | None = None, batch_size: int | None = None
    ) -> Iterator[StoredVectors]:
        """All points that have the named vector, in batches ordered by id. Points written meanwhile may or may not appear.

        batch_size: points; None for as many as suit the engine.
        lacking: only points without this other named vector; it may be given to those of a batch while the next one is fetched.
        """

    def count(self, collection: str, *, having: str | None = None) -> int:
        """The exact number of points; with `having`, only of those that have this named vector."""

    def delete(self, collection: str, *, ids: Sequence[str] = (), where: Filter | None = None) -> None:
        """Delete the points with these ids, and those that the filter matches. Missing ids are fine."""

    def search(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> list[Hit]:
        """The `limit` points with the largest inner product of `name` and the (dim,) query, best first."""

    def candidates(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> StoredVectors:
        """What `search` finds, as ids and stored vectors of `name`, best first, without the payloads."""

    def ping(self) -> None:
        """Return when the engine answers."""

    def close(self) -> None:
        """Flush and give the files or connections back."""
