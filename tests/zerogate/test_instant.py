"""Searching a version through base vectors: the first stage, and the exact scores of what it finds."""

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.folded import Block, FoldedHead, unit_rows
from zerogate.instant import MOST_CANDIDATES, best_of, candidates_for, first_stage_query, wider

DIM = 64


def random_head(seed: int, *, bias: float = 0.0, merge: str = "add") -> FoldedHead:
    """A head whose gate is large enough to reorder much; bias: the offset's length."""
    draw = np.random.default_rng(seed)
    offset = draw.standard_normal(DIM)
    block = Block(
        gate=draw.uniform(-0.7, 0.7, DIM).astype(np.float32),
        weight=(draw.standard_normal((DIM, DIM)) / DIM**0.5).astype(np.float32),
        bias=None,
    )
    folded = FoldedHead.fold([block], merge="concat" if merge == "concat" else "add")
    if not bias:
        return folded
    whole = np.resize(offset * bias / np.linalg.norm(offset), folded.out_dim)
    return FoldedHead(folded.matrix, whole.astype(np.float32))


def texts(count: int, *, seed: int) -> NDArray[np.float32]:
    """Unit vectors in clusters, as texts are: a query has neighbours."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((count // 20, DIM))
    return unit_rows((np.repeat(centres, 20, axis=0) + 0.9 * draw.standard_normal((count, DIM))).astype(np.float32))


def exact(head: FoldedHead, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines of the mapped vectors, (queries, documents), in float64 and from the definition."""
    offset = 0.0 if head.offset is None else head.offset.astype(np.float64)
    both = [rows.astype(np.float64) @ head.matrix.T.astype(np.float64) + offset for rows in (queries, documents)]
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in both)
    found: NDArray[np.float64] = one @ other.T
    return found


def recall(head: FoldedHead, queries: NDArray[np.float32], documents: NDArray[np.float32], *, corrected: bool) -> float:
    """The share of the exact top 10 among the first stage's 100 candidates."""
    found = 0
    for mapped, scores in zip(head.vectors(queries), exact(head, queries, documents), strict=True):
        query = first_stage_query(head, mapped) if corrected else mapped @ head.matrix
        candidates = np.argsort(-(documents @ query))[:100]
        found += len(np.intersect1d(candidates, np.argsort(-scores)[:10]))
    return found / (10 * len(queries))


def test_the_identity_searches_with_the_query_itself() -> None:
    query = texts(20, seed=1)[0]

    assert np.array_equal(first_stage_query(FoldedHead.identity(DIM), query), query)


def test_a_rotation_is_ranked_exactly_by_the_first_stage() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))
    head = FoldedHead(rotation.astype(np.float32), None)
    documents, queries = texts(400, seed=3), texts(20, seed=4)

    # |A x| is 1 for every x, so that inner products with A^T u are the scores themselves.
    for mapped, scores in zip(head.vectors(queries), exact(head, queries, documents), strict=True):
        assert np.abs(documents @ first_stage_query(head, mapped) - scores).max() < 1e-5


def test_with_an_offset_the_first_stage_has_the_slope_of_the_score() -> None:
    """For a rotation |A x + c|^2 = 1 + |c|^2 + 2 c.A x, and n0^2 = 1 + |c|^2. Where the score is the typical one and c.A x is 0,
    a small step of x changes n0 times the score by the step's inner product with the first-stage query."""
    draw = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(draw.standard_normal((DIM, DIM)))
    offset = np.zeros(DIM)
    offset[0] = 0.8
    n0 = np.sqrt(1 + 0.8**2)
    u = np.zeros(DIM)
    u[1] = 1.0
    y = np.zeros(DIM)  # A x: its score is 0.75, the typical one, and it is orthogonal to c
    y[1], y[2] = 0.75 * n0, np.sqrt(1 - (0.75 * n0) ** 2)
    head = FoldedHead(rotation.astype(np.float32), offset.astype(np.float32))
    query = first_stage_query(head, u.astype(np.float32)).astype(np.float64)

    for _ in range(20):
        turn = draw.standard_normal(DIM)
        turn -= (turn @ y) * y  # along the sphere
        step = 1e-5 * turn / np.linalg.norm(turn)
        before, after = (u @ (place + offset) / np.linalg.norm(place + offset) for place in (y, y + step))

        assert n0 * (after - before) / 1e-5 == pytest.approx(query @ (rotation.T @ step) / 1e-5, abs=1e-3)


@pytest.mark.parametrize("merge", ["add", "concat"])
@pytest.mark.parametrize("bias", [0.0, 0.5, 2.0])
def test_the_candidates_hold_the_best_ten(bias: float, merge: str) -> None:
    documents, queries = texts(4_000, seed=6), texts(200, seed=6)  # the queries are some of the clusters' own
    head = random_head(7, bias=bias, merge=merge)

    assert recall(head, queries, documents, corrected=True) >= 0.995


def test_with_a_large_offset_the_correction_finds_more() -> None:
    documents, queries = texts(4_000, seed=6), texts(200, seed=8)
    head = random_head(7, bias=2.0)

    assert recall(head, queries, documents, corrected=True) > recall(head, queries, documents, corrected=False) + 0.01


@pytest.mark.parametrize(("bias", "merge"), [(0.0, "add"), (0.7, "add"), (0.7, "concat")])
def test_the_best_of_all_are_those_of_the_definition(bias: float, merge: str) -> None:
    documents, queries = texts(300, seed=9), texts(20, seed=10)
    head = random_head(11, bias=bias, merge=merge)

    for mapped, scores in zip(head.vectors(queries), exact(head, queries, documents), strict=True):
        rows, found = best_of(head, mapped, documents, limit=25)

        assert rows.tolist() == np.argsort(-scores)[:25].tolist()
        assert np.abs(found - scores[rows]).max() < 1e-6


def test_equal_documents_stay_in_the_order_in_which_the_first_stage_gave_them() -> None:
    one, other = texts(20, seed=12)[:2]
    head = random_head(13)

    rows, scores = best_of(head, head.vectors(one[None])[0], np.stack([other, one, other, one]), limit=4)

    assert rows.tolist() == [1, 3, 0, 2]
    assert scores[0] == scores[1] == pytest.approx(1.0, abs=1e-6)


def test_of_no_candidates_none_is_the_best() -> None:
    head = random_head(14)

    rows, scores = best_of(head, texts(20, seed=15)[0], np.empty((0, DIM), dtype=np.float32), limit=10)

    assert (len(rows), len(scores)) == (0, 0)
    assert wider(rows, limit=10) is None


def test_so_many_candidates_are_asked_for() -> None:
    assert [candidates_for(limit) for limit in (1, 10, 20, 21, 100, 1_000)] == [100, 100, 100, 105, 500, MOST_CANDIDATES]


def test_more_candidates_are_wanted_where_one_of_the_best_came_from_far_down() -> None:
    assert wider(np.array([0, 3, 24]), limit=10) is None
    assert wider(np.array([0, 25, 3]), limit=10) == 400
    assert wider(np.array([24]), limit=1) is None
    assert wider(np.array([49]), limit=20) is None
    assert wider(np.array([50]), limit=20) == 400
    assert wider(np.array([249]), limit=100) is None
    assert wider(np.array([250]), limit=100) == 2_000
    assert wider(np.array([1_999]), limit=1_000) is None
    assert wider(np.array([], dtype=np.int64), limit=10) is None
