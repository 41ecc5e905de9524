"""A new version's vectors for a whole collection: the re-head job, beside encoding the same texts again.

    python -m benchmarks.rehead [--json] [--points N] [--sample N] [--rounds N]

The job is the real one, in this process, over SQLite and Qdrant Edge: it adds the named vector, reads the base vectors, applies
the head, writes, counts, makes the name ready, and drops the oldest. The peer is the service's own encoder over texts of eight
words, a sample of them, scaled by their number; it writes nothing, so it is at an advantage. Beside it stands what the encoder
takes without this service, plain sentence-transformers in float32. Rounds alternate; medians are told.
A thread that only wants to wake up every millisecond tells how late it did meanwhile: what an API beside the job would feel.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from benchmarks.publish_at_size_data import DIM
from benchmarks.scale_collection import PHYSICAL, Workplace, workplace
from service.names import vector_name
from zerogate.encoder import Encoder

ENCODER = "all-MiniLM-L6-v2"
_WAKE_SECONDS = 0.001
_EQUAL_COSINE = 0.999  # bfloat16 against float32 keeps 0.9999

Vectors = NDArray[np.float32]

# Everyday words, a token each: the shortest work that eight words can be to the encoder.
_WORDS = """
    the of and to in is was for on that with his they at be this from have or by one had not but what all were when we there can
    an your which their said if do will each about how up out them then she many some so these would other into has more her two
    like him see time could no make than first been its who now people my made over did down only way find use may water long
    little very after words called just where most know house world school light night mother father city earth paper river music
"""


@dataclass
class Lateness:
    """How late a thread woke up that wanted to every millisecond, in milliseconds."""

    found: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """What is told. difference: of a stored number from head(base), at most.

    ratio: of the re-head's points to the texts of the service's encoder; ratio_plain: to those of sentence-transformers.
    """

    points: int
    points_per_second: float
    texts_per_second: float
    plain_texts_per_second: float
    ratio: float
    ratio_plain: float
    late_p99_ms: float
    late_max_ms: float
    difference: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Re-heading a collection, beside encoding its texts again.")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=2_000, help="texts to encode in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), points=given.points, sample=given.sample, rounds=given.rounds)
    _show(figures)
    if given.json:
        print(json.dumps(asdict(figures)))


def measure(folder: Path, *, points: int, sample: int, rounds: int) -> Figures:
    """Re-head `points` points and encode `sample` texts, `rounds` times each, one after the other.

    Raises RuntimeError where points lack the new vectors or hold others than the head's of their base vectors, and where the
    two encoders disagree.
    """
    encoder = Encoder(ENCODER)
    plain = SentenceTransformer(str(encoder.files.path), device=str(encoder.device), local_files_only=True)
    _check_equal(*(_encoded(encoder, plain, texts(min(sample, 256), seed=0))[:2]))  # the first batch of each is slow, too
    encode_seconds, plain_seconds, rehead_seconds, late, differences = [], [], [], Lateness(), []
    with workplace(folder, dim=DIM) as place:
        place.publish(points)
        for number in range(1, rounds + 1):
            some = texts(sample, seed=number)
            _, _, ours, theirs = _encoded(encoder, plain, some)
            encode_seconds.append(ours / sample)
            plain_seconds.append(theirs / sample)
            version = place.add_version()
            with _watching(late):
                rehead_seconds.append(place.rehead(version) / points)
            differences.append(_difference(place, version))
    return Figures(
        points=points,
        points_per_second=1 / median(rehead_seconds),
        texts_per_second=1 / median(encode_seconds),
        plain_texts_per_second=1 / median(plain_seconds),
        ratio=median(encode_seconds) / median(rehead_seconds),
        ratio_plain=median(plain_seconds) / median(rehead_seconds),
        late_p99_ms=float(np.percentile(late.found, 99)),
        late_max_ms=max(late.found),
        difference=max(differences),
    )


def _encoded(encoder: Encoder, plain: SentenceTransformer, some: list[str]) -> tuple[Vectors, Vectors, float, float]:
    """The vectors by both, and the seconds of both."""
    started = time.perf_counter()
    ours = encoder.encode(some, role="document")
    between = time.perf_counter()
    theirs = plain.encode(some, normalize_embeddings=True, show_progress_bar=False)
    return ours, np.asarray(theirs), between - started, time.perf_counter() - between


def _check_equal(ours: Vectors, theirs: Vectors) -> None:
    cosine = float((ours * theirs).sum(axis=1).min())
    if cosine < _EQUAL_COSINE:
        raise RuntimeError(f"the two encoders give vectors with a cosine of {cosine:.4f}, less than {_EQUAL_COSINE}")


def texts(count: int, *, seed: int) -> list[str]:
    """Texts of eight everyday words."""
    drawn, words = random.Random(seed), _WORDS.split()
    return [" ".join(drawn.choices(words, k=8)) for _ in range(count)]


@contextmanager
def _watching(late: Lateness) -> Iterator[None]:
    ended = threading.Event()

    def wake() -> None:
        while not ended.is_set():
            due = time.perf_counter() + _WAKE_SECONDS
            time.sleep(_WAKE_SECONDS)
            late.found.append((time.perf_counter() - due) * 1e3)

    thread = threading.Thread(target=wake, name="watching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _difference(place: Workplace, version: int) -> float:
    """How far the stored vectors are from the head's of the stored base vectors: the first 2,000 points. Raises RuntimeError."""
    name = vector_name(version)
    having, there = place.vectors.count(PHYSICAL, having=name), place.vectors.count(PHYSICAL)
    if having != there:
        raise RuntimeError(f"{having} of {there} points have '{name}'")
    base = next(place.vectors.scroll(PHYSICAL, "base", batch_size=2_000))
    made = next(place.vectors.scroll(PHYSICAL, name, batch_size=2_000))
    head = place.heads[version - 1]
    y = base.matrix.astype(np.float64) @ head.matrix.T + (0 if head.offset is None else head.offset)
    found = float(np.abs(y / np.linalg.norm(y, axis=1, keepdims=True) - made.matrix).max())
    if base.ids != made.ids or found > 1e-6:
        raise RuntimeError(f"'{name}' differs from head(base) by {found:g}")
    return found


def _show(figures: Figures) -> None:
    table = Table("", title=f"Re-heading {figures.points:,} points of {DIM}")
    for heading in ("per second", "100,000 take"):
        table.add_column(heading, justify="right")
    rates = {
        "re-head": figures.points_per_second,
        f"encode again ({ENCODER})": figures.texts_per_second,
        "the same with sentence-transformers": figures.plain_texts_per_second,
    }
    for what, rate in rates.items():
        table.add_row(what, f"{rate:,.0f}", f"{1e5 / rate:,.1f} s")
    table.caption = (
        f"{figures.ratio:.1f} and {figures.ratio_plain:.1f} times as fast. "
        f"Beside the job a thread wakes up {figures.late_p99_ms:.0f} ms late (p99), "
        f"{figures.late_max_ms:.0f} ms at most. Vectors are head(base) but for {figures.difference:.1g}."
    )
    Console().print(table)


if __name__ == "__main__":
    main()
