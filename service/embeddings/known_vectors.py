"""Base vectors of what was asked for last, in memory: a question that comes again costs no pass."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zerogate.encoder_files import Role

Lane = tuple[str, Role]
"""An encoder's fingerprint and a role."""

_Key = tuple[Lane, bytes]

_BYTES_OF_AN_ENTRY = 300  # Python's objects around the numbers, about


class KnownVectors:
    """Vectors by encoder, role and tokens, up to so many bytes; the oldest go first. Safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[_Key, NDArray[np.float32]] = OrderedDict()  # the last used stands last
        self._lock = threading.Lock()

    def get(self, lane: Lane, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32] | None]:
        """The base vector, (dim,) float32, of each row of tokens, or None."""
        keys = [_key(lane, row) for row in rows]
        with self._lock:
            found = [self._known.get(key) for key in keys]
            for key, vector in zip(keys, found, strict=True):
                if vector is not None:
                    self._known.move_to_end(key)
        return found

    def put(self, lane: Lane, rows: Sequence[Sequence[int]], vectors: NDArray[np.float32]) -> None:
        """Remember the rows of vectors, (n, dim) float32."""
        keys = [_key(lane, row) for row in rows]
        with self._lock:
            for key, vector in zip(keys, vectors, strict=True):
                if key not in self._known:
                    self._known[key] = vector.copy()  # a row alone: the matrix it stands in may go
                    self._bytes += _size(key, vector)
            while self._bytes > self._max_bytes and self._known:
                self._bytes -= _size(*self._known.popitem(last=False))


def _key(lane: Lane, row: Sequence[int]) -> _Key:
    # A model that reads more than ids (or no ids at all) is given rows that carry their texts.
    text: str = getattr(row, "text", "")
    return lane, np.asarray(row, dtype=np.uint32).tobytes() + text.encode()


def _size(key: _Key, vector: NDArray[np.float32]) -> int:
    return vector.nbytes + len(key[1]) + _BYTES_OF_AN_ENTRY
