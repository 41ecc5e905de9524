"""How fast texts become vectors: our encoder beside sentence-transformers' `encode`, and beside the floor of this machine.

    python -m benchmarks.encode [--texts N] [--rounds R] [--device cpu|cuda] [--json]

The texts are N of the standard library's docstrings, and N texts of eight words. The peer is sentence-transformers as it comes:
fp32, batches of 32 texts. The floor is the encoder's arithmetic on the tokens that are there, at the rate of its own matrix
products in our dtype, measured in the same run. All take turns in every round, and the best of each counts. With --json the
last line is one JSON object. Ends with 1 where a vector of ours has a cosine below 0.999 to the peer's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from benchmarks.encode_floor import Products, Shape, flops
from cli.docstrings import docstring_pairs
from zerogate.encoder import Encoder

ENCODER = "all-MiniLM-L6-v2"
MIN_COSINE = 0.999

_PEER_BATCH = 32
_FLOOR_TOKENS = {"cpu": 1024, "cuda": 32_768}  # of one pass
_FLOOR_PASSES = 10  # of each round


@dataclass(frozen=True)
class Speed:
    """Of one kind of text; all rates are texts a second."""

    ours: float
    peer: float
    floor: float
    tokens_per_text: float
    cosine_min: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def share_of_floor(self) -> float:
        return self.ours / self.floor


def main() -> None:
    """Measure, print, and exit with 1 where the vectors are not the peer's."""
    parser = argparse.ArgumentParser(description="Texts a second: our encoder, sentence-transformers and the floor.")
    parser.add_argument("--texts", type=int, default=384, help="of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: CUDA where there is one)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    encoder = Encoder(ENCODER, device=given.device)
    peer = SentenceTransformer(str(encoder.files.path), device=str(encoder.device), local_files_only=True)
    docstrings, short = texts_of_each_kind(given.texts)
    products = Products(
        shape_of(peer),
        _FLOOR_TOKENS[encoder.device.type],
        dtype=torch.bfloat16 if encoder.dtype == "bfloat16" else torch.float32,
        device=encoder.device,
    )
    found = {
        name: measure(encoder, peer, products, texts, rounds=given.rounds)
        for name, texts in (("docstrings", docstrings), ("eight words", short))
    }
    Console().print(_table(found, encoder))
    if given.json:
        print(json.dumps(figures(found, encoder)))
    sys.exit(0 if min(one.cosine_min for one in found.values()) >= MIN_COSINE else 1)


def measure(encoder: Encoder, peer: SentenceTransformer, products: Products, texts: Sequence[str], *, rounds: int) -> Speed:
    """All three on the same texts, in turns. products: of the peer's shape, in the encoder's dtype and on its device."""

    def ours() -> NDArray[np.float32]:
        return encoder.encode(texts, role="document")

    def theirs() -> NDArray[np.float32]:
        made: NDArray[np.float32] = peer.encode(list(texts), batch_size=_PEER_BATCH, show_progress_bar=False)
        return made

    cosine_min = float((ours() * theirs()).sum(axis=1).min())  # both give unit rows; this was the warm-up too
    our_seconds, peer_seconds, rates = [], [], []
    for _ in range(rounds):
        our_seconds.append(_seconds(ours))
        peer_seconds.append(_seconds(theirs))
        rates.append(products.rate(_FLOOR_PASSES))
    lengths = [len(row) for row in encoder.tokenize(texts, role="document")]
    return Speed(
        ours=len(texts) / min(our_seconds),
        peer=len(texts) / min(peer_seconds),
        floor=len(texts) * max(rates) / flops(shape_of(peer), lengths),
        tokens_per_text=sum(lengths) / len(lengths),
        cosine_min=cosine_min,
    )


def texts_of_each_kind(count: int) -> tuple[list[str], list[str]]:
    """So many docstrings from all over the standard library, and the first eight words of as many other ones."""
    pairs = docstring_pairs()
    step = len(pairs) / count
    chosen = [pairs[int(step * number)] for number in range(count)]
    return [pair.positive for pair in chosen], [" ".join(pair.anchor.split()[:8]) for pair in chosen]


def shape_of(model: SentenceTransformer) -> Shape:
    """Of the model's transformer, from its configuration."""
    config: Any = model[0].config
    return Shape(config.num_hidden_layers, config.hidden_size, config.intermediate_size)


def figures(found: dict[str, Speed], encoder: Encoder) -> dict[str, Any]:
    """What --json prints: the docstrings' ratios by themselves, and everything of every kind. Rates are texts a second."""
    docstrings = found["docstrings"]
    return {
        "ratio": docstrings.ratio,
        "cosine_min": min(one.cosine_min for one in found.values()),
        "share_of_floor": docstrings.share_of_floor,
        "device": str(encoder.device),
        "dtype": encoder.dtype,
        "threads": torch.get_num_threads(),
        "texts_per_second": {
            name: {**asdict(one), "ratio": one.ratio, "share_of_floor": one.share_of_floor} for name, one in found.items()
        },
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _table(found: dict[str, Speed], encoder: Encoder) -> Table:
    title = f"texts a second, {encoder.dtype} on {encoder.device}, {torch.get_num_threads()} threads; the peer in fp32"
    table = Table(title=title)
    for column in ("texts", "tokens", "peer", "ours", "ratio", "floor", "share", "cosine"):
        table.add_column(column, justify="left" if column == "texts" else "right")
    for name, one in found.items():
        rates = (f"{one.tokens_per_text:.0f}", f"{one.peer:,.0f}", f"{one.ours:,.0f}", f"{one.ratio:.2f}", f"{one.floor:,.0f}")
        table.add_row(name, *rates, f"{one.share_of_floor:.2f}", f"{one.cosine_min:.5f}")
    return table


if __name__ == "__main__":
    main()
