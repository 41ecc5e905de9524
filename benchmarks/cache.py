"""What a hit of the embedding cache costs, beside SQLite and beside copying the same bytes.

    python -m benchmarks.cache [--json] [--rows N] [--rounds R]

N texts with vectors of 384 numbers are stored, then read back: through the cache text by text, as one mapped matrix, and from
an SQLite table of BLOBs under the same digests (as `diskcache` would, without its pickle). Floors: a copy of the N vectors in
memory, and an .npy file mapped and copied. All take turns in every round; the best round of each counts, and every answer is
compared with the vectors. Warm: the files are in the system's page cache. Cold: they were dropped from it, and opened anew.
Then stores: into an empty cache, into SQLite in transactions of 256 that are as durable, and into a cache that must forget.
"""

import argparse
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from zerogate.cache import SMALLEST_CACHE, CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.encoder_files import Role

DIM = 384
Made = TypeVar("Made")
_PER_WRITE = 256  # as the cache itself
_PER_QUESTION = 500  # keys in one SELECT: the fastest of 1, 100, 500, 1,000 and 5,000


class KnownEncoder:
    """Stands in for an encoder: it gives vectors that were drawn before, so that only the cache is measured."""

    fingerprint = "0" * 64
    dim = DIM
    dtype = "float32"

    def __init__(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._place = {text: place for place, text in enumerate(texts)}
        self._vectors = vectors
        self.asked = 0

    def encode(
        self, texts: Sequence[str], *, role: Role, on_batch: Callable[[Sequence[int], NDArray[np.float32]], None]
    ) -> NDArray[np.float32]:
        """The drawn vectors, given out in batches of 64 as an encoder does."""
        del role
        self.asked += len(texts)
        found = self._vectors[[self._place[text] for text in texts]]
        for start in range(0, len(texts), 64):
            rows = range(start, min(start + 64, len(texts)))
            on_batch(rows, found[rows.start : rows.stop])
        return found


class SqliteTable:
    """The peer: vectors as BLOBs under a digest of the text, in the standard library's database."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(f"PRAGMA mmap_size = {2**36}")
        self._connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def put(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store them, durable, in transactions of as many as the cache writes at once."""
        for start in range(0, len(texts), _PER_WRITE):
            rows = slice(start, start + _PER_WRITE)
            entries = [(key, row.tobytes()) for key, row in zip(self._keys(texts[rows]), vectors[rows], strict=True)]
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", entries)
            self._connection.execute("COMMIT")

    def get(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, DIM): the vectors of texts that are all there."""
        found = np.empty((len(texts), DIM), dtype=np.float32)
        for start in range(0, len(texts), _PER_QUESTION):
            keys = self._keys(texts[start : start + _PER_QUESTION])
            marks = ",".join("?" * len(keys))
            blobs = dict(self._connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", keys))  # noqa: S608
            joined = b"".join(map(blobs.__getitem__, keys))
            found[start : start + len(keys)] = np.frombuffer(joined, dtype="<f4").reshape(len(keys), DIM)
        return found

    def close(self) -> None:
        """Give the file back, with what its log still holds."""
        self._connection.close()

    def _keys(self, texts: Sequence[str]) -> list[bytes]:
        return [hashlib.sha256(text.encode()).digest() for text in texts]


@dataclass(frozen=True)
class Found:
    """Seconds for all rows, by contestant; stores are in rows a second."""

    rows: int
    warm: dict[str, float]
    cold: dict[str, float]
    stored: dict[str, float]

    def to_dict(self) -> dict[str, float]:
        """What --json prints. Rates are rows a second; ratio: of our hits to SQLite's, share: of ours to the copy in memory."""
        return {
            "rows": self.rows,
            "hits_per_second": round(self.rows / self.warm["hits"]),
            "share_of_floor": round(self.warm["memory"] / self.warm["hits"], 4),
            "ratio": round(self.warm["sqlite"] / self.warm["hits"], 3),
            "matrix_open_seconds": round(self.warm["matrix"], 5),
            "matrix_share_of_floor": round(self.warm["memory"] / self.warm["matrix"], 4),
            "matrix_ratio_to_npy": round(self.warm["npy"] / self.warm["matrix"], 3),
            "matrix_ratio_to_hits": round(self.warm["hits"] / self.warm["matrix"], 2),
            "cold_hits_per_second": round(self.rows / self.cold["hits"]),
            "cold_ratio": round(self.cold["sqlite"] / self.cold["hits"], 3),
            "cold_matrix_open_seconds": round(self.cold["matrix"], 5),
            **{f"stored_per_second_{name}": round(rate) for name, rate in self.stored.items()},
        }


def measure(folder: Path, *, rows: int, rounds: int) -> Found:
    """Store and read `rows` vectors in an empty folder. Raises RuntimeError where a contestant gives anything but the vectors."""
    texts = [
        f"How do I reset device {number} without losing its settings and the history of the last month?" for number in range(rows)
    ]
    vectors = np.random.default_rng(1).normal(size=(rows, DIM)).astype(np.float32)
    encoder = KnownEncoder(texts, vectors)
    stored = _store(folder, encoder, texts, vectors)
    contestants: dict[str, Callable[[], NDArray[np.float32]]] = {
        "hits": lambda: cached.encode(texts, role="document"),
        "matrix": lambda: cached.matrix(texts, role="document"),
        "sqlite": lambda: table.get(texts),
        "npy": lambda: np.array(np.load(folder / "vectors.npy", mmap_mode="r")),
        "memory": vectors.copy,
    }
    warm, cold = dict.fromkeys(contestants, float("inf")), dict.fromkeys(contestants, float("inf"))
    for turn in range(rounds + 1):
        for name, read in contestants.items():
            for kind in (cold, warm):
                with ExitStack() as stack:
                    if kind is cold:
                        _drop(folder)
                    cache = EmbeddingCache(folder / "cache")
                    stack.callback(cache.close)
                    cached = CachedEncoder(cast("Encoder", encoder), cache)
                    table = SqliteTable(folder / "vectors.db")
                    stack.callback(table.close)
                    if kind is warm:
                        read()
                    seconds, found = _timed(read)
                    if not np.array_equal(found, vectors):
                        raise RuntimeError(f"{name} gave other vectors than were stored")
                if turn > 0:  # the first is a warm-up
                    kind[name] = min(kind[name], seconds)
    if encoder.asked != rows:
        raise RuntimeError(f"{encoder.asked} texts were encoded, {rows} were new")
    return Found(rows, warm, cold, stored)


def _store(folder: Path, encoder: KnownEncoder, texts: list[str], vectors: NDArray[np.float32]) -> dict[str, float]:
    """Fill everything once; rows a second."""
    cache, table = EmbeddingCache(folder / "cache"), SqliteTable(folder / "vectors.db")
    cached = CachedEncoder(cast("Encoder", encoder), cache)
    ours, _ = _timed(lambda: cached.encode(texts, role="document"))
    peers, _ = _timed(lambda: table.put(texts, vectors))
    cached.matrix(texts, role="document")
    np.save(folder / "vectors.npy", vectors)
    cache.close()
    table.close()
    # A quarter of what the rows take, so that it is full soon.
    small = EmbeddingCache(folder / "small", max_bytes=max(SMALLEST_CACHE, rows_bytes(len(texts)) // 4))
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    half = len(texts) // 2
    small.put(keys[:half], vectors[:half])
    forgetting, _ = _timed(lambda: small.put(keys[half:], vectors[half:]))
    small.close()
    return {"hits": len(texts) / ours, "sqlite": len(texts) / peers, "forgetting": (len(texts) - half) / forgetting}


def rows_bytes(rows: int) -> int:
    """About what so many vectors take in a cache."""
    return 3000 * rows


def _timed(work: Callable[[], Made]) -> tuple[float, Made]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _drop(folder: Path) -> None:
    """Drop the files from the system's page cache; nobody has them open."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


_TITLES = {
    "hits": "cache, text by text",
    "matrix": "cache, mapped matrix",
    "sqlite": "SQLite BLOBs",
    "npy": ".npy, mapped and copied",
    "memory": "copy in memory",
}


def _show(found: Found) -> None:
    table = Table(f"{found.rows:,} vectors of {DIM}", title="Reading all of them, best round")
    for name in ("warm ms", "µs a row", "cold ms"):
        table.add_column(name, justify="right")
    for name, title in _TITLES.items():
        warm = found.warm[name]
        cold = "" if name == "memory" else f"{1e3 * found.cold[name]:.1f}"
        table.add_row(title, f"{1e3 * warm:.1f}", f"{1e6 * warm / found.rows:.2f}", cold)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"Stored a second: {found.stored['hits']:,.0f} into the cache, {found.stored['forgetting']:,.0f} into a full one that "
        f"forgets, {found.stored['sqlite']:,.0f} into SQLite."
    )


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="Hits of the embedding cache, beside SQLite and a copy of the same bytes.")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rows", type=int, default=50_000, help="vectors, at least 1,024")
    parser.add_argument("--rounds", type=int, default=4, help="of which the best counts")
    given = parser.parse_args()
    if given.rows < 1024:
        parser.error(f"--rows {given.rows}: shorter lists have no matrix, take at least 1,024")
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        found = measure(Path(folder), rows=given.rows, rounds=given.rounds)
    _show(found)
    if given.json:
        print(json.dumps(found.to_dict()))


if __name__ == "__main__":
    main()
