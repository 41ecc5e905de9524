"""The baselines with a formula, against the same least-squares problems solved in other ways, and at their limits."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from zerogate.closed_form import RIDGE_PULLS, procrustes, ridge, sources_and_targets
from zerogate.folded import unit_rows
from zerogate.training import GroupExamples, PairExamples, ScoredExamples
from zerogate.vectors import Vectors

DIM = 12
Rows = NDArray[np.float32]


def unit(count: int, *, seed: int) -> Rows:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32))


def rotation(seed: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = ortho_group.rvs(DIM, random_state=seed)  # half of them are reflections
    return found


def penalty(sources: Rows, pull: float) -> float:
    return pull * float(np.linalg.eigvalsh(sources.T.astype(np.float64) @ sources).mean())


@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("pull", [0.01, *RIDGE_PULLS])
def test_ridge_is_least_squares_with_more_rows_that_ask_for_the_identity(count: int, pull: float) -> None:
    """Where there are fewer rows than dimensions as well."""
    sources, targets = unit(count, seed=1), unit(count, seed=2)

    found = ridge(sources, targets, pull)

    more = np.sqrt(penalty(sources, pull)) * np.eye(DIM)
    solved, *_ = np.linalg.lstsq(np.vstack([sources, more]), np.vstack([targets, more]), rcond=None)
    np.testing.assert_allclose(found.matrix, solved.T, atol=1e-6)
    assert found.offset is None


@pytest.mark.parametrize("pull", RIDGE_PULLS)
def test_no_other_matrix_nearby_has_a_smaller_sum(pull: float) -> None:
    sources, targets = unit(40, seed=3), unit(40, seed=4)
    draw = np.random.default_rng(5)

    def asked(matrix: NDArray[np.float64]) -> float:
        off = np.square(sources @ matrix.T - targets).sum()
        return float(off + penalty(sources, pull) * np.square(matrix - np.eye(DIM)).sum())

    best = ridge(sources, targets, pull).matrix.astype(np.float64)

    for _ in range(20):
        step = draw.normal(size=(DIM, DIM))
        assert asked(best) < asked(best + 0.01 * step)
        assert asked(best) < asked(best - 0.01 * step)


def test_ridge_runs_from_least_squares_to_the_identity() -> None:
    sources, targets = unit(60, seed=6), unit(60, seed=7)
    free, *_ = np.linalg.lstsq(sources.astype(np.float64), targets, rcond=None)

    np.testing.assert_allclose(ridge(sources, targets, 1e-9).matrix, free.T, atol=1e-4)
    np.testing.assert_allclose(ridge(sources, targets, 1e9).matrix, np.eye(DIM), atol=1e-6)
    away = [float(np.linalg.norm(ridge(sources, targets, pull).matrix - np.eye(DIM))) for pull in (1e-3, 0.1, *RIDGE_PULLS)]
    assert away == sorted(away, reverse=True)


def test_ridge_finds_a_hidden_linear_map() -> None:
    hidden = np.eye(DIM) + 0.3 * np.random.default_rng(8).normal(size=(DIM, DIM))
    sources = unit(50, seed=9)

    found = ridge(sources, (sources @ hidden.T).astype(np.float32), 1e-8)

    np.testing.assert_allclose(found.matrix, hidden, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_procrustes_recovers_a_hidden_rotation_or_reflection(seed: int) -> None:
    hidden, sources = rotation(seed), unit(40, seed=seed)

    found = procrustes(sources, (sources @ hidden.T).astype(np.float32))

    np.testing.assert_allclose(found.matrix, hidden, atol=1e-5)
    np.testing.assert_allclose(found.vectors(sources), sources @ hidden.T, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_procrustes_is_scipy_s(seed: int) -> None:
    sources, targets = unit(30, seed=seed), unit(30, seed=seed + 50)

    found = procrustes(sources, targets)

    other, _ = orthogonal_procrustes(sources.astype(np.float64), targets.astype(np.float64))  # x @ other, so its transpose
    np.testing.assert_allclose(found.matrix, other.T, atol=1e-5)
    np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(DIM), atol=1e-5)


def test_pairs_are_mapped_from_query_to_document() -> None:
    vectors = Vectors(unit(6, seed=1), unit(5, seed=2))
    pairs = np.asarray([(0, 4), (5, 0), (5, 1), (2, 2)])

    found = sources_and_targets(vectors, PairExamples(pairs, np.empty((4, 0), dtype=np.int64)))

    assert found is not None
    for row, (query, document) in enumerate(pairs):
        np.testing.assert_array_equal(found[0][row], vectors.queries[query])
        np.testing.assert_array_equal(found[1][row], vectors.documents[document])


def test_texts_of_a_group_are_mapped_to_the_direction_of_their_mean() -> None:
    vectors = Vectors(unit(9, seed=1), unit(0, seed=1))
    texts, labels = np.asarray([8, 0, 3, 1, 5, 7]), np.asarray([0, 2, 1, 0, 0, 2])

    found = sources_and_targets(vectors, GroupExamples(texts, labels))

    assert found is not None
    np.testing.assert_array_equal(found[0], vectors.queries[texts])
    for row, label in enumerate(labels):
        mean = np.mean([vectors.queries[text] for text, own in zip(texts, labels, strict=True) if own == label], axis=0)
        np.testing.assert_allclose(found[1][row], mean / np.linalg.norm(mean), atol=1e-6)


def test_scored_pairs_have_no_targets() -> None:
    vectors = Vectors(unit(4, seed=1), unit(0, seed=1))

    assert sources_and_targets(vectors, ScoredExamples(np.asarray([(0, 1), (2, 3)]), np.ones(2, dtype=np.float32))) is None


@pytest.mark.parametrize("pull", RIDGE_PULLS)
def test_ridge_brings_new_texts_of_a_group_nearer_to_its_centroid_than_to_others(pull: float) -> None:
    draw = np.random.default_rng(1)
    centres = unit(4, seed=2)
    labels = np.arange(200) % 4
    vectors = unit_rows((centres[labels] + 0.5 * draw.normal(size=(200, DIM))).astype(np.float32))
    old, new = np.arange(100), np.arange(100, 200)

    known = sources_and_targets(Vectors(vectors, vectors[:0]), GroupExamples(old, labels[old]))
    assert known is not None
    head = ridge(*known, pull)

    def margin(rows: Rows) -> float:
        means = unit_rows(np.stack([rows[old][labels[old] == label].mean(axis=0) for label in range(4)]))
        cosines = rows[new] @ means.T
        own = cosines[np.arange(100), labels[new]]
        return float((own - (cosines.sum(axis=1) - own) / 3).mean())

    assert margin(head.vectors(vectors)) > margin(vectors) + 0.001
