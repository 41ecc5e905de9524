"""What a large documents file costs: seconds and anonymous memory of its upload and of its publish, beside the floor.

    python -m benchmarks.publish_at_size [--rows N] [--json]

Upload: JSONL over HTTP to the real application, in a process of its own. Publish: the real job in another one, into the counting
stand-in of a Qdrant server, with an encoder that makes its vectors out of a seed; its cache is the real one, the database
SQLite. Memory is RssAnon of /proc, seen from outside, above what the process held before it had anything to do: pages of files
(the cache's among them) are not in it. The floor is what the same points cost to be turned into JSON and sent, over the same
wire to the same stand-in, and nothing else. With --json the last line is one JSON object. Ends with 1 where memory grew over
the limit.
"""

import argparse
import hashlib
import http.client
import itertools
import json
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import orjson

from benchmarks.publish_at_size_data import DIM, SeededEncoder, as_jsonl, documents
from benchmarks.publish_at_size_processes import anonymous_memory, child, counting_standin, cpu_seconds, serve, work
from cli.migrate import migrate
from service.db import Database, make_engine
from service.encoders.operations import ensure_project, register_encoder
from service.models.operations import get_or_create_model
from service.resources import DEFAULT_PROJECT
from service.settings import EncoderSpec, Settings
from service.vectors.server import ServerEngine
from zerogate.encoder_files import EncoderFiles

LIMIT_MB = 250.0  # Of growth, in the process that takes the upload and in the one that publishes.

_NAME = "seeded"  # Of the encoder; the collection is called the same.
_MODEL = "model"
_FLOOR_ROWS = 50_000  # At most: the floor of more points is as many times higher.
_POINTS_PER_REQUEST = 256  # Of the floor.
_PATIENCE_SECONDS = 3600.0  # The answer to an upload comes when all of it was read and checked.


@dataclass(frozen=True)
class Figures:
    """One measurement. Megabytes are 10^6 bytes; idle is before the work, growth the most above that while it went on."""

    rows: int
    upload_seconds: float
    upload_idle_rss_anon_mb: float
    upload_rss_anon_growth_mb: float
    publish_seconds: float
    encode_seconds: float  # of these: making the vectors and storing them in the cache
    publish_cpu_seconds: float  # of the worker, encoding and all; what else the machine does is not in it
    points_per_second: float
    publish_idle_rss_anon_mb: float
    publish_rss_anon_growth_mb: float
    points: int  # that the stand-in counts afterwards
    floor_seconds: float
    floor_cpu_seconds: float  # of the sender
    times_floor: float  # publishing without encoding, over the floor
    times_floor_cpu: float  # publishing with encoding, over the floor
    within_limit: bool


def main() -> None:
    """Measure, print, and exit with 1 where memory grew over the limit."""
    parser = argparse.ArgumentParser(description="Uploading and publishing a large documents file in bounded memory.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(given.rows, Path(folder))
    for name, value in asdict(figures).items():
        print(f"{name:28} {f'{value:,.1f}' if isinstance(value, float) else str(value):>14}")
    if given.json:
        print(json.dumps(asdict(figures)))
    sys.exit(0 if figures.within_limit else 1)


def measure(rows: int, folder: Path, *, limit_mb: float = LIMIT_MB) -> Figures:
    """Upload and publish `rows` documents. folder: takes some 4 kB a row, most of it for the cache.

    Raises RuntimeError when anything but the memory is wrong.
    """
    with ExitStack() as stack:
        url = stack.enter_context(counting_standin())
        settings = Settings(data_dir=folder, qdrant_url=url)
        _make_model(settings)
        worker = stack.enter_context(child(work, settings))
        api = stack.enter_context(child(serve, settings))
        client = stack.enter_context(httpx.Client(base_url=api.line.recv(), timeout=_PATIENCE_SECONDS))
        _answer(client.post("/v1/collections", json={"name": _NAME, "model": _MODEL}))
        worker.line.recv()

        started = time.perf_counter()
        with anonymous_memory(api.pid) as uploading:
            content = as_jsonl(documents(rows))
            dataset = _answer(client.post("/v1/datasets", params={"kind": "documents"}, content=content))
        upload_seconds = time.perf_counter() - started

        job = _answer(client.post(f"/v1/collections/{_NAME}/documents", json={"dataset": dataset["id"]}))
        started, started_cpu = time.perf_counter(), cpu_seconds(worker.pid)
        with anonymous_memory(worker.pid) as publishing:
            worker.line.send(job["id"])
            worker.line.recv()
        publish_seconds, publish_cpu_seconds = time.perf_counter() - started, cpu_seconds(worker.pid) - started_cpu

        job = _answer(client.get(f"/v1/jobs/{job['id']}"))
        if dataset["rows"] != rows or job["state"] != "succeeded":
            raise RuntimeError(f"{dataset['rows']} of {rows} rows were taken; publishing them: {job['state']}, {job['error']}")
        floor_seconds, floor_cpu_seconds = _floor_seconds(url, rows)
    encode_seconds = job["result"]["encode_seconds"]
    return Figures(
        rows=rows,
        upload_seconds=upload_seconds,
        upload_idle_rss_anon_mb=uploading.idle_mb,
        upload_rss_anon_growth_mb=uploading.growth_mb,
        publish_seconds=publish_seconds,
        encode_seconds=encode_seconds,
        publish_cpu_seconds=publish_cpu_seconds,
        points_per_second=rows / publish_seconds,
        publish_idle_rss_anon_mb=publishing.idle_mb,
        publish_rss_anon_growth_mb=publishing.growth_mb,
        points=job["result"]["points"],
        floor_seconds=floor_seconds,
        floor_cpu_seconds=floor_cpu_seconds,
        times_floor=(publish_seconds - encode_seconds) / floor_seconds,
        times_floor_cpu=publish_cpu_seconds / floor_cpu_seconds,
        within_limit=max(uploading.growth_mb, publishing.growth_mb) <= limit_mb,
    )


def _make_model(settings: Settings) -> None:
    """A model over the seeded encoder, whose version 0 is live."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(make_engine(settings.sql_url))
    migrate(database.engine)
    files = EncoderFiles(Path(_NAME), SeededEncoder.fingerprint, dim=DIM, max_length=256, prompts={})
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        register_encoder(session, DEFAULT_PROJECT, EncoderSpec(name=_NAME, source=_NAME), files)
        get_or_create_model(session, DEFAULT_PROJECT, _MODEL, encoder=_NAME, default_encoder=_NAME)
    database.close()


def _answer(response: httpx.Response) -> Any:
    if not response.is_success:
        raise RuntimeError(f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}")
    return response.json()


def _floor_seconds(url: str, rows: int) -> tuple[float, float]:
    """What as many points take to be turned into the shortest JSON that is exact, and sent, one request after the other.

    Gives seconds, and seconds of this process on a processor.
    """
    engine = ServerEngine.connect(url)
    engine.create_collection("floor", dim=DIM, indexes={}, owner="floor")
    engine.close()
    encoder = SeededEncoder()
    measured = min(rows, _FLOOR_ROWS)
    remaining = enumerate(documents(measured))
    seconds = on_processor = 0.0
    with closing(http.client.HTTPConnection(urlsplit(url).netloc)) as connection:
        while some := list(itertools.islice(remaining, _POINTS_PER_REQUEST)):
            batch = {
                "ids": [str(UUID(int=number)) for number, _ in some],
                "vectors": {"base": encoder.encode([row["text"] for _, row in some], role="document")},
                "payloads": [_payload(row) for _, row in some],
            }
            started, started_cpu = time.perf_counter(), time.process_time()
            body = orjson.dumps({"batch": batch}, option=orjson.OPT_SERIALIZE_NUMPY)
            connection.request("PUT", "/collections/floor/points?wait=true", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            seconds += time.perf_counter() - started
            on_processor += time.process_time() - started_cpu
            if answer.status != 200:
                raise RuntimeError(f"the stand-in answered {answer.status} to {len(some)} points of the floor")
    return seconds * rows / measured, on_processor * rows / measured


def _payload(row: dict[str, Any]) -> dict[str, Any]:
    """What a published document carries; its digest is a hash like any other here."""
    digest = hashlib.sha256(row["text"].encode()).hexdigest()
    return {"document_id": row["id"], "chunk": 0, "text_sha256": digest, "text": row["text"], "metadata": {"year": row["year"]}}


if __name__ == "__main__":
    main()
