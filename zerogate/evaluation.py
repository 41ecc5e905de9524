"""Tests of quality and what they give; and the retrieval test: ndcg@10, mrr@10 and recall@k over a whole corpus.

The tests of the other kinds are in `zerogate.label_test` and `zerogate.scored_test`. What follows from two evaluations is in
`zerogate.verdict` (on the task) and `zerogate.guard` (on what must not be forgotten).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerogate.bootstrap import Comparison, compare_means
from zerogate.errors import TooFewExamples
from zerogate.vectors import Vectors

RECALL_AT = (1, 10, 100)
RETRIEVAL_SCORES = ("ndcg@10", "mrr@10", *(f"recall@{k}" for k in RECALL_AT))
NUMBERS_PER_BLOCK = 32_000_000  # Similarities held at once: 128 MB, however large the corpus is.
_DEPTH = 10

OnBlock = Callable[[int, int], None]
"""Called before every block with (items done, all items); it may raise to stop."""


class Evaluation(ABC):
    """What one version earned on one test. `primary` names the score that decides."""

    primary: str

    @property
    @abstractmethod
    def scores(self) -> dict[str, float]:
        """All scores by name; larger is better."""

    @property
    @abstractmethod
    def items(self) -> NDArray[np.float64]:
        """How well each item of the test does, (n,); larger is better. Says which items gained and which lost."""

    @abstractmethod
    def compare(self, tuned: "Evaluation", *, seed: int = 0) -> Comparison:
        """Compare the primary scores, item by item; `self` is the base. Raises ValueError when the tests were different ones."""

    @property
    def value(self) -> float:
        return self.scores[self.primary]


@dataclass(frozen=True)
class MeanEvaluation(Evaluation):
    """Scores that are means over the items. per_item: for each name, (n,) float64 in [0, 1]."""

    primary: str
    per_item: dict[str, NDArray[np.float64]]

    @property
    def scores(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_item.items()}

    @property
    def items(self) -> NDArray[np.float64]:
        return self.per_item[self.primary]

    def compare(self, tuned: Evaluation, *, seed: int = 0) -> Comparison:
        check_same_test(self, tuned)
        return compare_means(self.items, tuned.items, seed=seed)


class Test(ABC):
    """A test of quality: RetrievalTest, LabelTest or ScoredTest. Its indices are those of the rows of `Vectors`."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of items: queries, texts or pairs."""

    @abstractmethod
    def evaluate(self, vectors: Vectors, on_block: OnBlock | None = None) -> Evaluation:
        """Test the vectors of one version."""


@dataclass(frozen=True)
class RetrievalTest(Test):
    """Each query ranks all documents. queries: (q,) int64; relevant: for each the indices of its documents, at least one.

    primary: one of ndcg@10, mrr@10, recall@1, recall@10, recall@100.
    """

    queries: NDArray[np.int64]
    relevant: list[list[int]]
    primary: str = "ndcg@10"

    @property
    def size(self) -> int:
        return len(self.queries)

    def evaluate(self, vectors: Vectors, on_block: OnBlock | None = None) -> MeanEvaluation:
        queries = vectors.queries[self.queries]
        return evaluate(queries, vectors.documents, self.relevant, primary=self.primary, on_block=on_block)


def evaluate(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[Sequence[int]],
    *,
    primary: str = "ndcg@10",
    on_block: OnBlock | None = None,
) -> MeanEvaluation:
    """Score the ranking of all documents for each query. Nothing is sampled; ties go to the document that stands first.

    queries: (q, dim), documents: (n, dim); unit rows of one version. relevant: for each query the indices of its relevant
    documents, at least one. Raises TooFewExamples without queries, ValueError for another primary score than the five.
    """
    if primary not in RETRIEVAL_SCORES:
        raise ValueError(f"primary must be one of {', '.join(RETRIEVAL_SCORES)}, found {primary!r}")
    check_any(len(queries), "queries to test on")
    found: dict[str, list[float]] = {name: [] for name in RETRIEVAL_SCORES}
    rows = rows_per_block(len(documents))
    for start in range(0, len(queries), rows):
        if on_block is not None:
            on_block(start, len(queries))
        block = queries[start : start + rows] @ documents.T  # (b, n)
        for similarities, wanted in zip(block, relevant[start : start + rows], strict=True):
            for name, value in _scores(ranks(similarities, wanted)).items():
                found[name].append(value)
    return MeanEvaluation(primary, {name: np.asarray(values) for name, values in found.items()})


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


def rows_per_block(columns: int) -> int:
    """How many rows of that many similarities are held at once, 1 to 256."""
    return max(1, min(256, NUMBERS_PER_BLOCK // max(1, columns)))


def check_any(items: int, what: str) -> None:
    """Raises TooFewExamples for a test without items: it has no score."""
    if items == 0:
        raise TooFewExamples(what, found=0, needed=1)


def check_same_test(base: Evaluation, tuned: Evaluation) -> None:
    """Raises ValueError unless both could be evaluations of one test."""
    if type(base) is not type(tuned) or base.primary != tuned.primary or len(base.items) != len(tuned.items):
        one, other = (f"{found.primary} of {len(found.items)} items" for found in (base, tuned))
        raise ValueError(f"only evaluations of the same test compare, found {one} and {other}")


def _scores(place: NDArray[np.int64]) -> dict[str, float]:
    """ndcg@10 with binary relevance (Jarvelin and Kekalainen 2002), mrr@10 and recall@k of one query."""
    top = place[place <= _DEPTH]
    ideal = np.arange(1, min(len(place), _DEPTH) + 1)
    return {
        "ndcg@10": float((1 / np.log2(top + 1)).sum() / (1 / np.log2(ideal + 1)).sum()),
        "mrr@10": float(1 / top[0]) if len(top) else 0.0,
        **{f"recall@{k}": float(np.count_nonzero(place <= k) / len(place)) for k in RECALL_AT},
    }
