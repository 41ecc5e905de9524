"""The test of labelled texts: is the label of a text that of the nearest class centroid, and that of the nearest text?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerogate.evaluation import MeanEvaluation, OnBlock, Test, check_any, rows_per_block
from zerogate.vectors import Vectors

_SMALLEST_NORM = 1e-12  # A centroid that cancels out is like nothing.


@dataclass(frozen=True)
class LabelTest(Test):
    """Texts to classify by reference texts; all are rows of `queries`.

    texts, labels: (n,) int64. reference_texts, reference_labels: (r,) int64.
    A text is never its own reference: one that stands among the reference texts too is left out for its own turn, from the
    nearest texts and from the centroids (leave-one-out).
    """

    texts: NDArray[np.int64]
    labels: NDArray[np.int64]
    reference_texts: NDArray[np.int64]
    reference_labels: NDArray[np.int64]

    @property
    def size(self) -> int:
        return len(self.texts)

    def evaluate(self, vectors: Vectors, on_block: OnBlock | None = None) -> MeanEvaluation:
        """accuracy@centroid (primary) and accuracy@1nn: 0 or 1 for each text, 0 where its label has no reference left.

        A class centroid is the normalised mean of the reference rows of a label. Ties go to the smallest label, and to the first
        reference row; a vector that is no number is like nothing. Raises TooFewExamples without texts or reference texts.
        """
        check_any(len(self.texts), "texts to test on")
        check_any(len(self.reference_texts), "reference texts to classify by")
        references = _References.of(vectors.queries, self.reference_texts, self.reference_labels)
        by_centroid, by_text = np.empty(len(self.texts)), np.empty(len(self.texts))
        rows = rows_per_block(len(self.reference_texts))
        for start in range(0, len(self.texts), rows):
            if on_block is not None:
                on_block(start, len(self.texts))
            block = slice(start, start + rows)
            queries, labels = vectors.queries[self.texts[block]], self.labels[block]  # (b, dim), (b,)
            own = references.own(self.texts[block])
            by_centroid[block] = _is_right(references.to_centroids(queries, own), references.classes, labels)
            by_text[block] = _is_right(references.to_texts(queries, own), references.labels, labels)
        return MeanEvaluation("accuracy@centroid", {"accuracy@centroid": by_centroid, "accuracy@1nn": by_text})


@dataclass(frozen=True)
class _References:
    """rows: (r, dim), labels: (r,); classes: (c,) the distinct labels, ascending; class_of: (r,) index into them.

    sums: (c, dim) of the rows of each class, sizes: (c,); centroids: (c, dim) the sums, normalised.
    order: (r,) of the reference rows by the index of their text, which is in `texts`, ascending.
    """

    rows: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    class_of: NDArray[np.int64]
    sums: NDArray[np.float64]
    sizes: NDArray[np.int64]
    centroids: NDArray[np.float32]
    texts: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: NDArray[np.float32], texts: NDArray[np.int64], labels: NDArray[np.int64]) -> "_References":
        rows = vectors[texts]
        classes, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        by_class = np.argsort(class_of, kind="stable")
        sums = np.add.reduceat(rows[by_class], np.cumsum(sizes) - sizes, axis=0, dtype=np.float64)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = (sums / np.maximum(norms, _SMALLEST_NORM)).astype(np.float32)
        order = np.argsort(texts, kind="stable")
        return cls(rows, labels, classes, class_of, sums, sizes, centroids, texts[order], order)

    def own(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which reference rows are the texts themselves, (m, 2): index into `texts` and reference row."""
        first = np.searchsorted(self.texts, texts, side="left")
        end = np.searchsorted(self.texts, texts, side="right")
        found = [(index, self.order[place]) for index in range(len(texts)) for place in range(first[index], end[index])]
        return np.asarray(found, dtype=np.int64).reshape(-1, 2)

    def to_texts(self, queries: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.float32]:
        """Similarities to the reference rows, (b, r); -inf to itself."""
        similarities: NDArray[np.float32] = queries @ self.rows.T
        similarities[own[:, 0], own[:, 1]] = -np.inf
        return similarities

    def to_centroids(self, queries: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.float32]:
        """Similarities to the class centroids, (b, c), those of a text's own classes without itself; -inf to an empty class."""
        similarities: NDArray[np.float32] = queries @ self.centroids.T
        places = np.stack([own[:, 0], self.class_of[own[:, 1]]], axis=1)
        places, times = np.unique(places, axis=0, return_counts=True)
        index, its_class = places[:, 0], places[:, 1]
        mine = queries[index].astype(np.float64)  # (m, dim)
        others = self.sums[its_class] - times[:, None] * mine
        lengths = np.maximum(np.linalg.norm(others, axis=1), _SMALLEST_NORM)
        without = np.einsum("md,md->m", mine, others) / lengths
        similarities[index, its_class] = np.where(self.sizes[its_class] > times, without, -np.inf)
        return similarities


def _is_right(similarities: NDArray[np.float32], label_of: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the most similar column, the first of equal ones, has the wanted label; (b, columns), (columns,), (b,) -> (b,)."""
    numbers = np.where(np.isnan(similarities), -np.inf, similarities)
    best = numbers.argmax(axis=1)
    right: NDArray[np.bool_] = (label_of[best] == wanted) & (numbers[np.arange(len(best)), best] > -np.inf)
    return right
