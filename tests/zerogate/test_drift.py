"""Drift without labels, against a double loop and scipy."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import zerogate.drift
from zerogate.drift import Drift, drift

Matrix = NDArray[np.float32]


def unit_rows(texts: int, dim: int, *, seed: int) -> Matrix:
    rows = np.random.default_rng(seed).normal(size=(texts, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def moved(rows: Matrix, *, by: float, seed: int) -> Matrix:
    """Rows after a random linear map near the identity, unit again."""
    mapped = rows @ (np.eye(rows.shape[1]) + by * np.random.default_rng(seed).normal(size=(rows.shape[1],) * 2))
    return (mapped / np.linalg.norm(mapped, axis=1, keepdims=True)).astype(np.float32)


def naive_drift(base: Matrix, tuned: Matrix) -> tuple[float, float]:
    """From the very similarities of the product, so that ties are the same ones."""
    texts = range(len(base))
    before, after = (base @ base.T).tolist(), (tuned @ tuned.T).tolist()
    pairs = [(i, j) for i in texts for j in texts if i < j]
    correlation = stats.spearmanr([before[i][j] for i, j in pairs], [after[i][j] for i, j in pairs]).statistic
    shares = []
    for i in texts:
        near = [set(sorted((j for j in texts if j != i), key=lambda j: (-row[j], j))[:10]) for row in (before[i], after[i])]
        shares.append(len(near[0] & near[1]) / len(near[0]))
    return float(correlation), float(np.mean(shares))


@pytest.mark.parametrize(("texts", "seed"), [(3, 0), (11, 1), (60, 2), (150, 3)])
def test_drift_agrees_with_loops_and_scipy(texts: int, seed: int) -> None:
    base = unit_rows(texts, 8, seed=seed)
    tuned = moved(base, by=0.2, seed=seed)

    found = drift(base, tuned)

    assert (found.rank_correlation, found.neighbours) == pytest.approx(naive_drift(base, tuned), abs=1e-12)
    assert found.texts == texts


def test_drift_agrees_where_most_similarities_are_tied() -> None:
    draw = np.random.default_rng(4)
    base, tuned = (draw.integers(-1, 2, size=(80, 3)).astype(np.float32) for _ in range(2))  # exact products, few values

    found = drift(base, tuned)

    assert (found.rank_correlation, found.neighbours) == pytest.approx(naive_drift(base, tuned), abs=1e-12)


def test_nothing_moved_is_no_drift() -> None:
    base = unit_rows(40, 6, seed=1)

    assert drift(base, base.copy()) == Drift(rank_correlation=1, neighbours=1, texts=40)


def test_a_rotation_into_more_dimensions_is_no_drift() -> None:
    base = unit_rows(40, 6, seed=1)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(9, 9)))[0][:6].astype(np.float32)

    found = drift(base, base @ rotation)

    assert found.rank_correlation == pytest.approx(1, abs=1e-6)
    assert found.neighbours == pytest.approx(1, abs=0.01)  # rounding may swap two that are nearly equal


def test_the_more_a_version_moves_the_more_it_drifts() -> None:
    base = unit_rows(200, 16, seed=5)

    found = [drift(base, moved(base, by=by, seed=6)) for by in (0.02, 0.1, 0.5)]
    unrelated = drift(base, unit_rows(200, 16, seed=7))

    assert 1 > found[0].rank_correlation > found[1].rank_correlation > found[2].rank_correlation > unrelated.rank_correlation
    assert 1 > found[0].neighbours > found[1].neighbours > found[2].neighbours > unrelated.neighbours
    assert unrelated.rank_correlation == pytest.approx(0, abs=0.05)
    assert unrelated.neighbours == pytest.approx(10 / 199, abs=0.02)  # what chance keeps


def test_of_too_many_texts_the_same_ones_count_in_whatever_order_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zerogate.drift, "MOST_TEXTS", 200)
    base = unit_rows(230, 4, seed=8)
    tuned = moved(base, by=0.3, seed=9)
    order = np.random.default_rng(10).permutation(230)

    found, shuffled = drift(base, tuned), drift(base[order], tuned[order])

    assert found.texts == shuffled.texts == 200
    assert (found.rank_correlation, found.neighbours) == pytest.approx((shuffled.rank_correlation, shuffled.neighbours), abs=1e-5)
    first = drift(base[:200], tuned[:200])
    assert first.rank_correlation != pytest.approx(found.rank_correlation, abs=1e-5)  # not simply those that came first


def test_vectors_that_are_no_numbers_have_drifted_altogether() -> None:
    base = unit_rows(50, 6, seed=1)

    assert drift(base, np.full_like(base, math.nan)).rank_correlation == 0
    assert drift(base, np.vstack([base[:-1], np.full((1, 6), math.nan, np.float32)])).rank_correlation < 0.95


@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 0), (5, 4)])
def test_vectors_of_other_texts_or_of_too_few_are_refused(before: int, after: int) -> None:
    with pytest.raises(ValueError, match=f"the same three texts or more, found {before} and {after}"):
        drift(unit_rows(before, 3, seed=1), unit_rows(after, 3, seed=1))
