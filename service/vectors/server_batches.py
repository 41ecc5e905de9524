"""How many points go into one request to a Qdrant server: bounded by their number and by the bytes of their JSON."""

from collections.abc import Iterable, Iterator

import orjson

from service.vectors.engine import Points

POINTS = 256  # A request: Qdrant recommends 64 to 256.
BYTES = 4_000_000  # A request, about. A server takes 32 MB, but has to hold several requests at once.
_BYTES_PER_NUMBER = 22  # A number of a unit vector with 17 digits, its sign and its comma.


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


def vector_size(dim: int) -> int:
    """About how many bytes of JSON an id with `dim` numbers takes."""
    return 40 + _BYTES_PER_NUMBER * dim
