"""Retrieval scores, against a full sort in Python and against scikit-learn; and which evaluations compare."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from zerogate.errors import TooFewExamples
from zerogate.evaluation import MeanEvaluation, RetrievalTest, evaluate, rows_per_block
from zerogate.scored_test import RankEvaluation
from zerogate.vectors import Vectors

Matrix = NDArray[np.float32]


def naive_scores(similarities: list[float], relevant: set[int]) -> dict[str, float]:
    ranking = sorted(range(len(similarities)), key=lambda document: (-similarities[document], document))
    hits = [document in relevant for document in ranking]
    dcg = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits[:10], 1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), 10) + 1))
    return {
        "ndcg@10": dcg / ideal,
        "mrr@10": next((1 / rank for rank, hit in enumerate(hits[:10], 1) if hit), 0.0),
        **{f"recall@{k}": sum(hits[:k]) / len(relevant) for k in (1, 10, 100)},
    }


def whole_numbers(rows: int, dim: int, *, seed: int) -> Matrix:
    """Small whole numbers: their products are exact in any order of summing, and many are equal."""
    return np.random.default_rng(seed).integers(-2, 3, size=(rows, dim)).astype(np.float32)


def some_relevant(queries: int, documents: int, *, at_most: int, seed: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.choice(documents, size=draw.integers(1, at_most + 1), replace=False).tolist() for _ in range(queries)]


def scores_of_ranking(similarities: list[float], relevant: list[int]) -> dict[str, float]:
    """The scores of one query whose similarities to the documents are given."""
    return evaluate(np.ones((1, 1), np.float32), np.asarray(similarities, np.float32)[:, None], [relevant]).scores


@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_a_full_sort_with_ties_and_several_relevant_documents(seed: int) -> None:
    queries, documents = whole_numbers(40, 4, seed=seed), whole_numbers(250, 4, seed=seed + 50)
    relevant = some_relevant(40, 250, at_most=14, seed=seed)

    found = evaluate(queries, documents, relevant)

    expected = []
    for query, own in zip(queries.tolist(), relevant, strict=True):
        similarities = [sum(q * d for q, d in zip(query, document, strict=True)) for document in documents.tolist()]
        expected.append(naive_scores(similarities, set(own)))
    for name, values in found.per_item.items():
        assert values.tolist() == pytest.approx([one[name] for one in expected], abs=1e-12)
        assert found.scores[name] == pytest.approx(np.mean([one[name] for one in expected]))
    assert found.per_item.keys() == expected[0].keys()
    assert 0 < found.scores["mrr@10"] < 1


@pytest.mark.parametrize("seed", range(3))
def test_ndcg_agrees_with_scikit_learn_where_nothing_is_tied(seed: int) -> None:
    draw = np.random.default_rng(seed)
    queries, documents = (draw.normal(size=(rows, 16)).astype(np.float32) for rows in (30, 120))
    relevant = some_relevant(30, 120, at_most=20, seed=seed)

    found = evaluate(queries, documents, relevant).per_item["ndcg@10"]

    for query, own, value in zip(queries, relevant, found, strict=True):
        truth = np.zeros(120)
        truth[own] = 1
        assert value == pytest.approx(ndcg_score([truth], [documents @ query], k=10), abs=1e-12)


def test_a_case_computed_by_hand() -> None:
    # Ranks 2 and 4 are relevant: DCG = 1/log2(3) + 1/log2(5) = 1.061606, ideal = 1 + 1/log2(3) = 1.630930.
    found = scores_of_ranking([0.8, 0.9, 0.6, 0.7, 0.1], [0, 2])

    assert found == pytest.approx({"ndcg@10": 0.650921, "mrr@10": 0.5, "recall@1": 0, "recall@10": 1, "recall@100": 1}, abs=1e-6)


@pytest.mark.parametrize(
    ("rank", "mrr", "ndcg", "recall_at_10", "recall_at_100"),
    [(1, 1, 1, 1, 1), (10, 0.1, 1 / math.log2(11), 1, 1), (11, 0, 0, 0, 1), (100, 0, 0, 0, 1), (101, 0, 0, 0, 0)],
)
def test_what_stands_below_the_cut_does_not_count(
    rank: int, mrr: float, ndcg: float, recall_at_10: float, recall_at_100: float
) -> None:
    found = scores_of_ranking([1 - document / 200 for document in range(150)], [rank - 1])

    assert found == pytest.approx(
        {"ndcg@10": ndcg, "mrr@10": mrr, "recall@1": float(rank == 1), "recall@10": recall_at_10, "recall@100": recall_at_100}
    )


def test_a_perfect_ranking_of_more_relevant_documents_than_fit_has_an_ndcg_of_one() -> None:
    found = scores_of_ranking([1 - document / 200 for document in range(50)], list(range(12)))

    assert found["ndcg@10"] == pytest.approx(1)
    assert found["recall@10"] == pytest.approx(10 / 12)
    assert found["recall@1"] == pytest.approx(1 / 12)


def test_of_equal_documents_the_first_in_the_corpus_wins() -> None:
    assert scores_of_ranking([0.5, 0.5, 0.5], [0])["mrr@10"] == 1
    assert scores_of_ranking([0.5, 0.5, 0.5], [2])["mrr@10"] == pytest.approx(1 / 3)


def test_a_version_that_maps_everything_to_one_point_earns_what_chance_earns() -> None:
    found = scores_of_ranking([0.5] * 1000, [500])

    assert found["recall@100"] == 0


def test_vectors_that_are_no_numbers_earn_nothing() -> None:
    similar = [0.9 - document / 1000 for document in range(200)]

    assert set(scores_of_ranking([math.nan] * 200, [0]).values()) == {0.0}
    assert set(scores_of_ranking([math.nan, *similar[1:]], [0]).values()) == {0.0}
    assert scores_of_ranking([0.95, *[math.nan] * 3], [0])["mrr@10"] == pytest.approx(1 / 4)


def test_many_queries_at_once_give_what_they_give_one_by_one() -> None:
    queries, documents = whole_numbers(600, 5, seed=1), whole_numbers(80, 5, seed=2)
    relevant = some_relevant(600, 80, at_most=4, seed=3)

    together = evaluate(queries, documents, relevant).per_item
    alone = [evaluate(query[None], documents, [own]).per_item for query, own in zip(queries, relevant, strict=True)]

    for name, values in together.items():
        assert values.tolist() == [float(one[name][0]) for one in alone]


def test_the_callback_is_told_before_every_block() -> None:
    told = []

    evaluate(
        whole_numbers(600, 3, seed=1),
        whole_numbers(20, 3, seed=2),
        [[0]] * 600,
        on_block=lambda done, of: told.append((done, of)),
    )

    assert told == [(0, 600), (256, 600), (512, 600)]


def test_the_callback_may_stop_the_evaluation() -> None:
    stop = KeyboardInterrupt()
    told = []

    def on_block(done: int, of: int) -> None:
        told.append(done)
        if done > 0:
            raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(whole_numbers(600, 3, seed=1), whole_numbers(20, 3, seed=2), [[0]] * 600, on_block=on_block)

    assert caught.value is stop
    assert told == [0, 256]


def test_a_retrieval_test_asks_its_queries_of_all_documents() -> None:
    vectors = Vectors(whole_numbers(30, 4, seed=1), whole_numbers(70, 4, seed=2))
    queries, relevant = np.array([7, 3, 21]), [[5], [60, 61], [0]]

    found = RetrievalTest(queries, relevant, "mrr@10").evaluate(vectors)

    expected = [
        evaluate(vectors.queries[[query]], vectors.documents, [own]) for query, own in zip(queries, relevant, strict=True)
    ]
    assert found.items.tolist() == [one.scores["mrr@10"] for one in expected]
    assert found.value == found.scores["mrr@10"] == pytest.approx(np.mean(found.items))


def test_a_retrieval_test_goes_by_ndcg_unless_told_otherwise_and_passes_the_callback_on() -> None:
    vectors = Vectors(whole_numbers(300, 3, seed=1), whole_numbers(20, 3, seed=2))
    told = []

    found = RetrievalTest(np.arange(300), [[0]] * 300).evaluate(vectors, lambda done, of: told.append((done, of)))

    assert found.value == found.per_item["ndcg@10"].mean() != found.per_item["mrr@10"].mean()
    assert told == [(0, 300), (256, 300)]


def test_a_block_of_similarities_is_bounded_however_large_the_corpus() -> None:
    for documents in (1, 1000, 125_000, 1_000_000, 31_000_000):
        rows = rows_per_block(documents)
        assert rows == 256 or rows * documents <= 32_000_000 < (rows + 1) * documents

    assert rows_per_block(100_000_000) == 1  # One query is the least.


def test_another_primary_score_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="one of ndcg@10, mrr@10, recall@1, recall@10, recall@100, found 'map'"):
        evaluate(whole_numbers(2, 3, seed=1), whole_numbers(2, 3, seed=2), [[0], [1]], primary="map")


def test_no_queries_have_no_score() -> None:
    with pytest.raises(TooFewExamples, match="queries to test on: found 0, at least 1"):
        evaluate(whole_numbers(0, 3, seed=1), whole_numbers(2, 3, seed=2), [])


@pytest.mark.parametrize(
    "other",
    [
        MeanEvaluation("ndcg@10", {"ndcg@10": np.zeros(4)}),
        MeanEvaluation("mrr@10", {"mrr@10": np.zeros(3)}),
        RankEvaluation(np.zeros(3, np.float32), np.zeros(3, np.float32)),
    ],
)
def test_evaluations_of_different_tests_do_not_compare(other: MeanEvaluation | RankEvaluation) -> None:
    one = MeanEvaluation("ndcg@10", {"ndcg@10": np.zeros(3)})

    with pytest.raises(ValueError, match="only evaluations of the same test compare, found ndcg@10 of 3 items and "):
        one.compare(other)
    with pytest.raises(ValueError, match="only evaluations of the same test compare"):
        other.compare(one)


def test_a_comparison_is_about_the_primary_score() -> None:
    base = MeanEvaluation("mrr@10", {"mrr@10": np.array([0.5, 0.0, 1.0, 0.2]), "ndcg@10": np.ones(4)})
    tuned = MeanEvaluation("mrr@10", {"mrr@10": np.array([1.0, 0.0, 0.5, 0.4]), "ndcg@10": np.zeros(4)})

    found = base.compare(tuned)

    assert found.difference == pytest.approx(0.05)
    assert (found.wins, found.losses, found.items) == (2, 1, 4)
    assert found.standard_error == pytest.approx(np.std([0.5, 0, -0.5, 0.2], ddof=1) / 2)
