"""Resampled intervals: against scipy and closed forms, and what few items may and may not show."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from zerogate import bootstrap
from zerogate.bootstrap import chance_of_sum, compare_means, interval, mean_interval, resamples


def all_resamples(items: int, *, seed: int = 0) -> NDArray[np.int64]:
    return np.concatenate(list(resamples(items, seed=seed)))


def test_there_are_ten_thousand_resamples_and_every_item_is_drawn_as_often() -> None:
    chosen = all_resamples(30)

    counts = np.bincount(chosen.ravel(), minlength=30)
    assert chosen.shape == (10_000, 30)
    assert counts == pytest.approx(10_000, abs=5 * math.sqrt(10_000))  # each is nearly Poisson: five standard deviations


def test_resamples_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = all_resamples(7, seed=3)

    monkeypatch.setattr(bootstrap, "_NUMBERS_PER_BLOCK", 1000)

    blocks = list(resamples(7, seed=3))
    assert len(blocks) == math.ceil(10_000 / 142)
    assert np.array_equal(np.concatenate(blocks), expected)
    assert not np.array_equal(all_resamples(7, seed=4), expected)


@pytest.mark.parametrize(("items", "seed"), [(12, 0), (40, 1), (300, 2), (1000, 3)])
def test_the_interval_is_scipys_percentile_bootstrap_at_the_percentiles_of_hesterberg(items: int, seed: int) -> None:
    differences = np.random.default_rng(seed).exponential(size=items) - 0.8
    tail = stats.norm.cdf(-math.sqrt(items / (items - 1)) * stats.t.ppf(0.975, items - 1))

    low, high = mean_interval(differences)

    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, confidence_level=1 - 2 * tail, method="percentile", rng=seed
    ).confidence_interval
    # Five times what two sets of 10,000 resamples differ by; at the ends of few items fewer resamples lie.
    tolerance = (0.1 if items >= 40 else 0.2) * differences.std() / math.sqrt(items)
    for found, end in ((low, expected.low), (high, expected.high)):
        assert found == pytest.approx(end, abs=tolerance) or found == 0  # where the sign-flip test sees no evidence


@pytest.mark.parametrize("freedom", [5, 6, 9, 19, 99, 1000])
def test_students_quantile_is_that_of_scipy(freedom: int) -> None:
    assert bootstrap._student(stats.norm.ppf(0.975), freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)


def test_the_interval_of_many_items_is_the_normal_one() -> None:
    values = np.random.default_rng(0).exponential(size=4000) - 1

    low, high = mean_interval(values)

    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_interval_of_few_items_holds_the_truth_as_often_as_it_says() -> None:
    held = plain = 0
    for seed in range(500):
        differences = np.random.default_rng(seed).normal(0.3, 1, size=8)
        low, high = mean_interval(differences, seed=seed)
        held += low <= 0.3 <= high
        means = differences[all_resamples(8, seed=seed)].mean(axis=1)
        plain += np.quantile(means, 0.025) <= 0.3 <= np.quantile(means, 0.975)

    assert held / 500 >= 0.93  # 95 %, less two standard errors
    assert plain / 500 < 0.92  # which the plain percentiles do not


@pytest.mark.parametrize("items", [1, 2, 5, 9, 13])
def test_the_chance_of_a_sum_is_that_of_all_sign_patterns(items: int) -> None:
    shares = np.random.default_rng(items).normal(0.4, 1, size=items)

    sums = [np.dot(signs, shares) for signs in itertools.product((1, -1), repeat=items)]
    assert chance_of_sum(shares, seed=0) == np.mean(np.asarray(sums) >= shares.sum() - 1e-9)


def test_equal_sums_count_in_whatever_order_they_were_added() -> None:
    tenths = (1, 2, 3, -1, -2, 7)  # as whole numbers their sums are exact

    sums = [sum(size * sign for size, sign in zip(tenths, signs, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    assert chance_of_sum(np.array(tenths) / 10, seed=0) == np.mean(np.asarray(sums) >= 10)


def test_the_chance_among_many_items_is_that_of_scipy() -> None:
    shares = np.random.default_rng(2).normal(0.25, 1, size=60)

    expected = stats.permutation_test((shares,), np.sum, permutation_type="samples", alternative="greater", rng=1)

    assert 0.005 < expected.pvalue < 0.2
    assert chance_of_sum(shares, seed=0) == pytest.approx(expected.pvalue, abs=0.012)


def test_items_that_did_not_move_do_not_count() -> None:
    shares = np.array([0.4, -0.1, 0.3, 0.2])

    assert chance_of_sum(np.append(shares, np.zeros(500)), seed=0) == chance_of_sum(shares, seed=0)
    assert chance_of_sum(np.zeros(9), seed=0) == 1


@pytest.mark.parametrize("wins", [1, 2, 3, 4, 5])
def test_up_to_five_items_that_all_win_show_nothing(wins: int) -> None:
    assert mean_interval(np.full(wins, 0.25)) == (0, 0.25)
    assert mean_interval(np.full(wins, -0.25)) == (-0.25, 0)


def test_six_items_that_all_win_show_a_gain() -> None:
    assert mean_interval(np.full(6, 0.25)) == (0.25, 0.25)


def test_an_interval_is_only_extended_where_signs_alone_would_explain_it() -> None:
    above = np.linspace(0.1, 0.2, 10_000)

    few = interval(above, np.array([0.1, 0.1, 0.2, 0.2]), seed=0)
    many = interval(above, np.linspace(0.1, 0.2, 12), seed=0)

    assert (few[0], many[0]) == (0, pytest.approx(0.1, abs=0.002))
    assert few[1] == pytest.approx(0.2, abs=0.002)


def test_a_comparison_knows_its_standard_error() -> None:
    draw = np.random.default_rng(3)
    base = draw.uniform(size=400)
    tuned = base + draw.normal(0.01, 0.1, size=400)

    found = compare_means(base, tuned)

    assert found.standard_error == pytest.approx(stats.sem(tuned - base))
    assert found.standard_error == pytest.approx((found.high - found.low) / (2 * stats.norm.ppf(0.975)), rel=0.05)
    assert compare_means(base[:1], tuned[:1]).standard_error == math.inf
