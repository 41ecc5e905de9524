"""Mined hard negatives, against sorting all documents of each query; and what the margins keep out."""

import tracemalloc
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.hard_negatives import mine_hard_negatives

Vectors = NDArray[np.float32]


def unit_rows(size: int, dim: int, *, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((size, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def exact_rows(size: int, *, seed: int) -> Vectors:
    """Rows out of 16 unit vectors: many are equal, and all cosines are exact, so that ties are ties in any order of adding."""
    corners = np.array(list(product((-0.5, 0.5), repeat=4)), dtype=np.float32)
    return corners[np.random.default_rng(seed).integers(16, size=size)]


def some_relevant(queries: int, documents: int, *, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.choice(documents, size=random.integers(0, 4), replace=False).tolist() for _ in range(queries)]


def slow(
    queries: Vectors, documents: Vectors, relevant: list[list[int]], per_query: int, margin: float, relative_margin: float
) -> list[list[int]]:
    found = []
    for query, wanted in zip(queries, relevant, strict=True):
        similarity = [float(np.dot(query, document)) for document in documents]
        best = max((similarity[i] for i in wanted), default=-np.inf)
        allowed = [
            i
            for i in range(len(documents))
            if i not in wanted and similarity[i] < best - margin and similarity[i] < best - relative_margin * abs(best)
        ]
        hardest = sorted(allowed, key=lambda i: (-similarity[i], i))[:per_query]
        found.append(hardest + [-1] * (per_query - len(hardest)))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("margin", "relative_margin"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.05, 0.3), (0.7, 1.0)])
@pytest.mark.parametrize("exact", [False, True])
def test_they_are_the_most_similar_documents_that_sorting_all_of_them_finds(
    seed: int, margin: float, relative_margin: float, exact: bool
) -> None:
    queries = exact_rows(15, seed=seed) if exact else unit_rows(15, 6, seed=seed)
    documents = exact_rows(60, seed=seed + 9) if exact else unit_rows(60, 6, seed=seed + 9)
    relevant = some_relevant(15, 60, seed=seed)

    found = mine_hard_negatives(queries, documents, relevant, per_query=5, margin=margin, relative_margin=relative_margin)

    assert found.dtype == np.int64
    assert found.tolist() == slow(queries, documents, relevant, 5, margin, relative_margin)


@pytest.mark.parametrize("numbers_per_block", [1, 400, 1500, 100_000])
def test_the_size_of_the_blocks_changes_nothing(numbers_per_block: int) -> None:
    queries, documents, relevant = exact_rows(23, seed=1), exact_rows(400, seed=2), some_relevant(23, 400, seed=3)

    found = mine_hard_negatives(queries, documents, relevant, per_query=180, margin=0.1, numbers_per_block=numbers_per_block)

    assert found.tolist() == slow(queries, documents, relevant, 180, 0.1, 0.0)


def at(*cosines: float) -> Vectors:
    """Rows with these cosines to the first axis."""
    return np.array([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines], dtype=np.float32)


QUERY = np.array([[1.0, 0.0]], dtype=np.float32)


def test_a_document_about_as_similar_as_the_relevant_one_is_left_alone() -> None:
    documents = at(0.8, 0.95, 0.79, 0.76, 0.74, 0.3)  # the first is relevant; the next three may be answers, too

    found = mine_hard_negatives(QUERY, documents, [[0]], per_query=3, margin=0.05)

    assert found.tolist() == [[4, 5, -1]]


def test_the_best_of_several_relevant_documents_sets_the_bar() -> None:
    documents = at(0.5, 0.9, 0.2, 0.82, 0.7, 0.6)

    assert mine_hard_negatives(QUERY, documents, [[0, 1, 2]], per_query=4, margin=0.1).tolist() == [[4, 5, -1, -1]]


def test_the_stricter_of_both_margins_counts_and_below_zero_the_relative_one_still_lowers_the_bar() -> None:
    documents = at(0.8, 0.78, 0.7, 0.5, -0.2)
    assert mine_hard_negatives(QUERY, documents, [[0]], per_query=1, margin=0.05, relative_margin=0.0).tolist() == [[2]]
    assert mine_hard_negatives(QUERY, documents, [[0]], per_query=1, margin=0.05, relative_margin=0.25).tolist() == [[3]]
    assert mine_hard_negatives(QUERY, documents, [[0]], per_query=1, margin=0.25, relative_margin=0.05).tolist() == [[3]]
    assert mine_hard_negatives(QUERY, documents, [[0]], per_query=1, margin=0.45, relative_margin=0.25).tolist() == [[4]]

    far = at(-0.4, -0.45, -0.55)
    assert mine_hard_negatives(QUERY, far, [[0]], per_query=2, margin=0.0, relative_margin=0.25).tolist() == [[2, -1]]


def test_a_copy_of_the_relevant_document_is_no_negative_even_without_a_margin() -> None:
    documents = exact_rows(200, seed=1)
    relevant = [[i] for i in range(50)]

    found = mine_hard_negatives(documents[:50], documents, relevant, per_query=200, margin=0.0)

    for query, negatives in enumerate(found):
        copies = {i for i in range(200) if np.array_equal(documents[i], documents[query])}
        assert len(copies) > 1
        assert sorted([*copies, *negatives[negatives >= 0]]) == list(range(200))


def test_a_larger_margin_takes_away_and_never_adds() -> None:
    queries, documents, relevant = unit_rows(20, 5, seed=1), unit_rows(80, 5, seed=2), some_relevant(20, 80, seed=3)

    found = [
        [set(row.tolist()) - {-1} for row in mine_hard_negatives(queries, documents, relevant, per_query=80, margin=margin)]
        for margin in (0.0, 0.1, 0.3, 0.6)
    ]

    for wide, narrow in pairwise(found):
        assert all(fewer <= more for more, fewer in zip(wide, narrow, strict=True))
        assert sum(map(len, narrow)) < sum(map(len, wide))


def test_a_query_without_a_relevant_document_gets_none() -> None:
    found = mine_hard_negatives(unit_rows(2, 5, seed=1), unit_rows(9, 5, seed=2), [[], list(range(9))], per_query=2, margin=0.0)

    assert found.tolist() == [[-1, -1], [-1, -1]]


def test_more_than_there_are_documents_may_be_asked_for() -> None:
    assert mine_hard_negatives(QUERY, at(0.9, 0.1, 0.5), [[0]], per_query=5, margin=0.0).tolist() == [[2, 1, -1, -1, -1]]
    assert mine_hard_negatives(QUERY[:0], at(0.9), [], per_query=5, margin=0.0).shape == (0, 5)


def test_a_vector_that_is_no_number_is_never_mined() -> None:
    documents = at(0.9, 0.5, 0.3)
    documents[1] = np.nan

    assert mine_hard_negatives(QUERY, documents, [[0]], per_query=2, margin=0.0).tolist() == [[2, -1]]
    assert mine_hard_negatives(QUERY, documents, [[1]], per_query=2, margin=0.0).tolist() == [[-1, -1]]


def test_the_memory_does_not_grow_with_the_number_of_queries() -> None:
    queries, documents = unit_rows(1500, 8, seed=1), unit_rows(2000, 8, seed=2)
    relevant = [[i] for i in range(1500)]
    tracemalloc.start()

    mine_hard_negatives(queries, documents, relevant, per_query=3, margin=0.05, numbers_per_block=40_000)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # all similarities at once would be 12 MB


def test_the_callback_sees_the_progress_and_can_stop_it() -> None:
    seen = []

    def on_block(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine_hard_negatives(
            unit_rows(9, 5, seed=1),
            unit_rows(10, 5, seed=2),
            [[0]] * 9,
            per_query=2,
            margin=0.0,
            numbers_per_block=20,
            on_block=on_block,
        )

    assert seen == [(0, 9), (2, 9), (4, 9)]


@pytest.mark.parametrize(
    "wrong",
    [{"per_query": 0}, {"margin": -0.1}, {"margin": float("nan")}, {"relative_margin": -0.1}, {"relative_margin": 1.1}],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="per_query must be at least 1, margin at least 0 and relative_margin from 0 to 1"):
        mine_hard_negatives(QUERY, at(0.9, 0.1), [[0]], **({"per_query": 2, "margin": 0.0} | wrong))


def test_relevant_documents_have_to_be_given_for_every_query() -> None:
    with pytest.raises(ValueError, match="zip"):
        mine_hard_negatives(unit_rows(3, 2, seed=1), at(0.9, 0.1), [[0], [1]], per_query=1, margin=0.0)
