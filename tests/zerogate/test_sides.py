"""Heads applied on both sides or on the queries' only, against the same written out by hand."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ortho_group, spearmanr

from zerogate.evaluation import RetrievalTest
from zerogate.folded import FoldedHead, unit_rows
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest
from zerogate.sides import evaluate_tuned, tuned_vectors
from zerogate.vectors import Vectors

DIM = 8
Rows = NDArray[np.float32]


def unit(count: int, *, seed: int) -> Rows:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32))


def head(seed: int = 1) -> FoldedHead:
    draw = np.random.default_rng(seed)
    matrix = np.eye(DIM) + 0.5 * draw.normal(size=(DIM, DIM))
    return FoldedHead(matrix.astype(np.float32), (draw.normal(size=DIM) / 5).astype(np.float32))


def by_hand(x: Rows) -> Rows:
    y = np.stack([head().matrix.astype(np.float64) @ row + head().offset for row in x.astype(np.float64)])
    return np.asarray(y / np.linalg.norm(y, axis=1, keepdims=True), dtype=np.float32)


BASE = Vectors(unit(12, seed=2), unit(9, seed=3))


def test_both_sides_are_mapped_or_the_queries_only() -> None:
    both, one = (tuned_vectors(BASE, head(), query_only=query_only) for query_only in (False, True))

    np.testing.assert_allclose(both.queries, by_hand(BASE.queries), atol=1e-6)
    np.testing.assert_allclose(both.documents, by_hand(BASE.documents), atol=1e-6)
    np.testing.assert_array_equal(one.queries, both.queries)
    np.testing.assert_array_equal(one.documents, BASE.documents)


@pytest.mark.parametrize("query_only", [False, True])
def test_a_task_without_documents_stays_without(query_only: bool) -> None:
    found = tuned_vectors(Vectors(BASE.queries, BASE.documents[:0]), head(), query_only=query_only)

    assert found.documents.shape == (0, DIM)
    np.testing.assert_allclose(found.queries, by_hand(BASE.queries), atol=1e-6)


@pytest.mark.parametrize("query_only", [False, True])
def test_a_search_ranks_documents_with_their_own_side_s_vectors(query_only: bool) -> None:
    test = RetrievalTest(np.asarray([3, 0, 11]), [[1], [8, 2], [5]], primary="mrr@10")

    found = evaluate_tuned(test, BASE, head(), query_only=query_only)

    documents = BASE.documents if query_only else by_hand(BASE.documents)
    cosines = by_hand(BASE.queries)[test.queries] @ documents.T
    ranks = [1 + min((row > row[one]).sum() for one in wanted) for row, wanted in zip(cosines, test.relevant, strict=True)]
    np.testing.assert_allclose(found.items, [1 / rank for rank in ranks])


@pytest.mark.parametrize("query_only", [False, True])
def test_of_scored_pairs_a_head_of_the_queries_maps_the_first_text_only(query_only: bool) -> None:
    pairs = np.random.default_rng(4).permutation(list(combinations(range(12), 2)))[:30]
    test = ScoredTest(pairs, np.linspace(0, 1, 30, dtype=np.float32))

    found = evaluate_tuned(test, BASE, head(), query_only=query_only)

    tuned = by_hand(BASE.queries)
    second = BASE.queries if query_only else tuned
    cosines = [float(tuned[one] @ second[other]) for one, other in pairs]
    assert found.value == pytest.approx(spearmanr(cosines, test.scores).statistic, abs=1e-9)


def test_a_rotation_changes_nothing_on_both_sides_and_everything_on_one() -> None:
    turned = FoldedHead(ortho_group.rvs(DIM, random_state=1).astype(np.float32), None)
    pairs = np.stack([np.arange(12), np.roll(np.arange(12), 3)], axis=1)
    test = ScoredTest(pairs, np.einsum("kd,kd->k", *(BASE.queries[pairs[:, side]] for side in (0, 1))))

    both, one = (evaluate_tuned(test, BASE, turned, query_only=query_only).value for query_only in (False, True))

    assert both == test.evaluate(BASE).value == 1.0
    assert one < 0.7


@pytest.mark.parametrize("query_only", [False, True])
def test_the_identity_is_the_encoder(query_only: bool) -> None:
    tests = [
        RetrievalTest(np.arange(12), [[n % 9] for n in range(12)]),
        ScoredTest(np.asarray([(n, (5 * n + 1) % 12) for n in range(12)]), np.arange(12, dtype=np.float32)),
        LabelTest(np.arange(6), np.arange(6) % 2, np.arange(6, 12), np.arange(6) % 2),
    ]

    for test in tests:
        found = evaluate_tuned(test, BASE, FoldedHead.identity(DIM), query_only=query_only)

        assert found.scores == test.evaluate(BASE).scores
        np.testing.assert_array_equal(found.items, test.evaluate(BASE).items)
