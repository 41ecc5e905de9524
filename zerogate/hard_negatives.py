"""Hard negatives from cached vectors: documents that look like an answer to a query and are none, as far as is known."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_NUMBERS_PER_BLOCK = 32_000_000  # similarities held at once: 128 MB, however large the corpus is


def mine_hard_negatives(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[Sequence[int]],
    *,
    per_query: int,
    margin: float,
    relative_margin: float = 0.0,
    numbers_per_block: int = _NUMBERS_PER_BLOCK,
    on_block: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """For each query, the most similar documents that are not relevant and that the margins leave over.

    A document that is about as similar as the best relevant one is often an answer that nobody has marked. So with b the best
    similarity of a relevant document, only documents strictly below both b - margin and b - relative_margin * |b| are taken
    (the TopK-MarginPos and TopK-PercPos of NV-Retriever, Moreira et al. 2024). Any margin above rounding (1e-5) keeps out
    copies of the best relevant document; copies of the others belong into `relevant`.

    queries: (q, dim), documents: (n, dim); unit rows of one version.
    relevant: for each query the indices of its relevant documents. Without any there is nothing to measure by: no negatives.
    per_query: how many at most, >= 1. margin: a difference of cosines, >= 0. relative_margin: a share of b, in [0, 1].
    numbers_per_block: how many similarities are held at once; at least one row of n is.
    on_block: called with (queries done, all queries); it may raise to stop.
    Gives (q, per_query) int64 indices of documents, the most similar first, equally similar ones in the order of the documents;
    -1 where there are no more.
    """
    if per_query < 1 or not margin >= 0 or not 0 <= relative_margin <= 1:
        raise ValueError(
            "per_query must be at least 1, margin at least 0 and relative_margin from 0 to 1, "
            f"found {per_query}, {margin} and {relative_margin}"
        )
    found = np.full((len(queries), per_query), -1, dtype=np.int64)
    rows = max(1, min(256, numbers_per_block // max(1, len(documents))))
    for start in range(0, len(queries), rows):
        if on_block is not None:
            on_block(start, len(queries))
        block = queries[start : start + rows] @ documents.T  # (b, n)
        for number, (similarities, wanted) in enumerate(zip(block, relevant[start : start + rows], strict=True), start):
            if len(wanted):
                hardest = _hardest(similarities, np.asarray(wanted, dtype=np.int64), per_query, margin, relative_margin)
                found[number, : len(hardest)] = hardest
    return found


def _hardest(
    similarities: NDArray[np.float32], wanted: NDArray[np.int64], at_most: int, margin: float, relative_margin: float
) -> NDArray[np.int64]:
    best = float(similarities[wanted].max())
    allowed = similarities < best - max(margin, relative_margin * abs(best))  # (n,)
    allowed[wanted] = False
    left = np.flatnonzero(allowed)
    if len(left) > at_most:
        values = similarities[left]
        # All that are as similar as the last one to be taken stay in: the order of the documents decides between them.
        left = left[values >= np.partition(values, len(values) - at_most)[len(values) - at_most]]
    return left[np.argsort(-similarities[left], kind="stable")][:at_most]
