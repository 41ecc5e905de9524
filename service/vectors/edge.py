"""The embedded vector database: Qdrant Edge, one shard a collection, each in its own folder.

Making a shard takes some 40 ms with every thread standing still, so a new collection is only declared, and its shard is made
by the first call that needs it.

What a returned write promises: a killed process (kill -9 included) loses nothing. Against power loss the log is synced to
disk before a write returns and Edge replays it at the next start; what the disk makes of the pages it had not synced is
not tested here. What Edge cannot do: a second process cannot open the same folder, and nothing is ever compacted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from service.artifacts.disk import disk_errors
from service.errors import InvalidRequest, NotFound, Unavailable
from service.vectors.edge_collection import PAGE, EdgeCollection, edge_errors
from service.vectors.edge_files import (
    Declaration,
    create_shard,
    declare,
    read_declaration,
    read_owner,
    remove_collection,
    sweep,
    write_owner,
)
from service.vectors.edge_filters import edge_filter
from service.vectors.engine import (
    DEFAULT_INDEX,
    FieldType,
    Filter,
    Hit,
    IndexSettings,
    Matrix,
    Payload,
    Points,
    StoredVectors,
)
from service.vectors.filters import parse_filter
from service.vectors.refusals import check_collection_name, check_ids, check_same_dim


class EdgeEngine:
    """`VectorEngine` over the folder. Only one engine may have the folder; the caller holds a lock on it."""

    def __init__(self, folder: Path) -> None:
        sweep(folder)
        self._folder = folder
        self._lock = Lock()  # One handle a folder: a shard that is opened twice refuses.
        self._open: dict[str, EdgeCollection] = {}
        self._closed = False

    def create_collection(
        self,
        collection: str,
        *,
        dim: int,
        indexes: Mapping[str, FieldType],
        owner: str,
        settings: IndexSettings = DEFAULT_INDEX,
    ) -> None:
        """See `VectorEngine`. A kill leaves the whole collection or none.

        Nobody else writes into the folder, so a collection of another owner is what a killed process left, and is replaced; a
        shard with none is older than the marks, and becomes this owner's.
        """
        check_collection_name(collection)
        if settings != DEFAULT_INDEX:
            raise InvalidRequest(f"The embedded vector database searches exactly, without an index: {settings} needs a server.")
        path = self._folder / collection
        with self._lock:
            self._require_open()
            if read_owner(path) not in (owner, None):
                self._remove(collection, path)
            if not path.exists():
                declared = read_declaration(path) or Declaration(owner, {"base": dim}, {})
                check_same_dim(collection, "base", asked=dim, existing=declared.dims["base"])
                with edge_errors(collection), disk_errors(self._folder):
                    declare(path, replace(declared, indexes={**indexes, **declared.indexes}))
                return
            if read_owner(path) is None:
                write_owner(path, owner)
        existing = self._collection(collection)
        check_same_dim(collection, "base", asked=dim, existing=existing.dims["base"])
        existing.add_indexes(indexes)

    def drop_collection(self, collection: str, *, owner: str) -> None:
        """See `VectorEngine`. A shard without a mark goes too. A kill leaves the whole collection or none."""
        check_collection_name(collection)
        path = self._folder / collection
        with self._lock:
            self._require_open()
            if read_owner(path) in (owner, None):
                self._remove(collection, path)

    def _remove(self, collection: str, path: Path) -> None:
        if collection in self._open:
            self._open.pop(collection).close()
        remove_collection(path)

    @contextmanager
    def bulk_load(self, collection: str) -> Iterator[None]:
        """See `VectorEngine`. There is no index here that could wait."""
        self._collection(collection)
        yield

    def vector_names(self, collection: str) -> set[str]:
        """See `VectorEngine`."""
        return set(self._collection(collection).dims)

    def add_vector_name(self, collection: str, name: str, *, dim: int) -> None:
        """See `VectorEngine`."""
        check_collection_name(collection)
        path = self._folder / collection
        with self._lock:
            self._require_open()
            declared = read_declaration(path)
            if declared is not None:
                check_same_dim(collection, name, asked=dim, existing=declared.dims.get(name, dim))
                with edge_errors(collection), disk_errors(self._folder):
                    declare(path, replace(declared, dims={**declared.dims, name: dim}))
                return
        self._collection(collection).add_vector_name(name, dim=dim)

    def drop_vector_name(self, collection: str, name: str) -> None:
        """See `VectorEngine`."""
        self._collection(collection).drop_vector_name(name)

    def upsert(self, collection: str, points: Points) -> None:
        """See `VectorEngine`."""
        self._collection(collection).upsert(points)

    def set_vectors(self, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """See `VectorEngine`."""
        self._collection(collection).set_vectors(name, ids, matrix)

    def payloads(self, collection: str, ids: Sequence[str]) -> dict[str, Payload]:
        """See `VectorEngine`."""
        check_ids(ids)
        return self._collection(collection).payloads(ids)

    def scroll(
        self, collection: str, name: str, *, lacking: str | None = None, batch_size: int | None = None
    ) -> Iterator[StoredVectors]:
        """See `VectorEngine`."""
        return self._collection(collection).scroll(name, lacking=lacking, batch_size=batch_size or PAGE)

    def count(self, collection: str, *, having: str | None = None) -> int:
        """See `VectorEngine`."""
        condition = None if having is None else edge.Filter(must=[edge.HasVectorCondition(having)])
        return self._collection(collection).count(condition)

    def delete(self, collection: str, *, ids: Sequence[str] = (), where: Filter | None = None) -> None:
        """See `VectorEngine`. The points that match are looked up first and deleted in batches, so no call is long."""
        check_ids(ids)
        condition = None if where is None else edge_filter(parse_filter(where))
        found = self._collection(collection)
        found.delete(ids)
        if condition is not None:
            found.delete(found.matching(condition))

    def search(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> list[Hit]:
        """See `VectorEngine`. Exact: every vector of the name is compared."""
        condition = None if where is None else edge_filter(parse_filter(where))
        return self._collection(collection).search(name, query, limit=limit, condition=condition)

    def candidates(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> StoredVectors:
        """See `VectorEngine`. Exact, as `search` is."""
        condition = None if where is None else edge_filter(parse_filter(where))
        return self._collection(collection).candidates(name, query, limit=limit, condition=condition)

    def ping(self) -> None:
        """Return when the folder is there and the engine is open."""
        with self._lock:
            self._require_open()
        if not self._folder.is_dir():
            raise Unavailable(f"The vector folder {self._folder} is gone.")

    def close(self) -> None:
        """See `VectorEngine`. Afterwards everything raises Unavailable."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close()

    def _collection(self, collection: str) -> EdgeCollection:
        check_collection_name(collection)
        with self._lock:
            self._require_open()
            if collection not in self._open:
                path = self._folder / collection
                declared = read_declaration(path)
                if declared is not None:
                    with edge_errors(collection), disk_errors(self._folder):
                        create_shard(path, declared)
                elif not path.exists():
                    raise NotFound(f"There is no collection {collection!r} in the vector database.")
                self._open[collection] = EdgeCollection(collection, path)
            return self._open[collection]

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The vector engine is closed.")
