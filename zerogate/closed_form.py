"""Heads with a formula instead of a training: the honest baselines that a trained head has to beat.

Both map each anchor towards what it belongs to. For pairs the documents keep their base vectors, so these are heads of the
queries only; for groups a text is mapped towards its label's centroid, on both sides.
"""

import numpy as np
from numpy.typing import NDArray

from zerogate.folded import FoldedHead, unit_rows
from zerogate.training import Examples, GroupExamples, PairExamples
from zerogate.vectors import Vectors

# How strongly ridge is drawn to the identity, in units of the mean eigenvalue of X^T X.
RIDGE_PULLS = (1.0, 10.0, 100.0)


def sources_and_targets(vectors: Vectors, examples: Examples) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """What shall be mapped onto what, two (k, dim) matrices; None for scored pairs, where no vector is another's target."""
    match examples:
        case PairExamples():
            return vectors.queries[examples.pairs[:, 0]], vectors.documents[examples.pairs[:, 1]]
        case GroupExamples():
            rows = vectors.queries[examples.texts]
            sums = np.zeros((int(examples.labels.max()) + 1, rows.shape[1]), dtype=np.float32)
            np.add.at(sums, examples.labels, rows)
            return rows, unit_rows(sums)[examples.labels]
        case _:
            return None


def ridge(sources: NDArray[np.float32], targets: NDArray[np.float32], pull: float) -> FoldedHead:
    """The A with the least sum of |A x - t|^2 + lambda * |A - I|^2 (Hoerl and Kennard 1970, shrunk to the identity instead of 0).

    sources, targets: (k, dim). pull: lambda in units of the mean eigenvalue of X^T X, > 0.
    """
    X, T = sources.astype(np.float64), targets.astype(np.float64)
    dim = X.shape[1]
    gram = X.T @ X  # (dim, dim)
    penalty = pull * np.trace(gram) / dim
    matrix = np.linalg.solve(gram + penalty * np.eye(dim), X.T @ T + penalty * np.eye(dim)).T
    return FoldedHead(matrix.astype(np.float32), None)


def procrustes(sources: NDArray[np.float32], targets: NDArray[np.float32]) -> FoldedHead:
    """The rotation (or reflection) Q with the least sum of |Q x - t|^2 (Schoenemann 1966): Q = U V^T of the SVD of T^T X."""
    U, _, Vt = np.linalg.svd(targets.astype(np.float64).T @ sources.astype(np.float64))
    return FoldedHead((U @ Vt).astype(np.float32), None)
