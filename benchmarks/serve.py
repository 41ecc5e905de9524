"""Requests a second of single texts at concurrency 32, against a service that encodes each text by itself.

    python -m benchmarks.serve [--requests N] [--rounds N] [--heads N] [--cpu-threads N] [--json]

Two services in processes of their own, on the same HTTP stack, database and heads; this process sends the requests, none of them
twice. In every round: the peer (one `encode` of sentence-transformers a request, in fp32, behind a lock), ours with texts whose
vectors are in the cache, which shows what the stack takes, and ours with one head and with many heads mixed at random, of which
each comes first in every other round. Ratios are medians of the rounds. The head's part of a pass is timed in this process, pass
and head in turn.
"""

import argparse
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.serve_load import Load, drive, embeddings_request
from benchmarks.serve_service import fill, model_name, running, seeded_head, serve_ours, serve_peer
from service.settings import Settings
from zerogate import Encoder

CONCURRENCY = 32
LEAST_COSINE = 0.999  # of our answers (bf16 where the processor has it) to the peer's (fp32)

_WORDS = """
    how can I reset my old account password when the email address has changed since last order refund late parcel invoice card
    bank window garden python method class returns value list file open close table river winter music doctor train ticket
""".split()  # noqa: SIM905 (sixty words are read more easily so)
_WORDS_A_TEXT = 8
_WARM_REQUESTS = 300
_PEER_SHARE = 4  # The peer gets a fraction of the requests: it is that much slower.
_KNOWN = 256
_TIMED_PASSES = 60


@dataclass(frozen=True)
class Figures:
    """One measurement. Rates are requests a second; a peer's text takes a pass of its own."""

    ratio: float  # one head, over the peer
    heads_100_ratio: float  # many heads, over one
    head_overhead: float  # time of the head over time of the pass, one head and 32 texts
    heads_mixed_overhead: float  # the same where every text has another head
    p50_ms: float
    p99_ms: float
    p99_over_p50: float
    rate: float
    rate_many_heads: float
    rate_peer: float
    peer_p50_ms: float
    rate_known: float
    stack_ms: float  # of a request whose vector is known: HTTP, database, tokens, head, answer
    requests: int  # with one head, in all rounds
    least_cosine: float  # of answers to the peer's


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Embeddings of single texts over HTTP, against one encode a request.")
    parser.add_argument("--requests", type=int, default=300, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--heads", type=int, default=100)
    parser.add_argument("--cpu-threads", type=int, help="of one product, in both services; default: torch's choice")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            Path(folder), requests=given.requests, rounds=given.rounds, heads=given.heads, cpu_threads=given.cpu_threads
        )
    Console().print(_table(figures))
    if given.json:
        print(json.dumps(asdict(figures)))


def measure(folder: Path, *, requests: int, rounds: int, heads: int, cpu_threads: int | None = None) -> Figures:
    """Run both services and drive them in turn. Raises RuntimeError where the answers differ."""
    rng = np.random.default_rng(0)
    known = texts(_KNOWN, rng)
    settings = Settings(data_dir=folder / "ours", cpu_threads=cpu_threads)
    fill(settings, heads=heads)
    peers_settings = Settings(data_dir=folder / "peer", cpu_threads=cpu_threads)
    fill(peers_settings, heads=1)
    with running(partial(serve_ours, known=tuple(known)), settings) as ours, running(serve_peer, peers_settings) as peer:
        least_cosine = _compare(ours, peer, texts(64, rng))
        for port, count in ((ours, _WARM_REQUESTS), (peer, _WARM_REQUESTS // _PEER_SHARE)):
            drive(port, _requests(texts(count, rng), heads=1, rng=rng), concurrency=CONCURRENCY)
        drive(ours, [embeddings_request(model_name(number), "warm") for number in range(heads)], concurrency=CONCURRENCY)
        loads: list[tuple[Load, Load, Load, Load]] = []
        for number in range(rounds):
            of_peer = drive(peer, _requests(texts(-(-requests // _PEER_SHARE), rng), heads=1, rng=rng), concurrency=CONCURRENCY)
            again = drive(
                ours, _requests([known[i % _KNOWN] for i in range(requests)], heads=1, rng=rng), concurrency=CONCURRENCY
            )
            ways = {
                way: drive(ours, _requests(texts(requests, rng), heads=count, rng=rng), concurrency=CONCURRENCY)
                for way, count in ((("one", 1), ("many", heads)) if number % 2 else (("many", heads), ("one", 1)))
            }
            loads.append((of_peer, ways["one"], ways["many"], again))
    if cpu_threads is not None:
        torch.set_num_threads(cpu_threads)
    head_overhead, heads_mixed_overhead = head_overheads(texts(CONCURRENCY, rng))
    p50, p99 = np.percentile(np.concatenate([one.milliseconds for _, one, _, _ in loads]), (50, 99))
    rates = [statistics.median(round_[kind].rate for round_ in loads) for kind in range(4)]
    return Figures(
        ratio=statistics.median(one.rate / of_peer.rate for of_peer, one, _, _ in loads),
        heads_100_ratio=statistics.median(many.rate / one.rate for _, one, many, _ in loads),
        head_overhead=head_overhead,
        heads_mixed_overhead=heads_mixed_overhead,
        p50_ms=float(p50),
        p99_ms=float(p99),
        p99_over_p50=float(p99 / p50),
        rate=rates[1],
        rate_many_heads=rates[2],
        rate_peer=rates[0],
        peer_p50_ms=float(np.median(np.concatenate([of_peer.milliseconds for of_peer, _, _, _ in loads]))),
        rate_known=rates[3],
        stack_ms=1000 / rates[3],
        requests=requests * rounds,
        least_cosine=least_cosine,
    )


def texts(count: int, rng: np.random.Generator) -> list[str]:
    """So many different texts of eight common words and a number: about a dozen tokens."""
    first = int(rng.integers(10_000, 90_000))
    return [f"{' '.join(rng.choice(_WORDS, _WORDS_A_TEXT))} {first + number}" for number in range(count)]


def head_overheads(some: Sequence[str]) -> tuple[float, float]:
    """What heads take beside the pass of these texts: one head for all of them, and another one for each. Medians, in turn."""
    encoder = Encoder("all-MiniLM-L6-v2")
    rows = encoder.tokenize(some, role="query")
    heads = [seeded_head(number, encoder.dim) for number in range(100)]
    rng = np.random.default_rng(1)
    base = encoder.encode_tokens(rows, role="query")
    seconds: list[tuple[float, float, float]] = []
    for _ in range(_TIMED_PASSES):
        mixed = rng.choice(len(heads), len(some))
        began = time.perf_counter()
        encoder.encode_tokens(rows, role="query")
        passed = time.perf_counter()
        heads[0].vectors(base)
        grouped = time.perf_counter()
        for place, number in enumerate(mixed.tolist()):
            heads[number].vectors(base[[place]])
        seconds.append((passed - began, grouped - passed, time.perf_counter() - grouped))
    of_pass, of_one, of_mixed = (statistics.median(column) for column in zip(*seconds, strict=True))
    return of_one / of_pass, of_mixed / of_pass


def decoded(body: bytes) -> NDArray[np.float32]:
    """The vector in an answer to one text."""
    (one,) = orjson.loads(body)["data"]
    return np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4")


def _requests(some: Sequence[str], *, heads: int, rng: np.random.Generator) -> list[bytes]:
    numbers = rng.integers(heads, size=len(some)).tolist()
    return [embeddings_request(model_name(number), text) for number, text in zip(numbers, some, strict=True)]


def _compare(ours: int, peer: int, some: Sequence[str]) -> float:
    """The least cosine between the two services' answers to the same requests."""
    asked = [embeddings_request(model_name(0), text) for text in some]
    answers = (drive(port, asked, concurrency=CONCURRENCY).bodies for port in (ours, peer))
    least = min(float(decoded(one) @ decoded(other)) for one, other in zip(*answers, strict=True))
    if not least >= LEAST_COSINE:
        raise RuntimeError(f"the services' answers differ: cosine {least:.5f}, at least {LEAST_COSINE} is asked for")
    return least


def _table(figures: Figures) -> Table:
    table = Table(title=f"{figures.requests:,} requests of one text each, {CONCURRENCY} at a time")
    for name in ("", "requests/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("one encode a request, fp32, behind a lock", f"{figures.rate_peer:,.0f}", f"{figures.peer_p50_ms:.1f}", "")
    table.add_row("ours, one head", f"{figures.rate:,.0f}", f"{figures.p50_ms:.1f}", f"{figures.p99_ms:.1f}")
    table.add_row("ours, many heads at random", f"{figures.rate_many_heads:,.0f}", "", "")
    table.add_row("ours, vectors known: the stack alone", f"{figures.rate_known:,.0f}", "", "")
    table.add_section()
    table.add_row("over the peer", f"{figures.ratio:.2f}", "", "")
    table.add_row("many heads over one", f"{figures.heads_100_ratio:.3f}", "", "")
    table.add_row(
        "head over pass, one for 32 texts; 32", f"{figures.head_overhead:.2%}; {figures.heads_mixed_overhead:.2%}", "", ""
    )
    table.add_row("stack, ms a request", f"{figures.stack_ms:.2f}", "", "")
    table.add_row("p99 over p50; least cosine", f"{figures.p99_over_p50:.1f}; {figures.least_cosine:.5f}", "", "")
    return table


if __name__ == "__main__":
    main()
