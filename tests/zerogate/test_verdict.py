"""Better, worse, or no evidence: the interval against scipy and the closed form, and how often chance is taken for progress."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from zerogate.verdict import bootstrap_interval, judge


def paired_scores(queries: int, *, gain: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores in [0, 1] of two versions; for a query they go up and down together, as real ones do."""
    draw = np.random.default_rng(seed)
    base = draw.beta(0.6, 0.6, size=queries)
    return base, np.clip(base + draw.normal(gain, 0.15, size=queries), 0, 1)


@pytest.mark.parametrize(("queries", "seed"), [(40, 1), (300, 2), (1000, 3)])
def test_the_interval_is_that_of_scipys_percentile_bootstrap(queries: int, seed: int) -> None:
    base, tuned = paired_scores(queries, gain=0.02, seed=seed)
    difference = tuned - base

    found = judge("ndcg@10", base, tuned)

    expected = stats.bootstrap((difference,), np.mean, n_resamples=10_000, method="percentile", rng=seed).confidence_interval
    tolerance = 0.1 * difference.std() / np.sqrt(queries)  # five times what two sets of 10,000 resamples differ by
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=tolerance)
    assert found.difference == pytest.approx(tuned.mean() - base.mean())
    assert found.low < found.difference < found.high


def test_the_interval_of_many_queries_is_the_normal_one() -> None:
    values = np.random.default_rng(0).exponential(size=4000) - 1

    low, high = bootstrap_interval(values)

    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_equal_scores_are_no_evidence() -> None:
    base, _ = paired_scores(50, gain=0, seed=1)

    found = judge("ndcg@10", base, base.copy())

    assert (found.difference, found.low, found.high, found.wins, found.losses) == (0, 0, 0, 0, 0)
    assert found.outcome == "no evidence"


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_improvement_is_better_and_the_other_way_round_worse(seed: int) -> None:
    base, tuned = paired_scores(200, gain=0.1, seed=seed)

    better, worse = judge("mrr@10", base, tuned), judge("mrr@10", tuned, base)

    assert (better.outcome, worse.outcome) == ("better", "worse")
    assert better.low > 0 > worse.high
    assert better.difference == -worse.difference
    assert (better.wins, better.losses) == (worse.losses, worse.wins)


def test_one_lucky_query_is_no_evidence() -> None:
    base, tuned = np.zeros(100), np.zeros(100)
    tuned[17] = 1.0

    found = judge("mrr@10", base, tuned)

    assert (found.wins, found.losses, found.queries) == (1, 0, 100)
    assert found.outcome == "no evidence"


def test_wins_and_losses_are_counted_by_query() -> None:
    base = np.array([0.5, 0.5, 0.5, 0.0, 1.0, 0.3])
    tuned = np.array([0.6, 0.4, 0.5, 1.0, 0.9, 0.4])

    found = judge("mrr@10", base, tuned)

    assert (found.wins, found.losses, found.queries) == (3, 2, 6)


def test_the_pairing_counts_and_not_only_the_means() -> None:
    """A small gain on every query is evidence, although the queries differ far more from each other."""
    base = np.random.default_rng(3).uniform(0, 0.9, size=60)

    assert judge("ndcg@10", base, base + 0.02).outcome == "better"
    assert judge("ndcg@10", base, np.random.default_rng(4).permutation(base) + 0.02).outcome == "no evidence"


def test_a_verdict_repeats_itself() -> None:
    base, tuned = paired_scores(120, gain=0.02, seed=5)

    first, second, other = (judge("ndcg@10", base, tuned, seed=seed) for seed in (1, 1, 2))

    assert first == second
    assert (first.low, first.high) != (other.low, other.high)


def test_a_verdict_is_plain_json() -> None:
    base, tuned = paired_scores(30, gain=0.02, seed=5)

    found = judge("ndcg@10", base, tuned).to_dict()

    assert json.loads(json.dumps(found)) == found
    assert found["score"] == "ndcg@10"


def test_chance_is_seldom_taken_for_progress() -> None:
    outcomes = []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        base, tuned = draw.beta(0.6, 0.6, size=(2, 40))  # both from one distribution: no version is better
        outcomes.append(judge("ndcg@10", base, tuned, seed=seed).outcome)

    assert outcomes.count("better") <= 12  # 2.5 % are 5; 6 % would be 12
    assert outcomes.count("worse") <= 12
    assert outcomes.count("no evidence") < 200  # it does decide now and then
