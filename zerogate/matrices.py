"""Whole matrices on disk: the vectors of a list of texts in one file, which is mapped instead of read.

A file is complete when it has its name, and checked whenever it is opened. Files that were not used for longest go first.
"""

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zerogate.cache_entries import checksums

_MAGIC = b"zerogate matrix\n"
_HEADER = struct.Struct("<16sQQ32s")  # magic, rows, numbers in a row, seal
_LOCK = "lock"


class Matrices:
    """A folder of matrices by name, with a bound on their size. Safe to share between threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Open or make the folder. max_bytes: of all files together; a matrix that is larger is not kept."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        with self._writing():
            pass  # what killed processes left is swept

    def open(self, name: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """The matrix of this name and shape, read-only, float32, mapped into memory; None where it is missing or damaged.

        It stays usable when its file is deleted.
        """
        path = self._path(name)
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER.size)
                is_whole = os.fstat(file.fileno()).st_size == _HEADER.size + 4 * shape[0] * shape[1] and shape[0] * shape[1] > 0
                if is_whole:
                    matrix = np.memmap(file, dtype="<f4", mode="r", offset=_HEADER.size, shape=shape)
        except FileNotFoundError:
            return None
        if not is_whole or header != _header(matrix):
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # deleted in this moment, or on a disk that takes no writes
            _use(path)
        return np.asarray(matrix)

    def store(self, name: str, matrix: NDArray[np.float32]) -> None:
        """Keep the matrix, (n, dim) float32, if there is room for it and nobody else is storing one in this moment."""
        size = _HEADER.size + matrix.nbytes
        if size > self._max_bytes:
            return
        half = self._folder / f"{name}.part"
        with self._writing() as is_mine:
            if not is_mine:
                return
            try:
                self._make_room(size)
                with half.open("wb") as file:
                    file.write(_header(matrix))
                    file.write(np.ascontiguousarray(matrix, dtype="<f4").data)
                _use(half)
                half.replace(self._path(name))
            except OSError:  # a cache may forget
                half.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.matrix"

    def _make_room(self, size: int) -> None:
        files = sorted(((path.stat(), path) for path in self._folder.glob("*.matrix")), key=lambda one: one[0].st_mtime_ns)
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        """Whether this is the only writer. Not waited for: it may be one that was stopped for good.

        The lock goes with its process, so a half file that is there when it is had belongs to nobody.
        """
        with (self._folder / _LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            for half in self._folder.glob("*.part"):
                half.unlink(missing_ok=True)
            yield True


def _use(path: Path) -> None:
    now = time.time_ns()  # the system's own stamp is several milliseconds coarse
    os.utime(path, ns=(now, now))


def _header(matrix: NDArray[np.float32]) -> bytes:
    """The head of the file: its seal is a digest of the shape and of the rows' checksums."""
    rows, dim = matrix.shape
    shape = struct.pack("<QQ", rows, dim)
    seal = hashlib.sha256(shape + checksums(np.ascontiguousarray(matrix, dtype="<f4")).tobytes()).digest()
    return _HEADER.pack(_MAGIC, rows, dim, seal)
