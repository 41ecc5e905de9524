"""One open Edge shard: the reads and writes of one collection.

Edge's calls hold the GIL from begin to end, so they never run at once and a long one stops the API: everything goes in
batches. The lock keeps only what takes two calls together (look, then write). Never call `optimize()`: 2 s for 15,000
points, with every thread standing still. So there is no HNSW, a search reads all vectors (2.8 ms at 50,000 x 384, 11 ms
at 200,000), and the space of deleted points is not given back.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import cast
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from service.errors import InvalidRequest, NotFound, Unavailable
from service.vectors.edge_files import INDEX_TYPES, fsync_data, fsync_log
from service.vectors.edge_payloads import from_stored, to_stored
from service.vectors.engine import FieldType, Hit, Matrix, Payload, Points, StoredVectors
from service.vectors.refusals import check_ids, check_matrix, check_points, check_query, check_same_dim, dim_of

Update = edge.UpdateOperation
PointId = int | UUID | str  # edge.PointId exists for type checkers only.

BATCH = 100  # Points a call: API p99 beside it 18 ms, against 30 ms with 1,000, at the same rate.
# Points of a scroll: its one call holds every thread for 2 ms; 4,000 at a time were no faster, and 7 ms.
PAGE = 1000
FLUSH_EVERY = 10_000  # Points: bounds the log and the time to reopen after a kill (0.8 s) while a flush stays rare.


class EdgeCollection:
    """An open shard in the folder `path`. `close` it before the folder moves; afterwards everything raises Unavailable."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._writing = Lock()
        self._unflushed = 0
        with edge_errors(name):
            self._shard = edge.EdgeShard.load(str(path))
        self._dims = _read_dims(path)

    @property
    def dims(self) -> Mapping[str, int]:
        """The dimension of every named vector."""
        return self._dims

    def add_indexes(self, indexes: Mapping[str, FieldType]) -> None:
        """Make the missing payload indexes. With points there that stops the process: 0.28 s at 50,000, 4.7 s at a million."""
        with self._writing, edge_errors(self._name):
            missing = indexes.keys() - self._shard.info().payload_schema.keys()
            for field in sorted(missing):
                self._shard.update(Update.create_field_index(field, INDEX_TYPES[indexes[field]]))
            if missing:
                self._flush()

    def add_vector_name(self, name: str, *, dim: int) -> None:
        """Add an empty named vector. It takes its whole storage at once: 0.27 s at 50,000 points of 384."""
        with self._writing, edge_errors(self._name):
            if name in self._dims:
                check_same_dim(self._name, name, asked=dim, existing=self._dims[name])
                return
            self._shard.update(Update.create_dense_vector(name, dim, edge.Distance.Dot))
            self._flush()
            self._dims = {**self._dims, name: dim}

    def drop_vector_name(self, name: str) -> None:
        """Remove a named vector and its values."""
        with self._writing, edge_errors(self._name):
            # Without this flush a kill loses whole points: the log is replayed against the names there are at the end, and an
            # upsert that wrote the dropped name is then refused.
            self._flush()
            self._dims = {kept: dim for kept, dim in self._dims.items() if kept != name}
            self._shard.update(Update.delete_vector_name(name))
            self._flush()

    def upsert(self, points: Points) -> None:
        """Check all points, then write them."""
        with self._writing:
            # The check needs the lock: an upsert that Edge refuses for a name just dropped has already replaced its first point.
            check_points(points, collection=self._name, dims=self._dims)
            with edge_errors(self._name):
                for rows in _batches(len(points.ids)):
                    self._shard.update(Update.upsert_points(_edge_points(points, rows)))
                self._settle(len(points.ids))

    def set_vectors(self, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """Set one named vector of those of the points that exist."""
        with self._writing:
            check_ids(ids)
            check_matrix(matrix, rows=len(ids), name=name, dim=dim_of(name, collection=self._name, dims=self._dims))
            with edge_errors(self._name):
                for rows in _batches(len(ids)):
                    self._set_batch(name, ids[rows], matrix[rows])
                self._settle(len(ids))

    def _set_batch(self, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        # Edge raises for a missing id, after it has written the others: leave the missing ones out first.
        found = self._shard.retrieve(list[PointId](ids), False, False)
        present = set(ids) if len(found) == len(ids) else {str(record.id) for record in found}
        # A row at a time: numbers that are freed at once are made again in the same memory, at half the time.
        changes = [edge.PointVectors(i, {name: row.tolist()}) for i, row in zip(ids, matrix, strict=True) if i in present]
        if changes:
            self._shard.update(Update.update_vectors(changes))

    def delete(self, ids: Iterable[str]) -> None:
        """Delete those of the points that exist."""
        remaining = iter(ids)
        while batch := list(islice(remaining, BATCH)):
            with self._writing, edge_errors(self._name):
                self._shard.update(Update.delete_points(list[PointId](batch)))
                self._settle(len(batch))

    def matching(self, condition: edge.Filter) -> Iterator[str]:
        """The ids of the points that the filter matches. They may be deleted as they come."""
        for records in self._pages(condition, vector=None, batch_size=BATCH):
            yield from (str(record.id) for record in records)

    def payloads(self, ids: Sequence[str]) -> dict[str, Payload]:
        """The payloads of those of the points that exist, by id."""
        found: dict[str, Payload] = {}
        with edge_errors(self._name):
            for rows in _batches(len(ids)):
                records = self._shard.retrieve(list[PointId](ids[rows]), True, False)
                found |= {str(record.id): from_stored(record.payload or {}) for record in records}
        return found

    def scroll(self, name: str, *, lacking: str | None, batch_size: int) -> Iterator[StoredVectors]:
        """All points that have the named vector, and not `lacking`, ordered by id."""
        dim = dim_of(name, collection=self._name, dims=self._dims)
        without: list[edge.ConditionType] = [] if lacking is None else [edge.HasVectorCondition(lacking)]
        condition = edge.Filter(must=[edge.HasVectorCondition(name)], must_not=without)
        pages = self._pages(condition, vector=name, batch_size=batch_size)
        return (_stored_vectors(records, name, dim=dim) for records in pages)

    def _pages(self, condition: edge.Filter, *, vector: str | None, batch_size: int) -> Iterator[list[edge.Record]]:
        asked = False if vector is None else [vector]
        offset: PointId | None = None
        while True:
            with edge_errors(self._name):
                records, offset = self._shard.scroll(
                    edge.ScrollRequest(offset=offset, limit=batch_size, filter=condition, with_payload=False, with_vector=asked)
                )
            if records:
                yield records
            if offset is None:
                return

    def count(self, condition: edge.Filter | None) -> int:
        """The exact number of points that match."""
        with edge_errors(self._name):
            return self._shard.count(edge.CountRequest(exact=True, filter=condition))

    def search(self, name: str, query: NDArray[np.float32], *, limit: int, condition: edge.Filter | None) -> list[Hit]:
        """The `limit` points with the largest inner product, best first."""
        found = self._nearest(name, query, limit=limit, condition=condition, vectors=False)
        return [Hit(str(point.id), point.score, from_stored(point.payload or {})) for point in found]

    def candidates(self, name: str, query: NDArray[np.float32], *, limit: int, condition: edge.Filter | None) -> StoredVectors:
        """What `search` finds, as ids and stored vectors, best first."""
        dim = dim_of(name, collection=self._name, dims=self._dims)
        return _stored_vectors(self._nearest(name, query, limit=limit, condition=condition, vectors=True), name, dim=dim)

    def _nearest(
        self, name: str, query: NDArray[np.float32], *, limit: int, condition: edge.Filter | None, vectors: bool
    ) -> list[edge.ScoredPoint]:
        """The nearest points, with their stored vectors or else with their payloads."""
        check_query(query, name=name, limit=limit)
        nearest = edge.Query.Nearest(query.tolist(), using=name)
        asked = [name] if vectors else False
        request = edge.QueryRequest(limit=limit, query=nearest, filter=condition, with_payload=not vectors, with_vector=asked)
        with edge_errors(self._name):
            return self._shard.query(request)

    def close(self) -> None:
        """Flush and give the folder back."""
        with self._writing, edge_errors(self._name):
            self._shard.flush()
            self._shard.close()

    def _settle(self, written: int) -> None:
        self._unflushed += written
        if self._unflushed >= FLUSH_EVERY:
            fsync_data(self._path)
            self._flush()
        else:
            fsync_log(self._path)

    def _flush(self) -> None:
        self._shard.flush()
        self._unflushed = 0


@contextmanager
def edge_errors(collection: str) -> Iterator[None]:
    """Give Edge's errors the service's types. Edge raises ValueError for what it cannot read, bare Exception for the rest."""
    try:
        yield
    except Exception as error:
        if type(error) not in (Exception, ValueError):
            raise
        if str(error).startswith("Not existing vector name"):
            raise NotFound(f"Collection {collection!r}: {error}.") from error
        if str(error).startswith(("Service ", "Out of memory")):
            raise Unavailable(f"Collection {collection!r} does not answer: {error}.") from error
        raise InvalidRequest(f"Collection {collection!r} refuses this: {error}.") from error


def _read_dims(path: Path) -> dict[str, int]:
    """The dimension of every named vector. Edge's Python binding does not tell, its own configuration file does."""
    config = json.loads((path / "edge_config.json").read_bytes())
    return {name: vector["size"] for name, vector in config["vectors"].items()}


def _batches(total: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, total, BATCH))


def _edge_points(points: Points, rows: slice) -> list[edge.Point]:
    batch = zip(range(rows.start, rows.stop), points.ids[rows], points.payloads[rows], strict=False)  # the last one is shorter
    return [
        edge.Point(i, {name: matrix[row].tolist() for name, matrix in points.vectors.items()}, to_stored(payload))
        for row, i, payload in batch
    ]


def _stored_vectors(records: Sequence[edge.Record | edge.ScoredPoint], name: str, *, dim: int) -> StoredVectors:
    matrix = np.empty((len(records), dim), np.float32)
    row = struct.Struct(f"{dim}f")  # It takes a list's numbers in a third of the time of np.array.
    for place, record in enumerate(records):
        row.pack_into(matrix.data, place * row.size, *cast("dict[str, list[float]]", record.vector)[name])
    return StoredVectors([str(record.id) for record in records], matrix)
