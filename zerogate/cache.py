"""The content-addressed embedding cache: a text is encoded once, whoever asks and however often.

LMDB keeps it: several processes may read and write at once, a killed writer leaves no half entry, reads are memory-mapped.
An entry is addressed by (fingerprint, role, dtype, text), so nothing in it can be out of date.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np
from numpy.typing import NDArray

from zerogate.encoder_files import Role

if TYPE_CHECKING:
    from zerogate.encoder import Encoder  # loads torch; the cache itself needs none
    from zerogate.lazy_encoder import LazyEncoder

_CHECKSUM_BYTES = 4
# What is encoded is written this often: a killed job loses at most a second or two of encoding.
_TEXTS_PER_WRITE = 256


class EmbeddingCache:
    """Base vectors on disk, by content. Safe to share between threads and processes; open a folder only once per process."""

    def __init__(self, folder: Path, *, max_bytes: int = 64 * 2**30) -> None:
        """Open or make the cache.

        max_bytes: the largest size of the file. A full cache, or a full disk, stops growing; nothing fails.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # readahead off: entries are read at random. The file is sparse, so max_bytes costs address space only.
        self._env = lmdb.open(str(folder), map_size=max_bytes, readahead=False, max_readers=512)

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The stored vectors: (n, dim) float32 and, (n,) bool, which of the rows were found; the others are undefined."""
        vectors = np.empty((len(keys), dim), dtype=np.float32)
        found = np.zeros(len(keys), dtype=np.bool_)
        with self._env.begin(buffers=True) as reader:
            for row, key in enumerate(keys):
                entry = reader.get(key)
                if entry is not None and _intact(entry, dim):
                    vectors[row] = np.frombuffer(entry, dtype="<f4", count=dim)
                    found[row] = True
        return vectors, found

    def put(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Store the rows of vectors, (n, dim) float32, under their keys; durable when it returns, unless there is no room."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        try:
            with self._env.begin(write=True) as writer:
                for key, row in zip(keys, rows, strict=True):
                    entry = row.tobytes()
                    writer.put(key, entry + zlib.crc32(entry).to_bytes(_CHECKSUM_BYTES, "little"))
        except lmdb.Error as error:
            # A cache may forget: the vectors were made, they are only not remembered. DiskError is ENOSPC; where the last
            # pages fit in part LMDB says EIO, which like EDQUOT and EFBIG has no class of its own.
            if not (isinstance(error, lmdb.MapFullError | lmdb.DiskError) or type(error) is lmdb.Error):
                raise

    def close(self) -> None:
        """Give the file back."""
        self._env.close()


class CachedEncoder:
    """An encoder that remembers. Gives the same as `Encoder.encode`, and encodes only what the cache lacks."""

    def __init__(self, encoder: "Encoder | LazyEncoder", cache: EmbeddingCache) -> None:
        """encoder: a lazy one is loaded when a text is missing in the cache, and not before."""
        self.encoder = encoder
        self._cache = cache

    def encode(
        self, texts: Sequence[str], *, role: Role, on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Base vectors of the texts, in their order: (n, dim) float32, unit rows.

        on_progress: called with (texts encoded, texts to encode) before and after every batch; it may raise to stop, and what
        was encoded until then stays in the cache.
        """
        keys = [self._key(text, role) for text in texts]
        vectors, found = self._cache.get(keys, self.encoder.dim)
        missing = {keys[row]: row for row in np.flatnonzero(~found).tolist()}  # a text that stands there twice is encoded once
        if missing:
            made = self._encode_missing([texts[row] for row in missing.values()], list(missing), role, on_progress)
            place = {key: position for position, key in enumerate(missing)}
            for row in np.flatnonzero(~found).tolist():
                vectors[row] = made[place[keys[row]]]
        return vectors

    def lookup(self, texts: Sequence[str], *, role: Role) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What is known without the encoder: (n, dim) float32 and, (n,) bool, which rows were found; others are undefined."""
        return self._cache.get([self._key(text, role) for text in texts], self.encoder.dim)

    def lookup_or_encode(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        """Like `encode`, but what is missing is not stored: for a request, which must not wait for a disk."""
        vectors, found = self._cache.get([self._key(text, role) for text in texts], self.encoder.dim)
        missing = np.flatnonzero(~found).tolist()
        if missing:
            vectors[missing] = self.encoder.encode([texts[row] for row in missing], role=role)
        return vectors

    def _encode_missing(
        self, texts: list[str], keys: list[bytes], role: Role, on_progress: Callable[[int, int], None] | None
    ) -> NDArray[np.float32]:
        done = 0
        waiting: list[tuple[bytes, NDArray[np.float32]]] = []

        def store() -> None:
            if waiting:
                self._cache.put([key for key, _ in waiting], np.stack([row for _, row in waiting]))
                waiting.clear()

        def on_batch(positions: Sequence[int], vectors: NDArray[np.float32]) -> None:
            nonlocal done
            waiting.extend((keys[position], row) for position, row in zip(positions, vectors, strict=True))
            if len(waiting) >= _TEXTS_PER_WRITE:
                store()
            done += len(positions)
            if on_progress is not None:
                on_progress(done, len(texts))

        if on_progress is not None:
            on_progress(0, len(texts))
        try:
            return self.encoder.encode(texts, role=role, on_batch=on_batch)
        finally:
            store()

    def _key(self, text: str, role: Role) -> bytes:
        head = f"{self.encoder.fingerprint}\n{role}\n{self.encoder.dtype}\n"
        return hashlib.sha256(head.encode() + text.encode()).digest()


def _intact(entry: memoryview, dim: int) -> bool:
    body = entry[:-_CHECKSUM_BYTES]
    return len(body) == 4 * dim and zlib.crc32(body) == int.from_bytes(entry[-_CHECKSUM_BYTES:], "little")
