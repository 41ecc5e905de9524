"""Better, worse, or no evidence: how often chance is taken for progress, and what a test is too small to see."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.evaluation import MeanEvaluation
from zerogate.scored_test import RankEvaluation
from zerogate.verdict import Change, Verdict, examples, judge, judge_values


def paired_scores(queries: int, *, gain: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores in [0, 1] of two versions; for a query they go up and down together, as real ones do."""
    draw = np.random.default_rng(seed)
    base = draw.beta(0.6, 0.6, size=queries)
    return base, np.clip(base + draw.normal(gain, 0.15, size=queries), 0, 1)


def judged(differences: list[float] | NDArray[np.float64], *, seed: int = 0) -> Verdict:
    """The verdict on a version that differs by so much on each item."""
    return judge_values("ndcg@10", np.zeros(len(differences)), np.asarray(differences, dtype=np.float64), seed=seed)


def test_equal_scores_are_no_evidence() -> None:
    base, _ = paired_scores(50, gain=0, seed=1)

    found = judge_values("ndcg@10", base, base.copy())

    assert (found.difference, found.low, found.high, found.wins, found.losses) == (0, 0, 0, 0, 0)
    assert (found.outcome, found.smallest_visible, found.warning) == ("no evidence", None, None)


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_improvement_is_better_and_the_other_way_round_worse(seed: int) -> None:
    base, tuned = paired_scores(200, gain=0.1, seed=seed)

    better, worse = judge_values("mrr@10", base, tuned), judge_values("mrr@10", tuned, base)

    assert (better.outcome, worse.outcome) == ("better", "worse")
    assert better.low > 0 > worse.high
    assert better.difference == -worse.difference
    assert (better.wins, better.losses) == (worse.losses, worse.wins)
    assert better.warning is None is worse.warning


def test_one_lucky_query_is_no_evidence() -> None:
    base, tuned = np.zeros(100), np.zeros(100)
    tuned[17] = 1.0

    found = judge_values("mrr@10", base, tuned)

    assert (found.wins, found.losses, found.queries) == (1, 0, 100)
    assert found.outcome == "no evidence"


def test_wins_and_losses_are_counted_by_query() -> None:
    base = np.array([0.5, 0.5, 0.5, 0.0, 1.0, 0.3])
    tuned = np.array([0.6, 0.4, 0.5, 1.0, 0.9, 0.4])

    found = judge_values("mrr@10", base, tuned)

    assert (found.wins, found.losses, found.queries) == (3, 2, 6)


def test_the_pairing_counts_and_not_only_the_means() -> None:
    """A small gain on every query is evidence, although the queries differ far more from each other."""
    base = np.random.default_rng(3).uniform(0, 0.9, size=60)

    assert judge_values("ndcg@10", base, base + 0.02).outcome == "better"
    assert judge_values("ndcg@10", base, np.random.default_rng(4).permutation(base) + 0.02).outcome == "no evidence"


def test_a_verdict_repeats_itself() -> None:
    base, tuned = paired_scores(120, gain=0.02, seed=5)

    first, second, other = (judge_values("ndcg@10", base, tuned, seed=seed) for seed in (1, 1, 2))

    assert first == second
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize("queries", [1, 3, 30])
def test_a_verdict_is_plain_json(queries: int) -> None:
    base, tuned = paired_scores(queries, gain=0.02, seed=5)

    found = judge_values("ndcg@10", base, tuned).to_dict()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["score"] == "ndcg@10"


def test_two_evaluations_are_judged_by_their_primary_score() -> None:
    base, tuned = paired_scores(80, gain=0.1, seed=6)
    evaluations = [MeanEvaluation("mrr@10", {"ndcg@10": 1 - values, "mrr@10": values}) for values in (base, tuned)]

    assert judge(*evaluations, seed=3) == judge_values("mrr@10", base, tuned, seed=3)


def test_scored_pairs_are_judged_by_their_correlation() -> None:
    draw = np.random.default_rng(7)
    scores = draw.uniform(size=300).astype(np.float32)
    clear, blurred = (
        RankEvaluation((scores + draw.normal(0, noise, size=300)).astype(np.float32), scores) for noise in (0.2, 0.4)
    )

    better, worse = judge(blurred, clear), judge(clear, blurred)

    assert (better.outcome, worse.outcome, better.score) == ("better", "worse", "spearman")
    assert better.low < better.difference == clear.value - blurred.value < better.high
    assert better.wins > better.losses


def null_differences(shape: str, items: int, seed: int) -> NDArray[np.float64]:
    """Gains and losses that are equally likely: no version is better."""
    draw = np.random.default_rng([items, seed])
    match shape:
        case "two versions":
            return np.subtract(*draw.beta(0.6, 0.6, size=(2, items)))
        case "mostly zero":
            return draw.choice([-1.0, 1.0], size=items) * (draw.uniform(size=items) < 0.15)
        case "heavy ties":
            return draw.choice([-0.5, 0.0, 0.5], size=items)
        case _:
            return draw.standard_t(1.5, size=items)  # a few items decide


@pytest.mark.parametrize("shape", ["two versions", "mostly zero", "heavy ties", "heavy tails"])
@pytest.mark.parametrize("items", [5, 6, 9, 15, 40])
def test_chance_is_seldom_taken_for_progress(shape: str, items: int) -> None:
    outcomes = [judged(null_differences(shape, items, seed), seed=seed).outcome for seed in range(250)]

    # 2.5 % of 250 are 6.25; 14 or more come in 1 of 200 such tests, and each of the seeded ones stays below.
    assert outcomes.count("better") <= 13
    assert outcomes.count("worse") <= 13


def test_a_verdict_does_decide_now_and_then() -> None:
    outcomes = [judged(null_differences("two versions", 200, seed), seed=seed).outcome for seed in range(150)]

    assert 1 <= outcomes.count("better") <= 10  # 2.5 % are 4
    assert 1 <= outcomes.count("worse") <= 10


@pytest.mark.parametrize("pairs", [8, 30])
def test_chance_is_seldom_taken_for_a_better_correlation(pairs: int) -> None:
    outcomes = []
    for seed in range(120):
        draw = np.random.default_rng([pairs, seed])
        scores = (draw.integers(6, size=pairs) / 5).astype(np.float32)
        base, tuned = (RankEvaluation((scores + draw.normal(0, 0.4, pairs)).astype(np.float32), scores) for _ in range(2))
        outcomes.append(judge(base, tuned, seed=seed).outcome)

    assert outcomes.count("better") <= 8  # 2.5 % are 3
    assert outcomes.count("worse") <= 8


@pytest.mark.parametrize("queries", [1, 2, 3, 5])
def test_a_few_queries_that_all_win_are_no_evidence(queries: int) -> None:
    found = judged([0.3] * queries)

    assert (found.outcome, found.low, found.smallest_visible) == ("no evidence", 0, None)
    assert found.warning == f"A test of {queries} items can show nothing; 6 are the least, some hundreds are usual."


def test_the_smallest_visible_difference_is_seen_four_times_in_five() -> None:
    draw = np.random.default_rng(8)
    visible = judged(draw.normal(0, 0.2, size=1000)).smallest_visible
    assert visible == pytest.approx(2.8 * 0.2 / np.sqrt(1000), rel=0.05)

    gain = 2.8 * 0.2 / np.sqrt(100)
    outcomes = [judged(np.random.default_rng([9, seed]).normal(gain, 0.2, size=100), seed=seed).outcome for seed in range(250)]

    assert outcomes.count("better") / 250 == pytest.approx(0.8, abs=0.065)  # 2.5 standard errors


def test_a_test_that_is_too_small_says_how_many_items_it_takes() -> None:
    differences = np.tile([0.4, -0.36], 20)  # mean 0.02, standard deviation 0.38 * sqrt(40 / 39) = 0.38484

    found = judged(differences)

    # 2.8 * 0.38484 / sqrt(40) = 0.170376; 40 * (0.170376 / 0.02)^2 = 2,903.
    assert found.outcome == "no evidence"
    assert found.smallest_visible == pytest.approx(0.170376, abs=1e-6)
    assert found.warning == (
        f"The test is too small: 40 items show gains from about 0.170 on, and one of up to {found.high:.3f} may be there; "
        "for the observed gain of 0.020 about 3,000 items are needed."
    )


def test_the_items_it_takes_do_find_the_gain() -> None:
    differences = np.random.default_rng(10).normal(size=60)
    differences = 0.05 + 0.3 * (differences - differences.mean()) / differences.std()
    found = judged(differences)
    assert found.outcome == "no evidence"
    assert found.warning is not None
    needed = int(found.warning.split(" about ")[-1].split()[0].replace(",", ""))

    outcomes = [judged(np.random.default_rng([11, seed]).choice(differences, needed), seed=seed).outcome for seed in range(120)]

    assert outcomes.count("better") / 120 == pytest.approx(0.8, abs=0.1)


def test_a_loss_that_might_be_a_gain_is_measured_by_the_least_gain_worth_having() -> None:
    found = judged(np.tile([0.36, -0.4], 20))

    # 40 * (0.170376 / 0.01)^2 = 11,611
    assert found.warning.endswith("for a gain of 0.01 about 12,000 items are needed.")


def test_a_test_large_enough_to_exclude_a_gain_worth_having_gives_no_warning() -> None:
    found = judged(np.random.default_rng(12).normal(0, 0.05, size=1000))

    assert found.outcome == "no evidence"
    assert 0 < found.high < 0.01
    assert found.smallest_visible < 0.01
    assert found.warning is None


def test_examples_are_the_largest_gains_and_losses() -> None:
    base = MeanEvaluation("mrr@10", {"mrr@10": np.array([0.5, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5])})
    tuned = MeanEvaluation("mrr@10", {"mrr@10": np.array([1.0, 0.0, 0.5, 1.0, 0.9, 1.0, 0.3])})

    found = examples(base, tuned, count=2)

    assert found.won == [Change(3, 0.0, 1.0), Change(0, 0.5, 1.0)]  # of two equal gains the one that stands first
    assert found.lost == [Change(1, 0.5, 0.0), Change(6, 0.5, 0.3)]
    everything = examples(base, tuned)
    assert [change.item for change in everything.won] == [3, 0, 5]
    assert [change.item for change in everything.lost] == [1, 6, 4]


def test_examples_of_scored_pairs_go_by_their_ranks() -> None:
    scores = np.array([0.0, 0.2, 0.4, 0.6, 0.8], np.float32)
    base = RankEvaluation(np.array([0.9, 0.1, 0.3, 0.2, 0.5], np.float32), scores)
    tuned = RankEvaluation(np.array([0.4, 0.1, 0.3, 0.2, 0.5], np.float32), scores)

    assert examples(base, tuned).won == [Change(0, 0.0, 0.25), Change(4, 0.75, 1.0)]
    assert examples(base, tuned).lost == []
    with pytest.raises(ValueError, match="only evaluations of the same test compare"):
        examples(base, MeanEvaluation("spearman", {"spearman": np.zeros(5)}))
