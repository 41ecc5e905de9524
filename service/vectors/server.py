"""A Qdrant server (1.18 or newer) through qdrant-client.

Every write waits until the server has applied it (`wait=True`): without that, a server acknowledges points and then drops bad
ones silently. Durability is the server's: its log survives a killed process. A request that is too long for the server, or
cut off, may have been applied; all of them may be sent again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import cast

import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from service.errors import NotFound
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
from service.vectors.refusals import (
    check_collection_name,
    check_ids,
    check_matrix,
    check_points,
    check_query,
    check_same_dim,
    dim_of,
)
from service.vectors.server_batches import batches, point_sizes, put_points, put_vectors, vector_size
from service.vectors.server_collections import dims_of, drop_collection, ensure_collection, without_indexing
from service.vectors.server_errors import server_errors

TIMEOUT_SECONDS = 60  # Of an answer: waiting writes take longer than httpx's 5 seconds.
CONNECT_SECONDS = 3.0  # A server that is up takes a connection at once, however busy it is.
PING_SECONDS = 3
PAGE = 1000  # Points of a scroll: 8 MB of JSON with 384 numbers each.
ATTEMPTS = 3  # Of setting vectors while somebody else deletes points.
# Where a collection is quantized, twice as many points as asked for are scored again with the stored vectors, so that scores
# are exact; elsewhere the server passes this over.
SEARCH_PARAMS = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))


class ServerEngine:
    """`VectorEngine` over a client, which it closes. pinger: the client that only pings, if not the same."""

    def __init__(self, client: QdrantClient, *, pinger: QdrantClient | None = None) -> None:
        self._client = client
        self._pinger = pinger or client

    @classmethod
    def connect(cls, url: str, *, api_key: str | None = None) -> "ServerEngine":
        """Give an engine for the server at url. Connects at the first use, so a server that is down raises Unavailable then.

        Such a server is noticed within CONNECT_SECONDS. An answer may take TIMEOUT_SECONDS, that to a ping PING_SECONDS; a
        client has one time-out for all its answers, therefore two clients.
        """
        return cls(
            _client(url, api_key=api_key, timeout_seconds=TIMEOUT_SECONDS),
            pinger=_client(url, api_key=api_key, timeout_seconds=PING_SECONDS),
        )

    def create_collection(
        self,
        collection: str,
        *,
        dim: int,
        indexes: Mapping[str, FieldType],
        owner: str,
        settings: IndexSettings = DEFAULT_INDEX,
    ) -> None:
        """See `VectorEngine`. A kill between its requests leaves a collection of this owner, which the next call completes."""
        check_collection_name(collection)
        ensure_collection(self._client, collection, dim=dim, indexes=indexes, owner=owner, settings=settings)

    def drop_collection(self, collection: str, *, owner: str) -> None:
        """See `VectorEngine`."""
        drop_collection(self._client, collection, owner=owner)

    def bulk_load(self, collection: str) -> AbstractContextManager[None]:
        """See `VectorEngine`. Where the process is killed inside, the server builds no index until this is entered and left."""
        return without_indexing(self._client, collection)

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
        for rows in batches(point_sizes(points)):
            with server_errors(collection):
                put_points(self._client, collection, points, rows)

    def set_vectors(self, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """See `VectorEngine`."""
        check_ids(ids)
        dims = self._dims(collection)
        check_matrix(matrix, rows=len(ids), name=name, dim=dim_of(name, collection=collection, dims=dims))
        for rows in batches([vector_size(dims[name])] * len(ids)):
            self._set_batch(collection, name, ids[rows], matrix[rows])

    def _set_batch(self, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
        """Set the vectors of the points that exist. Points that others delete meanwhile make the server refuse: look again."""
        for attempt in range(ATTEMPTS):
            with server_errors(collection):
                found = self._client.retrieve(collection, list(ids), with_payload=False, with_vectors=False)
            there = {str(record.id) for record in found}
            present = [row for row, point_id in enumerate(ids) if point_id in there]
            try:
                with server_errors(collection):
                    if present:
                        put_vectors(self._client, collection, name, [ids[row] for row in present], matrix[present])
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

    def scroll(
        self, collection: str, name: str, *, lacking: str | None = None, batch_size: int | None = None
    ) -> Iterator[StoredVectors]:
        """See `VectorEngine`."""
        dim = dim_of(name, collection=collection, dims=self._dims(collection))
        return self._pages(collection, name, lacking=lacking, dim=dim, batch_size=batch_size or PAGE)

    def _pages(self, collection: str, name: str, *, lacking: str | None, dim: int, batch_size: int) -> Iterator[StoredVectors]:
        offset: models.ExtendedPointId | None = None
        while True:
            with server_errors(collection):
                records, offset = self._client.scroll(
                    collection,
                    scroll_filter=_having(name, lacking=lacking),
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
        """See `VectorEngine`. Approximate where the server has an HNSW graph or quantized vectors. It checks the dimension."""
        found = self._nearest(collection, name, query, limit=limit, where=where, with_payload=True)
        return [Hit(str(point.id), point.score, point.payload or {}) for point in found]

    def candidates(
        self, collection: str, name: str, query: NDArray[np.float32], *, limit: int, where: Filter | None = None
    ) -> StoredVectors:
        """See `VectorEngine`. Approximate where `search` is. The server checks the dimension."""
        found = self._nearest(collection, name, query, limit=limit, where=where, with_vectors=[name])
        matrix = np.array([_vector(point, name) for point in found], dtype=np.float32)
        return StoredVectors([str(point.id) for point in found], matrix.reshape(len(found), len(query)))

    def _nearest(
        self,
        collection: str,
        name: str,
        query: NDArray[np.float32],
        *,
        limit: int,
        where: Filter | None,
        with_payload: bool = False,
        with_vectors: bool | list[str] = False,
    ) -> list[models.ScoredPoint]:
        """The nearest points, best first. Raises as `search` does."""
        check_query(query, name=name, limit=limit)
        condition = None if where is None else parse_filter(where)
        with server_errors(collection):
            found = self._client.query_points(
                collection,
                query=query.tolist(),
                using=name,
                query_filter=condition,
                search_params=SEARCH_PARAMS,
                limit=limit,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
        return found.points

    def ping(self) -> None:
        """See `VectorEngine`. Asks for a collection, because a server answers its version and health without a key."""
        with server_errors("ping"):
            self._pinger.collection_exists("ping")

    def close(self) -> None:
        """See `VectorEngine`."""
        self._client.close()
        self._pinger.close()

    def _dims(self, collection: str) -> dict[str, int]:
        """The dimension of every named vector. Asked anew at each call, because other processes add and drop names."""
        with server_errors(collection):
            info = self._client.get_collection(collection)
        return dims_of(collection, info)


def _client(url: str, *, api_key: str | None, timeout_seconds: int) -> QdrantClient:
    return QdrantClient(
        url=url,
        api_key=api_key,
        timeout=timeout_seconds,
        # It would be one request at start, in a thread of its own that only warns.
        check_compatibility=False,
        event_hooks={"request": [_connect_fast]},
    )


def _connect_fast(request: httpx.Request) -> None:
    """The client has one time-out, in whole seconds, for connecting as for answers."""
    request.extensions["timeout"]["connect"] = CONNECT_SECONDS


def _having(name: str, *, lacking: str | None = None) -> models.Filter:
    without = None if lacking is None else [models.HasVectorCondition(has_vector=lacking)]
    return models.Filter(must=[models.HasVectorCondition(has_vector=name)], must_not=without)


def _vector(record: models.Record | models.ScoredPoint, name: str) -> list[float]:
    return cast("dict[str, list[float]]", record.vector)[name]
