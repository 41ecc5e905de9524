"""Vectors on their way to a Qdrant server: how many go into one request, and their JSON.

A request is bounded by its points and by its bytes. Its JSON is made here and not by qdrant-client, which takes three times the
processor time: it makes a Python number of each float32, then 17 digits of it, where 9 at most are exact.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import orjson
from qdrant_client import QdrantClient
from qdrant_client.http.models import InlineResponse2008

from service.vectors.engine import Matrix, Points

POINTS = 256  # A request: Qdrant recommends 64 to 256.
BYTES = 4_000_000  # A request, about. A server takes 32 MB, but has to hold several requests at once.
_BYTES_PER_NUMBER = 13  # A number of a unit vector with 9 digits, its sign and its comma.


def batches(sizes: Iterable[int]) -> Iterator[slice]:
    """Cut the rows into slices of at most POINTS rows and BYTES bytes. sizes: bytes of each row; a larger row goes alone."""
    start = end = held = 0
    for size in sizes:
        if end > start and (end - start == POINTS or held + size > BYTES):
            yield slice(start, end)
            start, held = end, 0
        end, held = end + 1, held + size
    if end > start:
        yield slice(start, end)


def point_sizes(points: Points) -> Iterator[int]:
    """About how many bytes of JSON each point takes."""
    vectors = vector_size(sum(matrix.shape[1] for matrix in points.vectors.values()))
    return (vectors + len(orjson.dumps(payload)) for payload in points.payloads)


def put_points(client: QdrantClient, collection: str, points: Points, rows: slice) -> None:
    """Write these rows of the points whole. Returns when they are applied; raises what the client raises."""
    vectors = {name: np.ascontiguousarray(matrix[rows]) for name, matrix in points.vectors.items()}
    batch = {"ids": list(points.ids[rows]), "vectors": vectors, "payloads": list(points.payloads[rows])}
    _put(client, "/collections/{collection_name}/points", collection, {"batch": batch})


def put_vectors(client: QdrantClient, collection: str, name: str, ids: Sequence[str], matrix: Matrix) -> None:
    """Set one named vector of the points, which are all there. Returns when it is applied; raises what the client raises."""
    rows = zip(ids, np.ascontiguousarray(matrix), strict=True)
    changes = [{"id": point_id, "vector": {name: row}} for point_id, row in rows]
    _put(client, "/collections/{collection_name}/points/vectors", collection, {"points": changes})


def _put(client: QdrantClient, path: str, collection: str, body: object) -> None:
    client.http.client.request(
        type_=InlineResponse2008,
        method="PUT",
        url=path,
        path_params={"collection_name": collection},
        params={"wait": "true"},
        headers={"Content-Type": "application/json"},
        content=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
    )


def vector_size(dim: int) -> int:
    """About how many bytes of JSON an id with `dim` numbers takes."""
    return 40 + _BYTES_PER_NUMBER * dim
