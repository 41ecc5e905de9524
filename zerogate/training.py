"""What a head is fitted to: examples as indices of texts, one class for each way in which texts can belong together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairExamples:
    """Pairs of a query and a document that belong together (datasets of kind pairs, triplets and queries).

    pairs: (k, 2) int64, rows distinct; a query's and a document's index.
    negatives: (k, h) int64, for each pair documents that do not belong to its query; -1 where there are fewer than h. h may be 0.
    """

    pairs: NDArray[np.int64]
    negatives: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class ScoredExamples:
    """Pairs of two queries with the similarity that they shall have. pairs: (k, 2) int64; scores: (k,) float32 from 0 to 1."""

    pairs: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class GroupExamples:
    """Queries with labels. texts: (k,) int64, the queries' indices; labels: (k,) int64, numbered from 0 without gaps."""

    texts: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


Examples = PairExamples | ScoredExamples | GroupExamples


def named(examples: Examples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The queries and the documents that the examples name, each index once, ascending."""
    match examples:
        case PairExamples(pairs, negatives):
            documents = np.unique(np.concatenate((pairs[:, 1], negatives[negatives >= 0])))
            return np.unique(pairs[:, 0]), documents
        case ScoredExamples(pairs, _):
            return np.unique(pairs), np.empty(0, dtype=np.int64)
        case GroupExamples(texts, _):
            return np.unique(texts), np.empty(0, dtype=np.int64)
