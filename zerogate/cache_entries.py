"""What one entry of the embedding cache is, as bytes: a vector and its checksum. All entries of a call are handled as one array.

An entry is the vector (dim float32, little-endian), filled with zeros to a multiple of 8 bytes, and 8 bytes of checksum. Entries
of earlier releases have 4 bytes of CRC-32 instead; they are told apart by their lengths and stay valid.
"""

import hashlib
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_CRC_BYTES = 4


def checksums(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A checksum of every row of vectors, (n, dim) little-endian float32 with rows in one piece: (n,) uint64.

    The words of a row times odd constants, summed modulo 2**64: a change of one word always shows, a change of several stays
    hidden with a chance of about 2**-64. NumPy takes all rows at once, where a CRC must be asked for row by row.
    """
    dim = vectors.shape[1]
    even = vectors if dim % 2 == 0 else np.pad(vectors, ((0, 0), (0, 1)))
    return _sums(even.view("<u8"), dim)


def pack(vectors: NDArray[np.float32]) -> list[memoryview]:
    """The entries of the rows of vectors, (n, dim) float32."""
    count, dim = vectors.shape
    size = _entry_bytes(dim)
    packed = np.zeros((count, size // 8), dtype="<u8")
    packed.view("<f4")[:, :dim] = vectors
    packed[:, -1] = _sums(packed[:, :-1], dim)
    whole = memoryview(packed.tobytes())
    return [whole[start : start + size] for start in range(0, count * size, size)]


def unpack(entries: Sequence[memoryview | None], vectors: NDArray[np.float32], found: NDArray[np.bool_]) -> None:
    """Write the vectors of the whole entries into their rows of vectors, (n, dim) float32, and True into those of found, (n,).

    A damaged entry, one of another dimension and None leave their rows as they are.
    """
    dim = vectors.shape[1]
    size = _entry_bytes(dim)
    rows = [row for row, entry in enumerate(entries) if entry is not None and len(entry) == size]
    packed = np.frombuffer(b"".join([entries[row] for row in rows]), dtype="<u8").reshape(len(rows), size // 8)  # type: ignore[misc]
    stored = packed.view("<f4")
    whole = _sums(packed[:, :-1], dim) == packed[:, -1]
    if len(rows) == len(entries) and whole.all():  # nearly always: one copy, without a list of places
        vectors[:] = stored[:, :dim]
        found[:] = True
        return
    places = np.asarray(rows, dtype=np.intp)[whole]
    vectors[places] = stored[whole, :dim]
    found[places] = True
    for row, entry in enumerate(entries):
        if entry is not None and len(entry) == 4 * dim + _CRC_BYTES:
            body = entry[:-_CRC_BYTES]
            if zlib.crc32(body) == int.from_bytes(entry[-_CRC_BYTES:], "little"):
                vectors[row] = np.frombuffer(body, dtype="<f4")
                found[row] = True


def _entry_bytes(dim: int) -> int:
    return 4 * (dim + dim % 2) + 8


def _sums(words: NDArray[np.uint64], dim: int) -> NDArray[np.uint64]:
    """Of the words of every row, (n, half of dim). The dimension counts too: else a row of zeros would be sealed by a zero."""
    weights = _weights(words.shape[1] + 1)
    sums: NDArray[np.uint64] = words @ weights[:-1] + weights[-1:] * np.uint64(dim)
    return sums


@lru_cache(maxsize=16)
def _weights(count: int) -> NDArray[np.uint64]:
    """(count,) odd numbers, always the same ones: they are part of the file's format."""
    drawn = np.frombuffer(hashlib.shake_256(b"zerogate embedding cache").digest(8 * count), dtype="<u8")
    return drawn | np.uint64(1)
