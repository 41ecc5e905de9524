"""How the figures of a collection grow with its points: publish, memory, disk, search and re-head, on SQLite and Qdrant Edge.

    python -m benchmarks.scale [--json] [--sizes N ...]      # 10,000 100,000 1,000,000; the largest has 32 numbers a point

Each size gets a process and a folder of its own. The jobs are the real ones; base vectors cost nothing and are not cached, so
what is left is what the service itself adds. Searches look for documents by their own vector in version 1: `instant` while that
is only stored, through the base vectors; `indexed` once its vectors are there. Both must find the document first. From these
figures docs/performance.md extrapolates.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.publish_at_size_data import DIM
from benchmarks.publish_at_size_processes import anonymous_memory
from benchmarks.scale_collection import NAME, PHYSICAL, Workplace, workplace
from service.collections.search import search
from service.resources import DEFAULT_PROJECT
from service.vectors.engine import Hit

SIZES = (10_000, 100_000, 1_000_000)
# Edge is documented up to 200,000 points of 384. More of them shall fit in the memory and the minutes of a small machine.
LONG_UP_TO, SHORT_DIM = 200_000, 32
_SEARCHES = 20
_LIMIT = 10
_VERSION = 1


@dataclass(frozen=True)
class Size:
    """The figures of one size. Bytes of disk: of the vectors' folder, with `base` alone and after the re-head."""

    points: int
    dim: int
    publish_points_per_second: float
    publish_rss_anon_growth_mb: float
    disk_bytes_per_point: float
    rehead_points_per_second: float
    rehead_rss_anon_growth_mb: float
    rehead_disk_bytes_per_point: float
    instant_ms: float
    indexed_ms: float
    instant_recall: float  # of the 10 that the version's own vectors give


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How a collection's figures grow with its points.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    found = []
    for points in given.sizes:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=fresh) as process:
            found.append(process.submit(measure, Path(folder), points).result())
    Console().print(_table(found))
    if given.json:
        print(json.dumps({"sizes": [asdict(size) for size in found], "growth": growth(found)}))


def measure(folder: Path, points: int) -> Size:
    """The figures of one collection. Raises RuntimeError where a search does not find the document that it looks for."""
    dim = DIM if points <= LONG_UP_TO else SHORT_DIM
    with workplace(folder, dim=dim) as place:
        with anonymous_memory(os.getpid()) as publishing:
            result = place.publish(points)
        if result["points"] != points:
            raise RuntimeError(f"{result['points']} of {points} points are there")
        disk = bytes_on_disk(folder / "vectors")
        place.add_version()
        instant_ms, by_instant = _search(place, path="instant")
        with anonymous_memory(os.getpid()) as reheading:
            seconds = place.rehead(_VERSION)
        indexed_ms, by_index = _search(place, path="indexed")
        return Size(
            points=points,
            dim=dim,
            publish_points_per_second=points / (result["publish_seconds"] + result["encode_seconds"]),
            publish_rss_anon_growth_mb=publishing.growth_mb,
            disk_bytes_per_point=disk / points,
            rehead_points_per_second=points / seconds,
            rehead_rss_anon_growth_mb=reheading.growth_mb,
            rehead_disk_bytes_per_point=bytes_on_disk(folder / "vectors") / points,
            instant_ms=instant_ms,
            indexed_ms=indexed_ms,
            instant_recall=recall(by_instant, by_index),
        )


def bytes_on_disk(folder: Path) -> int:
    """What the files take, which is less than they claim where they have holes."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def recall(found: list[set[str]], wanted: list[set[str]]) -> float:
    """The mean share of the wanted ids that were found."""
    return float(np.mean([len(one & other) / len(other) for one, other in zip(found, wanted, strict=True)]))


def growth(sizes: list[Size]) -> dict[str, float]:
    """How many times the largest size's figure is the smallest's."""
    first, last = asdict(sizes[0]), asdict(sizes[-1])
    return {name: last[name] / first[name] for name in first if first[name] and name != "dim"}


def _search(place: Workplace, *, path: str) -> tuple[float, list[set[str]]]:
    """The median of a search's milliseconds, and the ids that each found."""
    page = next(place.vectors.scroll(PHYSICAL, "base", batch_size=_SEARCHES))
    queries = place.heads[_VERSION - 1].vectors(page.matrix)
    seconds, found = [], []
    _hits(place, queries[0], path=path)  # loads the head
    for wanted, query in zip(page.ids, queries, strict=True):
        started = time.perf_counter()
        hits = _hits(place, query, path=path)
        seconds.append(time.perf_counter() - started)
        # Of many drawn documents two may have the same vector: their seeds have 32 bits.
        if wanted not in {hit.id for hit in hits if hit.score > hits[0].score - 1e-6}:
            raise RuntimeError(f"the {path} search found {hits[0].id} first, not {wanted}")
        found.append({hit.id for hit in hits})
    return 1e3 * median(seconds), found


def _hits(place: Workplace, query: NDArray[np.float32], *, path: str) -> list[Hit]:
    target, hits = search(
        place.resources,
        DEFAULT_PROJECT,
        NAME,
        version=_VERSION,
        strength=None,
        query=None,
        vector=query.tolist(),
        limit=_LIMIT,
        where=None,
    )
    if target.path != path:
        raise RuntimeError(f"the search took the path '{target.path}', not '{path}'")
    return hits


def _table(sizes: list[Size]) -> Table:
    table = Table("", title="A collection's figures by its size")
    for size in sizes:
        table.add_column(f"{size.points:,} x {size.dim}", justify="right")
    table.add_row("publish, points a second", *(f"{size.publish_points_per_second:,.0f}" for size in sizes))
    table.add_row("publish, MB of memory above idle", *(f"{size.publish_rss_anon_growth_mb:,.0f}" for size in sizes))
    table.add_row("disk, bytes a point: base", *(f"{size.disk_bytes_per_point:,.0f}" for size in sizes))
    table.add_row("re-head, points a second", *(f"{size.rehead_points_per_second:,.0f}" for size in sizes))
    table.add_row("re-head, MB of memory above idle", *(f"{size.rehead_rss_anon_growth_mb:,.0f}" for size in sizes))
    table.add_row("disk, bytes a point: base and v1", *(f"{size.rehead_disk_bytes_per_point:,.0f}" for size in sizes))
    table.add_row("search, ms: instant", *(f"{size.instant_ms:.1f}" for size in sizes))
    table.add_row("search, ms: indexed", *(f"{size.indexed_ms:.1f}" for size in sizes))
    table.add_row("of the best 10, found instantly", *(f"{size.instant_recall:.3f}" for size in sizes))
    return table


if __name__ == "__main__":
    main()
