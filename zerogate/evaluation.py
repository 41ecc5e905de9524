"""Retrieval scores over a whole corpus: ndcg@10, mrr@10 and recall@k.

Every document of the corpus competes; nothing is sampled. Ties go to the document that stands first in the corpus.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 10, 100)
_DEPTH = 10
_NUMBERS_PER_BLOCK = 32_000_000  # similarities held at once: 128 MB, however large the corpus is


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of queries. per_query: for each name, (queries,) float64 in [0, 1]; `scores` are their means."""

    per_query: dict[str, NDArray[np.float64]]

    @property
    def scores(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_query.items()}


def evaluate(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[Sequence[int]],
    *,
    on_block: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score the ranking of all documents for each query.

    queries: (q, dim), documents: (n, dim); unit rows of one version. relevant: for each query the indices of its relevant
    documents, at least one. on_block: called with (queries done, all queries); it may raise to stop.
    """
    found: dict[str, list[float]] = {name: [] for name in ("ndcg@10", "mrr@10", *(f"recall@{k}" for k in RECALL_AT))}
    rows = max(1, min(256, _NUMBERS_PER_BLOCK // max(1, len(documents))))
    for start in range(0, len(queries), rows):
        if on_block is not None:
            on_block(start, len(queries))
        block = queries[start : start + rows] @ documents.T  # (b, n)
        for similarities, wanted in zip(block, relevant[start : start + rows], strict=True):
            for name, value in _scores(ranks(similarities, wanted)).items():
                found[name].append(value)
    return Evaluation({name: np.asarray(values) for name, values in found.items()})


def ranks(similarities: NDArray[np.float32], wanted: Sequence[int]) -> NDArray[np.int64]:
    """The ranks, from 1 and ascending, that the wanted documents have in the order of falling similarity, (len(wanted),)."""
    positions = np.asarray(wanted, dtype=np.int64)
    place = []
    for position in positions:
        mine = similarities[position]
        # Counted from the end, because NaN compares with nothing: a vector that is no number stands last, not first.
        worse = int(np.count_nonzero(similarities < mine)) + int(np.count_nonzero(similarities[position + 1 :] == mine))
        place.append(len(similarities) - worse)
    return np.sort(np.asarray(place, dtype=np.int64))


def _scores(place: NDArray[np.int64]) -> dict[str, float]:
    """ndcg@10 with binary relevance (Jarvelin and Kekalainen 2002), mrr@10 and recall@k of one query."""
    top = place[place <= _DEPTH]
    ideal = np.arange(1, min(len(place), _DEPTH) + 1)
    return {
        "ndcg@10": float((1 / np.log2(top + 1)).sum() / (1 / np.log2(ideal + 1)).sum()),
        "mrr@10": float(1 / top[0]) if len(top) else 0.0,
        **{f"recall@{k}": float(np.count_nonzero(place <= k) / len(place)) for k in RECALL_AT},
    }
