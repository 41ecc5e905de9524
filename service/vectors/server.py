"""A Qdrant server (1.18 or newer) through qdrant-client; `QdrantClient(":memory:")` works as well, for tests.

Every write waits until the server has applied it (`wait=True`): without that, a server acknowledges points and then drops bad
ones silently. Durability is the server's: its log survives a killed process.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from service.errors import InvalidRequest, NotFound
from service.vectors.engine import FieldType, Filter, Hit, Matrix, Payload, Points, StoredVectors
from service.vectors.filters import parse_filter
from service.vectors.refusals import (
    check_collection_name,
    check_ids,
    check_matrix,
    check_points,
    check_query,
    check_same_dim,
    dim_of,
)
from service.vectors.server_errors import server_errors

BATCH = 100  # Points a request: Qdrant recommends 64 to 256.
TIMEOUT_SECONDS = 60  # Waiting writes take longer than httpx's 5 seconds.
ATTEMPTS = 3  # Of setting vectors while somebody else deletes points.
INDEX_TYPES: dict[FieldType, models.PayloadSchemaType] = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
    "datetime": models.PayloadSchemaType.DATETIME,
    "text": models.PayloadSchemaType.TEXT,
}


class ServerEngine:
    """`VectorEngine` over a client, which it closes."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, url: str, *, api_key: str | None = None) -> "ServerEngine":
        """Give an engine for the server at url. Connects at the first use, so a server that is down raises Unavailable then."""
        # The compatibility check would be one request at start, in a thread of its own that only warns.
        client = QdrantClient(url=url, api_key=api_key, timeout=TIMEOUT_SECONDS, check_compatibility=False)
        return cls(client)

    def create_collection(self, collection: str, *, dim: int, indexes: Mapping[str, FieldType]) -> None:
        """See `VectorEngine`. Indexes that a killed or a second creator has not made yet are made."""
        check_collection_name(collection)
        vectors = {"base": models.VectorParams(size=dim, distance=models.Distance.DOT)}
        with server_errors(collection):
            if not self._client.collection_exists(collection):
                self._create_unless_there(collection, vectors)
            indexed = self._client.get_collection(collection).payload_schema
            for field in indexes.keys() - indexed.keys():
                self._client.create_payload_index(collection, field, INDEX_TYPES[indexes[field]], wait=True)
        check_same_dim(collection, "base", asked=dim, existing=self._dims(collection)["base"])

    def _create_unless_there(self, collection: str, vectors: Mapping[str, models.VectorParams]) -> None:
        try:
            self._client.create_collection(collection, vectors_config=vectors)
        except UnexpectedResponse:
            # Another process was faster, which is as good.
            if not self._client.collection_exists(collection):
                raise

    def drop_collection(self, collection: str) -> None:
        """See `VectorEngine`."""
        with server_errors(collection):
            self._client.delete_collection(collection)

    def vector_names(self, collection: str) -> set[str]:
        """See `VectorEngine`."""
        return set(self._dims(collection))

    def add_vector_name(self, collection: str, name: str, *, dim: int) -> None:
        """See `VectorEngine`."""
        dims = self._dims(collection)
        if name in dims:
            check_same_dim(collection, name, asked=dim, existing=dims[name])
            return
        dense = models.DenseVectorConfig(size=dim, distance=models.Distance.DOT)
        with server_errors(collection):
            self._client.create_vector_name(collection, name, models.DenseVectorNameConfig(dense=dense), wait=True)

    def drop_vector_name(self, collection: str, name: str) -> None:
        """See `VectorEngine`."""
        if name in self._dims(collection):
            with server_errors(collection):
                self._client.delete_vector_name(collection, name, wait=True)

    def upsert(self, collection: str, points: Points) -> None:
        """See `VectorEngine`."""
        check_points(points, collection=collection, dims=self._dims(collection))
        for start in range(0, len(points.ids), BATCH):
            rows = slice(start, start + BATCH)
            batch = models.Batch(
                ids=list(points.ids[rows]),
                vectors={name: matrix[rows].tolist() for name, matrix in points.vectors.items()},
                payloads=list(points.payloads[rows]),
            )
            with server_errors(collection):
                self._client.upsert(collection, batch, wait=True)

    def set_vectors(self, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """See `VectorEngine`."""
        check_ids(ids)
        dims = self._dims(collection)
        check_matrix(matrix, rows=len(ids), name=name, dim=dim_of(name, collection=collection, dims=dims))
        for start in range(0, len(ids), BATCH):
            rows = slice(start, start + BATCH)
            self._set_batch(collection, name, dict(zip(ids[rows], matrix[rows].tolist(), strict=True)))

    def _set_batch(self, collection: str, name: str, vectors: Mapping[str, list[float]]) -> None:
        """Set the vectors of the points that exist. Points that others delete meanwhile make the server refuse: look again."""
        for attempt in range(ATTEMPTS):
            with server_errors(collection):
                found = self._client.retrieve(collection, list(vectors), with_payload=False, with_vectors=False)
            present = [str(record.id) for record in found]
            changes = [models.PointVectors(id=i, vector={name: vectors[i]}) for i in present]
            try:
                with server_errors(collection):
                    if changes:
                        self._client.update_vectors(collection, changes, wait=True)
                return
            except NotFound as error:
                if "No point with id" not in error.message or attempt == ATTEMPTS - 1:
                    raise

    def payloads(self, collection: str, ids: Sequence[str]) -> dict[str, Payload]:
        """See `VectorEngine`."""
        check_ids(ids)
        with server_errors(collection):
            records = self._client.retrieve(collection, list(ids), with_payload=True, with_vectors=False)
        return {str(record.id): record.payload or {} for record in records}

    def scroll(self, collection: str, name: str, *, batch_size: int = 1000) -> Iterator[StoredVectors]:
        """See `VectorEngine`."""
        dim = dim_of(name, collection=collection, dims=self._dims(collection))
        return self._pages(collection, name, dim=dim, batch_size=batch_size)

    def _pages(self, collection: str, name: str, *, dim: int, batch_size: int) -> Iterator[StoredVectors]:
        offset: models.ExtendedPointId | None = None
        while True:
            with server_errors(collection):
                records, offset = self._client.scroll(
                    collection,
                    scroll_filter=_having(name),
                    limit=batch_size,
                    offset=offset,
                    with_payload=False,
                    with_vectors=[name],
                )
            if records:
                matrix = np.array([_vector(record, name) for record in records], dtype=np.float32)
                yield StoredVectors([str(record.id) for record in records], matrix.reshape(len(records), dim))
            if offset is None:
                return

    def count(self, collection: str, *, having: str | None = None) -> int:
        """See `VectorEngine`."""
        with server_errors(collection):
            condition = None if having is None else _having(having)
            return self._client.count(collection, count_filter=condition, exact=True).count

    def delete(self, collection: str, *, ids: Sequence[str] = (), where: Filter | None = None) -> None:
        """See `VectorEngine`."""
        check_ids(ids)
        condition = None if where is None else parse_filter(where)
        with server_errors(collection):
            if ids:
                self._client.delete(collection, models.PointIdsList(points=list(ids)), wait=True)
            if condition is not None:
                self._client.delete(collection, models.FilterSelector(filter=condition), wait=True)

    def search(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> list[Hit]:
        """See `VectorEngine`. Approximate where the server has built an HNSW index. The server checks the dimension."""
        check_query(query, name=name, limit=limit)
        condition = None if where is None else parse_filter(where)
        with server_errors(collection):
            found = self._client.query_points(
                collection, query=query.tolist(), using=name, query_filter=condition, limit=limit, with_payload=True
            )
        return [Hit(str(point.id), point.score, point.payload or {}) for point in found.points]

    def ping(self) -> None:
        """See `VectorEngine`. Asks for a collection, because a server answers its version and health without a key."""
        with server_errors("ping"):
            self._client.collection_exists("ping")

    def close(self) -> None:
        """See `VectorEngine`."""
        self._client.close()

    def _dims(self, collection: str) -> dict[str, int]:
        """The dimension of every named vector. Asked anew each time, because other processes add and drop names."""
        with server_errors(collection):
            vectors = self._client.get_collection(collection).config.params.vectors
        if not isinstance(vectors, dict):
            raise InvalidRequest(f"Collection {collection!r} was made without named vectors, so not by this service.")
        return {name: vector.size for name, vector in vectors.items()}


def _having(name: str) -> models.Filter:
    return models.Filter(must=[models.HasVectorCondition(has_vector=name)])


def _vector(record: models.Record, name: str) -> list[float]:
    return cast("dict[str, list[float]]", record.vector)[name]
