"""The content-addressed embedding cache: a text is encoded once, whoever asks and however often.

LMDB keeps the vectors of single texts: several processes may read and write at once, a killed writer leaves no half entry, reads
are memory-mapped. Beside them stand the matrices of whole lists of texts, as a training reads them. An entry is addressed by
(fingerprint, role, dtype, text), so nothing in it can be out of date.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import compress, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np
from numpy.typing import NDArray

from zerogate.cache_entries import pack, unpack
from zerogate.cache_recency import Recency, table_bytes
from zerogate.encoder_files import Role
from zerogate.matrices import Matrices

if TYPE_CHECKING:
    from zerogate.encoder import Encoder  # loads torch; the cache itself needs none
    from zerogate.lazy_encoder import LazyEncoder

SMALLEST_CACHE = 2**20
# What is encoded is written this often: a killed job loses at most a second or two of encoding.
_TEXTS_PER_WRITE = 256
# So many entries are copied out of the map at once: they fit into a core's own cache, and no reader holds back pages for long.
_TEXTS_PER_READ = 1024
# In the time that a page takes that stands anywhere, a disk reads so much in its order (measured: 120 kB).
_READ_AHEAD_BYTES = 65_536
_WINDOW_BYTES = 131_072  # Linux reads no more than that ahead for one request
# Below it a list is read text by text within a millisecond or two, and a file of its own would not pay.
_SMALLEST_MATRIX = 1024

_PAGE = 4096
_READERS = 512
_LOCK_BYTES = 65_536  # LMDB's own, for that many readers
# An entry of 384 numbers takes about half a page; there are no fewer entries to be known than that.
_SMALLEST_ENTRY = 2048
# To write is to copy pages, and a page that was freed can be had again two transactions later: several writers' worth stays free.
_SPARE_PAGES = 16_384
# To make room, the quarter of so many neighbours goes that was not used for longest. Keys are digests, so neighbours are a fair
# sample; in a cache of no more entries they are all of them.
_NEIGHBOURS = 1024
_MOST_ROUNDS = 8  # of making room for one write


class EmbeddingCache:
    """Base vectors on disk, by content. Safe to share between threads and processes; open a folder only once per process.

    matrices: whole lists of vectors, by name.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 64 * 2**30) -> None:
        """Open or make the cache.

        max_bytes: the largest size of the folder, at least `SMALLEST_CACHE`; a quarter of it is for the matrices. What was not
        used for longest is forgotten to keep it; a file that is larger already stays so large, and is filled to the bound only.
        A full disk is no error either: then nothing new is remembered.
        """
        if max_bytes < SMALLEST_CACHE:
            raise ValueError(f"an embedding cache of {max_bytes} bytes cannot work; give it at least {SMALLEST_CACHE}")
        folder.mkdir(parents=True, exist_ok=True)
        self.matrices = Matrices(folder / "matrices", max_bytes=max_bytes // 4)
        most_entries = max_bytes // _SMALLEST_ENTRY
        pages = (max_bytes - max_bytes // 4 - table_bytes(most_entries) - _LOCK_BYTES) // _PAGE
        self._most_pages = pages - min(pages // 2, _SPARE_PAGES)
        self._data = folder / "data.mdb"
        # readahead off: entries are read at random. The file is sparse, so its size costs address space only.
        self._env = lmdb.open(str(folder), map_size=pages * _PAGE, readahead=False, max_readers=_READERS)
        self._recency = Recency(folder / "used", most_entries=most_entries)

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The stored vectors: (n, dim) float32 and, (n,) bool, which of the rows were found; the others are undefined."""
        vectors = np.empty((len(keys), dim), dtype=np.float32)
        found = np.zeros(len(keys), dtype=np.bool_)
        if len(keys) >= _TEXTS_PER_READ:
            self._read_ahead(len(keys))
        for start in range(0, len(keys), _TEXTS_PER_READ):
            rows = slice(start, start + _TEXTS_PER_READ)
            with self._env.begin(buffers=True) as reader:
                unpack(list(map(reader.get, keys[rows])), vectors[rows], found[rows])
            self._recency.used(list(compress(keys[rows], found[rows].tolist())))
        return vectors, found

    def put(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Store the rows of vectors, (n, dim) float32, under their keys of 32 bytes.

        They are durable when it returns, unless there is no room: not on the disk, or in a cache that is too small for them.
        """
        entries = pack(vectors)
        rows = max(1, min(_TEXTS_PER_WRITE, self._most_pages // 32))
        try:
            for start in range(0, len(keys), rows):
                part = slice(start, start + rows)
                if not self._write(keys[part], entries[part]):
                    return
        except lmdb.Error as error:
            # A cache may forget: the vectors were made, they are only not remembered. DiskError is ENOSPC; where the last
            # pages fit in part LMDB says EIO, which like EDQUOT and EFBIG has no class of its own.
            if not (isinstance(error, lmdb.MapFullError | lmdb.DiskError) or type(error) is lmdb.Error):
                raise

    def close(self) -> None:
        """Give the file back."""
        self._env.close()

    def _write(self, keys: Sequence[bytes], entries: Sequence[memoryview]) -> bool:
        """Store the entries in one transaction, after the room for them was made in others; False where there is none."""
        for turn in range(_MOST_ROUNDS):
            try:
                self._make_room()
                with self._env.begin(write=True) as writer:
                    for key, entry in zip(keys, entries, strict=True):
                        writer.put(key, entry)
                    self._recency.stored(keys, entries=writer.stat()["entries"])
                return True
            except lmdb.MapFullError:
                # The free pages wait for other transactions to end, or for a reader that was killed; or the file was filled by
                # an earlier release. To forget takes pages as well, and fewest where neighbours go together.
                self._env.reader_check()
                with suppress(lmdb.MapFullError):
                    self._forget(min(_NEIGHBOURS, 4 ** (turn + 1)), share=1)
        return False

    def _read_ahead(self, entries: int) -> None:
        """Have the system read the whole file from the disk, where so many single pages would take longer than that."""
        with self._data.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if size <= min(entries * _READ_AHEAD_BYTES, memory // 4):
                for start in range(0, size, _WINDOW_BYTES):
                    os.posix_fadvise(file.fileno(), start, _WINDOW_BYTES, os.POSIX_FADV_WILLNEED)

    def _make_room(self) -> None:
        for _ in range(_MOST_ROUNDS):
            stat = self._env.stat()
            if stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] <= self._most_pages:
                return
            self._forget(_NEIGHBOURS, share=4)

    def _forget(self, neighbours: int, *, share: int) -> None:
        """Forget one in `share` of so many neighbours, those that were not used for longest."""
        with self._env.begin(write=True) as writer:
            keys = self._neighbours(writer, neighbours)
            if not keys:
                return
            oldest_first = np.argsort(self._recency.ages(keys), kind="stable")[::-1]
            for place in oldest_first[: max(1, len(keys) // share)].tolist():
                writer.delete(keys[place])
            self._recency.hand = keys[-1]

    def _neighbours(self, reader: lmdb.Transaction, most: int) -> list[bytes]:
        """Keys in their order from the hand on; behind the last comes the first."""
        hand, cursor = self._recency.hand, reader.cursor()

        def keys() -> Iterator[bytes]:
            return (bytes(key) for key in cursor.iternext(values=False))

        found = list(islice(keys(), most)) if cursor.set_range(hand) else []
        if len(found) < most and cursor.first():
            found += islice(takewhile(lambda key: key < hand, keys()), most - len(found))
        return found


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
        keys = self._keys(texts, role)
        vectors, found = self._cache.get(keys, self.encoder.dim)
        rows = np.flatnonzero(~found).tolist()
        if rows:
            missing = {keys[row]: row for row in rows}  # a text that stands there twice is encoded once
            made = self._encode_missing([texts[row] for row in missing.values()], list(missing), role, on_progress)
            place = {key: position for position, key in enumerate(missing)}
            vectors[rows] = made[[place[keys[row]] for row in rows]]
        return vectors

    def matrix(
        self, texts: Sequence[str], *, role: Role, on_progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """The same as `encode`, read-only, for a list that is asked for again: from the second time on its file is mapped.

        Such a list costs a digest of its texts and a look over its bytes, however often and in whichever process.
        """
        shape = (len(texts), self.encoder.dim)
        if len(texts) < _SMALLEST_MATRIX:
            made = self.encode(texts, role=role, on_progress=on_progress)
        else:
            name = self._name(texts, role)
            found = self._cache.matrices.open(name, shape)
            if found is not None:
                return found
            made = self.encode(texts, role=role, on_progress=on_progress)
            self._cache.matrices.store(name, made)
        made.flags.writeable = False
        return made

    def lookup(self, texts: Sequence[str], *, role: Role) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What is known without the encoder: (n, dim) float32 and, (n,) bool, which rows were found; others are undefined."""
        return self._cache.get(self._keys(texts, role), self.encoder.dim)

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

    def _keys(self, texts: Sequence[str], role: Role) -> list[bytes]:
        head, digest = self._head(role), hashlib.sha256
        return [digest(head + text.encode()).digest() for text in texts]

    def _name(self, texts: Sequence[str], role: Role) -> str:
        """Of the matrix of these texts in this order. Their lengths say where each of them ends."""
        digest = hashlib.sha256(self._head(role))
        digest.update(np.fromiter(map(len, texts), dtype="<u8", count=len(texts)).tobytes())
        digest.update("".join(texts).encode())
        return digest.hexdigest()

    def _head(self, role: Role) -> bytes:
        return f"{self.encoder.fingerprint}\n{role}\n{self.encoder.dtype}\n".encode()
