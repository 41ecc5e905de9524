"""Instant search: a version is searched before its vectors exist. How much is found, how soon, and what it costs.

    python -m benchmarks.instant [--json] [--cache DIR] [--pairs N] [--queries N] [--sizes N ...] [--epochs N]

found: heads with and without a bias are fitted to three datasets; each searches the documents of all three through a real
service, and its ten hits are held against the exact top ten of its own vectors, which a full re-index would give.
soon: a thread searches without pause while versions are promoted; seconds from the promotion's request to the first answer of
the new version. cost: the same searches on the path `instant` and in the version's own named vector, by turns.
The encoder runs once and is cached; without the cache that is most of the time.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.instant_data import datasets
from benchmarks.instant_service import MODEL, fill, register, same, spread, target_of
from cli.embedded import embedded_service
from service.collections.search import hits_of
from service.resources import Resources
from service.settings import Settings
from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.fitting import fit
from zerogate.folded import FoldedHead
from zerogate.head_shapes import HeadShape
from zerogate.recipe import Recipe
from zerogate.task_parts import Rows
from zerogate.tasks import make_task
from zerogate.vectors import Vectors

LIMIT = 10
_WARM = 5
_PROMOTIONS = 4


@dataclass(frozen=True)
class Trained:
    """A dataset's fitted heads by whether they have a bias, its test queries' base vectors, and those of all its documents."""

    heads: dict[bool, FoldedHead]
    queries: NDArray[np.float32]
    documents: NDArray[np.float32]


def main() -> None:
    """Measure, and tell it as tables and, where asked for, as one line of JSON."""
    given = _arguments()
    structlog.configure(processors=[_drop])  # the last line of the output is the figures', not a job's
    console = Console()
    started = time.perf_counter()
    cache = EmbeddingCache(given.cache)
    encoder = CachedEncoder(Encoder("all-MiniLM-L6-v2", device="cpu"), cache)
    trained = {
        name: train(rows, encoder, epochs=given.epochs, queries=given.queries) for name, rows in datasets(given.pairs).items()
    }
    cache.close()
    console.print(f"encoded and fitted after {time.perf_counter() - started:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(trained, Path(folder), sizes=given.sizes)
    for table in tables(found):
        console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    if given.json:
        print(json.dumps({"instant": found}))


def train(rows: Rows, encoder: CachedEncoder, *, epochs: int, queries: int) -> Trained:
    """Fit both heads to the dataset's training part; of its test at most so many queries are kept."""
    task = make_task(rows)
    vectors = Vectors(encoder.encode(task.queries, role="query"), encoder.encode(task.documents, role="document"))
    heads = {bias: fit(vectors, task.train, Recipe(epochs=epochs, bias=bias)).head.fold() for bias in (False, True)}
    return Trained(heads, task.test.of(vectors).queries[:queries], vectors.documents)


def measure(trained: dict[str, Trained], folder: Path, *, sizes: Sequence[int]) -> dict[str, Any]:
    """All measurements, on an embedded service in the folder."""
    documents = np.concatenate([one.documents for one in trained.values()])
    queries = np.concatenate([one.queries for one in trained.values()])
    with embedded_service(Settings(data_dir=folder)) as service:
        resources = service.resources
        versions = {
            (name, bias): register(resources, head, HeadShape(bias=bias))
            for name, one in trained.items()
            for bias, head in one.heads.items()
        }
        fill(resources, "all", documents)
        by_head = {
            (name, bias): recall(resources, trained[name], trained[name].heads[bias], documents, version=version)
            for (name, bias), version in versions.items()
        }
        first, *others = (version for (_, bias), version in versions.items() if bias)
        cost = {str(size): added(resources, spread(documents, size), queries, version=first) for size in sizes}
        with TestClient(service.app) as http:
            seconds = live(http, [first, *others])
    return {
        "recall_at_10": {name: min(by_head[name, bias] for bias in (False, True)) for name in trained},
        "recall_at_10_without_bias": {name: by_head[name, False] for name in trained},
        "recall_at_10_with_bias": {name: by_head[name, True] for name in trained},
        "documents": len(documents),
        "queries": {name: len(one.queries) for name, one in trained.items()},
        "live_seconds": seconds,
        "added_ms": {size: one["added_ms"] for size, one in cost.items()},
        "cost": cost,
    }


def recall(resources: Resources, trained: Trained, head: FoldedHead, documents: NDArray[np.float32], *, version: int) -> float:
    """The share of the exact top ten that the instant search finds among all documents, over the dataset's test queries."""
    target = target_of(resources, "all", version=version)
    assert target.path == "instant"
    queries = head.vectors(trained.queries)
    exact = queries.astype(np.float64) @ head.vectors(documents).astype(np.float64).T  # (queries, documents)
    shares = []
    for query, scores in zip(queries, exact, strict=True):
        hits = hits_of(resources, target, query, limit=LIMIT)
        keys = [hit.payload["document_id"] for hit in hits]
        assert np.abs([hit.score - scores[int(key)] for hit, key in zip(hits, keys, strict=True)]).max() < 1e-5
        shares.append(same(keys, scores, limit=LIMIT))
    return statistics.mean(shares)


def added(resources: Resources, base: NDArray[np.float32], queries: NDArray[np.float32], *, version: int) -> dict[str, float]:
    """Milliseconds of the search on either path at this many documents, and the share of equal hits."""
    name = f"of-{len(base)}"
    fill(resources, name, base, ready=version)
    indexed = target_of(resources, name, version=version)
    assert indexed.path == "indexed"
    instant = replace(indexed, vector_name="base", path="instant")
    mapped = resources.models.vectors(indexed.version, queries, role="query")
    times: dict[str, list[float]] = {"indexed": [], "instant": []}
    shared = []
    for turn, query in enumerate([*mapped[:_WARM], *mapped]):
        found: dict[str, set[str]] = {}
        order = (indexed, instant) if turn % 2 else (instant, indexed)
        for target in order:
            began = time.perf_counter()
            hits = hits_of(resources, target, query, limit=LIMIT)
            seconds = time.perf_counter() - began
            found[target.path] = {hit.id for hit in hits}
            if turn >= _WARM:
                times[target.path].append(1000 * seconds)
        shared.append(len(found["indexed"] & found["instant"]) / len(found["indexed"]))
    medians = {path: statistics.median(one) for path, one in times.items()}
    return {
        "indexed_ms": medians["indexed"],
        "instant_ms": medians["instant"],
        "added_ms": medians["instant"] - medians["indexed"],
        "instant_p95_ms": float(np.percentile(times["instant"], 95)),
        "indexed_p95_ms": float(np.percentile(times["indexed"], 95)),
        "equal_hits": statistics.mean(shared),
    }


def live(http: TestClient, versions: Sequence[int]) -> float:
    """The longest time from a promotion's request to the first answer of that version, while its vectors are being made."""
    answers: list[tuple[float, str, str]] = []
    stop = threading.Event()

    def search() -> None:
        answer = http.post("/v1/collections/all/search", json={"query": "read a file line by line"}).json()
        answers.append((time.perf_counter(), answer["version"], answer["path"]))

    def searching() -> None:
        while not stop.is_set():
            search()

    search()  # the encoder is loaded when it returns
    thread = threading.Thread(target=searching)
    thread.start()
    longest = 0.0
    try:
        for turn in range(_PROMOTIONS):
            number = versions[turn % len(versions)]
            began = time.perf_counter()
            http.post(f"/v1/models/{MODEL}/promote", json={"version": number, "force": True}).raise_for_status()
            longest = max(longest, _first(answers, began, f"{MODEL}@{number}", "instant", "indexed") - began)
            _first(answers, began, f"{MODEL}@{number}", "indexed")
    finally:
        stop.set()
        thread.join()
    return longest


def _first(answers: list[tuple[float, str, str]], since: float, version: str, *paths: str) -> float:
    """When the first such answer came; waits for it."""
    place = 0
    while True:
        for at, told, path in answers[place:]:
            place += 1
            if at > since and told == version and path in paths:
                return at
        time.sleep(0.001)


def tables(found: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    recalls = Table("dataset", "test queries", "recall@10 without bias", "with bias", title=f"{found['documents']:,} documents")
    for name in found["recall_at_10"]:
        shown = [found[f"recall_at_10_{which}_bias"][name] for which in ("without", "with")]
        recalls.add_row(name, str(found["queries"][name]), *(f"{one:.4f}" for one in shown))
    costs = Table("documents", "indexed, ms", "instant, ms", "added, ms", "p95 indexed", "p95 instant", "equal hits")
    for size, one in found["cost"].items():
        costs.add_row(
            f"{int(size):,}",
            *(f"{one[key]:.2f}" for key in ("indexed_ms", "instant_ms", "added_ms", "indexed_p95_ms", "instant_p95_ms")),
            f"{one['equal_hits']:.4f}",
        )
    costs.caption = f"live {found['live_seconds']:.3f} s after the promotion's request, at most"
    return [recalls, costs]


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zerogate" / "embeddings"
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--cache", type=Path, default=default, help="folder of the embedding cache (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=2_500, help="pairs of each dataset (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=300, help="test queries of each dataset (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="documents for the cost")
    parser.add_argument("--epochs", type=int, default=60, help="of the heads (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
