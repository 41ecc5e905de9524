"""What a large documents file costs: seconds and anonymous memory of its upload and of its publish, beside the floor.

    python -m benchmarks.publish_at_size [--rows N] [--json]

Upload: JSONL over HTTP to the real application, in a process of its own. Publish: the real job in another one, into the counting
stand-in of a Qdrant server, with an encoder that makes its vectors out of a seed; its embedding cache is real. The database is
SQLite. Memory is RssAnon of /proc, looked at from outside, above what the process held when it had nothing to do yet: file pages
(LMDB's, the uploaded file's) are not in it. The floor is what the same points cost to turn into the shortest JSON and to send, over
the same wire to the same stand-in, and nothing else. The last line is one JSON object. Ends with 1 where memory grew over the limit.
"""

import argparse
import hashlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import numpy as np
import orjson
import structlog
import uvicorn
from numpy.typing import NDArray

import zerogate
from cli.migrate import migrate
from service.db import Database, make_engine
from service.embeddings.loaded_models import EncoderFacts, LoadedModels
from service.encoders.operations import ensure_project, register_encoder
from service.main import create_app
from service.models.operations import get_or_create_model
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import EncoderSpec, Settings
from service.tables import JobKind
from service.vectors.server import ServerEngine
from workers.tasks import run_here, run_job
from zerogate.encoder_files import EncoderFiles, Role

LIMIT_MB = 250.0  # Of growth, in the process that takes the upload and in the one that publishes.

_DIM = 384
_NAME = "seeded"  # Of the encoder; the model over it and the collection have the same.
_FLOOR_ROWS = 50_000  # At most: the floor of more points is as many times higher.
_POINTS_PER_REQUEST = 256
_LOOK_SECONDS = 0.01
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Figures:
    """One measurement. Megabytes are 10^6 bytes; `idle` is before the work, `growth` the most above that while it went on."""

    rows: int
    upload_seconds: float
    upload_idle_rss_anon_mb: float
    upload_rss_anon_growth_mb: float
    publish_seconds: float
    encode_seconds: float  # of these: making and caching the vectors
    points_per_second: float
    publish_idle_rss_anon_mb: float
    publish_rss_anon_growth_mb: float
    points: int  # that the stand-in counts afterwards
    floor_seconds: float
    floor_points_per_second: float
    times_floor: float  # publishing without encoding, over the floor

    @property
    def within_limit(self) -> bool:
        """Whether both processes stayed within LIMIT_MB."""
        return max(self.upload_rss_anon_growth_mb, self.publish_rss_anon_growth_mb) <= LIMIT_MB


def main() -> None:
    """Measure, print, and exit with 1 where memory grew over the limit."""
    parser = argparse.ArgumentParser(description="Uploading and publishing a large documents file in bounded memory.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(given.rows, Path(folder))
    for name, value in asdict(figures).items():
        print(f"{name.replace('_', ' '):30} {value:>14,.1f}" if isinstance(value, float) else f"{name:30} {value:>14,}")
    print(f"{'within ' + format(LIMIT_MB, 'g') + ' MB of growth':30} {'yes' if figures.within_limit else 'NO':>14}")
    if given.json:
        print(json.dumps(asdict(figures)))
    sys.exit(0 if figures.within_limit else 1)


def measure(rows: int, folder: Path) -> Figures:
    """Upload and publish `rows` documents in processes that start for it. folder: takes 10 kB a row, most of it the cache's."""
    with ExitStack() as stack:
        settings = Settings(data_dir=folder / "data", qdrant_url=stack.enter_context(_standin(folder)), broker_url="memory://")
        _prepare(settings)
        # The worker first: its start shall not fall into the upload.
        worker = stack.enter_context(_child(_work, settings))
        api = stack.enter_context(_child(_serve, settings))
        client = stack.enter_context(httpx.Client(base_url=cast("str", api.pipe.recv()), timeout=None))
        _answer(client.post("/v1/collections", json={"name": _NAME, "model": _NAME}))
        worker.pipe.recv()
        with anonymous_memory(api.pid) as uploading:
            started = time.perf_counter()
            dataset = _answer(client.post("/v1/datasets", params={"kind": "documents"}, content=_body(rows)))
            upload_seconds = time.perf_counter() - started
        job_id = _answer(client.post(f"/v1/collections/{_NAME}/documents", json={"dataset": dataset["id"]}))["id"]
        with anonymous_memory(worker.pid) as publishing:
            started = time.perf_counter()
            worker.pipe.send(job_id)
            worker.pipe.recv()
            publish_seconds = time.perf_counter() - started
        job = _answer(client.get(f"/v1/jobs/{job_id}"))
        if job["state"] != "succeeded" or dataset["rows"] != rows:
            raise RuntimeError(f"{dataset['rows']} of {rows} rows were taken, and publishing {job['state']}: {job['error']}")
        floor = _floor_seconds(settings, rows)
    encode_seconds = job["result"]["encode_seconds"]
    return Figures(
        rows=rows,
        upload_seconds=upload_seconds,
        upload_idle_rss_anon_mb=uploading.idle_mb,
        upload_rss_anon_growth_mb=uploading.growth_mb,
        publish_seconds=publish_seconds,
        encode_seconds=encode_seconds,
        points_per_second=rows / publish_seconds,
        publish_idle_rss_anon_mb=publishing.idle_mb,
        publish_rss_anon_growth_mb=publishing.growth_mb,
        points=job["result"]["points"],
        floor_seconds=floor,
        floor_points_per_second=rows / floor,
        times_floor=(publish_seconds - encode_seconds) / floor,
    )


@dataclass
class Growth:
    """What a process held at first, and the most that it held since, in megabytes of anonymous memory."""

    idle_mb: float
    peak_mb: float

    @property
    def growth_mb(self) -> float:
        return self.peak_mb - self.idle_mb


@contextmanager
def anonymous_memory(pid: int) -> Iterator[Growth]:
    """Look at a process's anonymous memory a hundred times a second while the block runs."""
    found = Growth(*[rss_anon_mb(pid)] * 2)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            found.peak_mb = max(found.peak_mb, rss_anon_mb(pid))

    thread = threading.Thread(target=look, name=f"memory of {pid}", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.peak_mb = max(found.peak_mb, rss_anon_mb(pid))


def rss_anon_mb(pid: int) -> float:
    """Resident memory of the process that no file stands behind, in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e6


def documents(rows: int) -> Iterator[dict[str, Any]]:
    """Documents of eight words each, always the same ones."""
    drawn = random.Random(0)
    syllables = [first + vowel for first in "bdfklmnprstv" for vowel in "aeiou"]
    words = ["".join(pair) for pair in itertools.product(syllables, syllables)]
    for number in range(rows):
        yield {"id": f"document-{number}", "text": " ".join(drawn.choices(words, k=8)), "year": 1900 + number % 100}


def _body(rows: int) -> Iterator[bytes]:
    """The documents as JSONL, some 100 kB at a time."""
    remaining = documents(rows)
    while some := list(itertools.islice(remaining, 1000)):
        yield b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in some)


class SeededEncoder:
    """Unit vectors out of nothing but the text's digest, in microseconds."""

    fingerprint = hashlib.sha256(_NAME.encode()).hexdigest()
    dim = _DIM
    dtype = "float32"

    def __init__(self) -> None:
        self._rows = np.random.default_rng(0).standard_normal((4096, _DIM), dtype=np.float32)

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,  # noqa: ARG002 (an encoder's signature)
        on_batch: Callable[[Sequence[int], NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """(n, dim) float32: the sum of two of 4,096 random rows that the text chooses, normalised."""
        chosen = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint32)
        vectors = self._rows[chosen % 4096] + self._rows[chosen >> 20]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if on_batch is not None:
            on_batch(range(len(texts)), vectors)
        return vectors


class SeededModels(LoadedModels):
    """The loaded models of a process whose every encoder is the seeded one, behind the real cache."""

    def encoder(self, facts: EncoderFacts) -> zerogate.CachedEncoder:  # noqa: ARG002 (there is one)
        """See `LoadedModels`."""
        return zerogate.CachedEncoder(cast("zerogate.Encoder", _SEEDED()), self._cache)


@dataclass
class _Recorded:
    """A queue without workers: the benchmark runs the job itself."""

    sent: list[str] = field(default_factory=list)

    def send(self, job_id: str, kind: JobKind) -> None:  # noqa: ARG002 (a queue's signature)
        self.sent.append(job_id)

    def waiting(self, queue: str) -> int:  # noqa: ARG002 (a queue's signature)
        return len(self.sent)

    def ping(self) -> None:
        """It always answers."""
