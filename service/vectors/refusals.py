"""What both engines refuse before anything is written: wrong shapes, numbers that are not finite, payloads that are not JSON.

Qdrant Edge stores NaN without a word, and a payload nested deeper than about 127 makes an Edge shard unreadable after a
crash (its log refuses to be replayed). A server refuses some of this itself, but not all, and words it differently.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest, NotFound
from service.vectors.engine import Matrix, Points

MAX_DEPTH = 64  # Half of what Edge's log can read back.
COLLECTION_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_collection_name(collection: str) -> None:
    """Raise InvalidRequest unless the name is safe as a folder name and in a URL."""
    if not COLLECTION_NAME.fullmatch(collection):
        raise InvalidRequest(
            f"{collection!r} is not a name for a collection: 1 to 200 letters, digits, '_', '-' and '.' are allowed, "
            "and the first is no '-' or '.'."
        )


def check_same_dim(collection: str, name: str, *, asked: int, existing: int) -> None:
    """Raise InvalidRequest when a named vector exists already with another dimension."""
    if asked != existing:
        raise InvalidRequest(f"Vector {name!r} of collection {collection!r} has dimension {existing}, not {asked}.")


def check_points(points: Points, *, collection: str, dims: Mapping[str, int]) -> None:
    """Raise unless every row of the batch may be stored. dims: the dimension of each named vector of the collection."""
    if len(points.payloads) != len(points.ids):
        raise ValueError(f"{len(points.ids)} ids came with {len(points.payloads)} payloads.")
    check_ids(points.ids)
    for name, matrix in points.vectors.items():
        check_matrix(matrix, rows=len(points.ids), name=name, dim=dim_of(name, collection=collection, dims=dims))
    for payload in points.payloads:
        _check_json(payload, at="payload", depth=0)


def check_ids(ids: Sequence[str]) -> None:
    """Raise InvalidRequest unless every id is a UUID as `str(uuid)` writes it, which is how ids are handed out."""
    for point_id in ids:
        if not is_uuid(point_id):
            raise InvalidRequest(f"Point id {point_id!r} is not a UUID in the form of {UUID(int=0)}, in small letters.")


def is_uuid(text: str) -> bool:
    """Whether text is a UUID as `str(uuid)` writes it."""
    return UUID_FORM.fullmatch(text) is not None


def dim_of(name: str, *, collection: str, dims: Mapping[str, int]) -> int:
    """Give the dimension of a named vector. Raises NotFound that lists the names there are."""
    if name not in dims:
        raise NotFound(f"Collection {collection!r} has no vector {name!r}; it has {', '.join(sorted(dims))}.")
    return dims[name]


def check_matrix(matrix: Matrix, *, rows: int, name: str, dim: int) -> None:
    """Raise InvalidRequest unless matrix is finite and (rows, dim); ValueError when our own code passed other rows or dtypes."""
    if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != rows:
        raise ValueError(f"Vector {name!r} needs ({rows}, {dim}) float32, found {matrix.shape} {matrix.dtype}.")
    if matrix.shape[1] != dim:
        raise InvalidRequest(f"Vector {name!r} has dimension {dim}, found {matrix.shape[1]}.")
    _check_finite(matrix, name=name)


def check_query(query: NDArray[np.float32], *, name: str, limit: int) -> None:
    """Raise InvalidRequest unless query is one vector of finite numbers and limit is at least 1."""
    if query.ndim != 1:
        raise InvalidRequest(f"A query is one vector, found an array of shape {query.shape}.")
    _check_finite(query, name=name)
    if limit < 1:
        raise InvalidRequest(f"A search gives at least 1 point, asked for {limit}.", param="limit")


def _check_finite(numbers: NDArray[np.float32], *, name: str) -> None:
    if not np.isfinite(numbers).all():
        raise InvalidRequest(f"Vector {name!r} holds NaN or infinity; only finite numbers are stored and searched.")


def _check_json(value: Any, *, at: str, depth: int) -> None:
    """Raise InvalidRequest unless value comes back from any engine exactly as it is."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"The payload is nested deeper than {MAX_DEPTH} levels.", param=at)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not _is_utf8(key):
                raise InvalidRequest(f"The payload has the key {key!r}; keys are text in UTF-8.", param=at)
            _check_json(item, at=f"{at}.{key}", depth=depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, at=f"{at}[]", depth=depth + 1)
    elif not _is_json_leaf(value):
        raise InvalidRequest(
            f"The payload holds {value!r}; allowed are null, booleans, text in UTF-8, finite numbers, "
            "integers from -2^63 to 2^64-1, arrays and objects.",
            param=at,
        )


def _is_json_leaf(value: Any) -> bool:
    match value:
        case None | bool():
            return True
        case str():
            return _is_utf8(value)
        case int():
            # Beyond these bounds an engine turns the integer into a float that is no longer equal to it.
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
    return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
