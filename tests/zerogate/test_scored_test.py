"""Spearman's rank correlation and its bootstrap, against scipy and a jackknife."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from zerogate import scored_test
from zerogate.bootstrap import resamples
from zerogate.errors import TooFewExamples
from zerogate.scored_test import RankEvaluation, ScoredTest, influence, resampled_spearmans, spearman
from zerogate.vectors import Vectors

Numbers = NDArray[np.float32]


def scored_pairs(pairs: int, *, noise: float, seed: int, levels: int = 8) -> tuple[Numbers, Numbers]:
    """Cosines that follow scores in a few steps, so with many ties; some cosines are tied as well."""
    draw = np.random.default_rng(seed)
    scores = (draw.integers(levels, size=pairs) / levels).astype(np.float32)
    return np.round(scores + draw.normal(0, noise, size=pairs), 2).astype(np.float32), scores


def evaluated(pairs: int, *, noise: float, seed: int) -> tuple[RankEvaluation, RankEvaluation]:
    """A base and a version that moves its cosines a little."""
    cosines, scores = scored_pairs(pairs, noise=noise, seed=seed)
    moved = cosines + np.random.default_rng(seed + 1000).normal(0, noise / 3, size=pairs).astype(np.float32)
    return RankEvaluation(cosines, scores), RankEvaluation(moved, scores)


@pytest.mark.parametrize("pairs", [2, 3, 10, 500])
@pytest.mark.parametrize("levels", [2, 8, 10_000])
def test_spearman_is_that_of_scipy_ties_included(pairs: int, levels: int) -> None:
    draw = np.random.default_rng(pairs + levels)
    one, other = draw.permutation(pairs), draw.integers(levels, size=pairs)
    other[:2] = 0, 1  # never constant

    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert spearman(other, one) == pytest.approx(spearman(one, other), abs=1e-15)


def test_spearman_only_sees_the_order() -> None:
    numbers = np.random.default_rng(0).normal(size=50)

    assert spearman(numbers, np.exp(3 * numbers)) == 1
    assert spearman(numbers, -(numbers**3)) == -1


def test_an_order_that_says_nothing_agrees_with_nothing() -> None:
    numbers = np.arange(5.0)

    assert spearman(np.ones(5), numbers) == spearman(numbers, np.ones(5)) == spearman(np.ones(1), np.ones(1)) == 0


def test_a_scored_test_ranks_the_cosines_of_its_pairs() -> None:
    draw = np.random.default_rng(1)
    rows = draw.integers(-3, 4, size=(40, 5)).astype(np.float32)
    pairs, scores = draw.integers(40, size=(60, 2)), draw.uniform(size=60).astype(np.float32)

    found = ScoredTest(pairs, scores).evaluate(Vectors(rows, rows[:0]))

    products = [sum(a * b for a, b in zip(rows[i].tolist(), rows[j].tolist(), strict=True)) for i, j in pairs]
    assert found.cosines.tolist() == products
    assert found.scores == {"spearman": found.value}
    assert found.value == pytest.approx(stats.spearmanr(products, scores).statistic, abs=1e-12)


def test_vectors_that_are_no_numbers_count_as_least_similar() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1], [math.nan, 0], [-1, 0]], np.float32)
    scores = np.array([1.0, 0.5, 0.2, 0.0], np.float32)
    pairs = np.array([[0, 1], [0, 2], [0, 4], [0, 3]])

    assert ScoredTest(pairs, scores).evaluate(Vectors(rows, rows[:0])).value == 1
    assert ScoredTest(pairs, scores).evaluate(Vectors(rows * math.nan, rows[:0])).value == 0


def test_blocks_change_nothing_and_the_callback_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(30, 5)).astype(np.float32)
    test = ScoredTest(draw.integers(30, size=(25, 2)), draw.uniform(size=25).astype(np.float32))
    whole = test.evaluate(Vectors(rows, rows[:0])).cosines
    told = []

    monkeypatch.setattr(scored_test, "NUMBERS_PER_BLOCK", 100)
    blocks = test.evaluate(Vectors(rows, rows[:0]), lambda done, of: told.append((done, of))).cosines

    assert blocks.tolist() == whole.tolist()
    assert told == [(0, 25), (10, 25), (20, 25)]


def test_a_scored_test_needs_pairs() -> None:
    with pytest.raises(TooFewExamples, match="pairs to test on"):
        ScoredTest(np.empty((0, 2), np.int64), np.empty(0, np.float32)).evaluate(
            Vectors(np.ones((1, 2), np.float32), np.ones((0, 2)))
        )


@pytest.mark.parametrize("pairs", [6, 75])
def test_every_resample_is_ranked_anew_as_by_scipy(pairs: int) -> None:
    base, tuned = evaluated(pairs, noise=0.2, seed=pairs)

    found = resampled_spearmans((base.cosines, tuned.cosines), base.wanted, seed=4)

    assert found.shape == (2, 10_000)
    for number, chosen in enumerate(np.concatenate(list(resamples(pairs, seed=4)))[:300]):
        for version, own in zip((base, tuned), found, strict=True):
            if len(set(version.cosines[chosen])) > 1 < len(set(base.wanted[chosen])):
                expected = stats.spearmanr(version.cosines[chosen], base.wanted[chosen]).statistic
            else:
                expected = 0
            assert own[number] == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_difference_is_the_paired_one() -> None:
    base, tuned = evaluated(400, noise=0.3, seed=1)

    found = base.compare(tuned, seed=2)

    samples = np.concatenate(list(resamples(400, seed=2)))[:1500]
    differences = [
        stats.spearmanr(tuned.cosines[chosen], base.wanted[chosen]).statistic
        - stats.spearmanr(base.cosines[chosen], base.wanted[chosen]).statistic
        for chosen in samples
    ]
    expected = np.quantile(differences, [0.025, 0.975])
    assert found.difference == pytest.approx(tuned.value - base.value)
    assert found.standard_error == pytest.approx(np.std(differences), rel=0.08)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.25 * found.standard_error)
    # Unpaired, the two correlations would seem to differ by far more.
    assert found.standard_error < 0.5 * resampled_spearmans((base.cosines,), base.wanted, seed=2).std()


def test_the_share_of_a_pair_is_that_of_the_jackknife() -> None:
    cosines, scores = scored_pairs(150, noise=0.3, seed=3)

    found = influence(RankEvaluation(cosines, scores))

    whole = stats.spearmanr(cosines, scores).statistic
    without = [stats.spearmanr(np.delete(cosines, i), np.delete(scores, i)).statistic for i in range(150)]
    pseudo_values = 150 * whole - 149 * np.asarray(without)
    assert found.mean() == pytest.approx(whole, abs=1e-12)
    assert np.corrcoef(found, pseudo_values)[0, 1] > 0.99999
    assert found.std() == pytest.approx(pseudo_values.std(), rel=0.02)
    assert influence(RankEvaluation(np.ones(9, np.float32), scores[:9])).tolist() == [0] * 9


def test_a_pair_wins_when_its_rank_comes_nearer_to_that_of_its_score() -> None:
    scores = np.array([0.0, 0.2, 0.4, 0.6, 0.8], np.float32)
    base = RankEvaluation(np.array([0.9, 0.1, 0.3, 0.2, 0.5], np.float32), scores)  # ranks 5 1 3 2 4
    tuned = RankEvaluation(np.array([0.4, 0.1, 0.3, 0.2, 0.5], np.float32), scores)  # ranks 4 1 3 2 5

    found = base.compare(tuned)

    assert base.items.tolist() == [0, 0.75, 1, 0.5, 0.75]
    assert tuned.items.tolist() == [0.25, 0.75, 1, 0.5, 1]
    assert (found.wins, found.losses, found.items) == (2, 0, 5)


def test_a_collapse_is_worse_and_the_same_cosines_are_no_difference() -> None:
    base, _ = evaluated(200, noise=0.2, seed=5)
    collapsed = RankEvaluation(np.ones(200, np.float32), base.wanted)

    down, same = base.compare(collapsed), base.compare(base)

    assert down.difference == -base.value
    assert down.high < -0.75
    assert (same.difference, same.low, same.high, same.standard_error, same.wins, same.losses) == (0, 0, 0, 0, 0, 0)
