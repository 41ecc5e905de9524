"""How far a version moved what it should not: a measure that needs no labels, and so has no noise of labels."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerogate.scored_test import spearman

NEAREST = 10
MOST_TEXTS = 2_000  # Their 2.0 million similarities are ranked in a second.


@dataclass(frozen=True)
class Drift:
    """rank_correlation: Spearman's, in [-1, 1], between all pairwise similarities before and after; 1 is no drift.

    neighbours: the mean share, in [0, 1], of each text's ten nearest texts that are still among its ten nearest; 1 is no drift.
    texts: how many texts it was measured on.
    """

    rank_correlation: float
    neighbours: float
    texts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def drift(base: NDArray[np.float32], tuned: NDArray[np.float32]) -> Drift:
    """Compare the similarities of n different texts before and after.

    base: (n, dim), tuned: (n, any dim), unit rows of the same texts. Of more than 2,000 texts those 2,000 count whose base
    vectors have the smallest digests: the same ones in whatever order they come. Ties among neighbours go to the first text.
    Fewer than eleven texts have fewer neighbours; raises ValueError for fewer than three, which have no two to choose from.
    """
    if len(base) != len(tuned) or len(base) < 3:
        raise ValueError(f"base and tuned must be vectors of the same three texts or more, found {len(base)} and {len(tuned)}")
    if len(base) > MOST_TEXTS:
        chosen = _chosen(base)
        base, tuned = base[chosen], tuned[chosen]
    before, after = _similarities(base), _similarities(tuned)
    upper = np.triu_indices(len(base), k=1)
    correlation = spearman(before[upper], after[upper])
    return Drift(correlation, _shared_neighbours(before, after), len(base))


def _chosen(base: NDArray[np.float32]) -> NDArray[np.int64]:
    digests = [hashlib.sha256(row.tobytes()).digest() for row in base]
    return np.sort(np.asarray(sorted(range(len(base)), key=digests.__getitem__)[:MOST_TEXTS], dtype=np.int64))


def _similarities(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """All pairwise similarities, (n, n); a vector that is no number is like nothing."""
    similarities: NDArray[np.float32] = vectors @ vectors.T
    similarities[np.isnan(similarities)] = -np.inf
    return similarities


def _shared_neighbours(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    nearest = min(NEAREST, len(before) - 1)
    kept = _is_near(before, nearest) & _is_near(after, nearest)
    return float(kept.sum() / (len(before) * nearest))


def _is_near(similarities: NDArray[np.float32], nearest: int) -> NDArray[np.bool_]:
    """Mark the `nearest` most similar other texts of each text, (n, n). Overwrites the diagonal of `similarities`."""
    np.fill_diagonal(similarities, -np.inf)
    least = np.partition(similarities, -nearest, axis=1)[:, -nearest, None]  # (n, 1), the similarity of the last one
    above, level = similarities > least, similarities == least
    room = nearest - above.sum(axis=1, keepdims=True)
    near: NDArray[np.bool_] = above | (level & (np.cumsum(level, axis=1) <= room))
    return near
