"""Is the version better than the encoder, or was the test set lucky? A paired bootstrap over the items of the test."""

from dataclasses import asdict, dataclass
from math import ceil, floor, log10
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zerogate.bootstrap import Comparison, compare_means
from zerogate.evaluation import Evaluation, check_same_test

Outcome = Literal["better", "worse", "no evidence"]

WORTH_HAVING = 0.01  # A gain that a test should be able to see.
# In standard errors: a true difference of so much leaves the 95 % interval above 0 in 80 % of tests (1.96 + 0.84; Bloom 1995,
# "Minimum detectable effects"; for tests of language models Card et al. 2020, "With little power comes great responsibility").
_VISIBLE_ERRORS = 2.80
_FEWEST_ITEMS = 6  # Five that all win do so by chance in 1 of 32 cases, which is more than 2.5 %.


@dataclass(frozen=True)
class Verdict:
    """The difference (tuned minus base) of one score, its 95 % interval, and what follows from it.

    wins, losses, queries: on how many items of the test the version is better, worse, and how many there are.
    smallest_visible: the smallest true difference that a test of this size finds in 4 of 5 cases; None where the test cannot
    tell (fewer than 6 items, or all differences equal). warning: a sentence when the test is too small to see a gain worth
    having.
    """

    score: str
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    queries: int
    outcome: Outcome
    smallest_visible: float | None
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """One item of a test (a query, text or pair, by its position in the test) and what it earned before and after."""

    item: int
    before: float
    after: float


@dataclass(frozen=True)
class Examples:
    """The items that gained most, and those that lost most; the largest change first."""

    won: list[Change]
    lost: list[Change]


def judge(base: Evaluation, tuned: Evaluation, *, seed: int = 0) -> Verdict:
    """Compare two versions on the same test by its primary score. Raises ValueError when the tests were different ones.

    `better` means that the whole 95 % interval lies above 0, `worse` below. The interval is a paired bootstrap with 10,000 seeded
    resamples of the items (`zerogate.bootstrap.interval`): where no version is better, `better` comes in at most 2.5 % of cases.
    """
    return _verdict(base.primary, base.compare(tuned, seed=seed))


def judge_values(score: str, base: NDArray[np.float64], tuned: NDArray[np.float64], *, seed: int = 0) -> Verdict:
    """The same for two rows of values whose mean is the score named; base, tuned: (n,), the same items in the same order."""
    return _verdict(score, compare_means(base, tuned, seed=seed))


def examples(base: Evaluation, tuned: Evaluation, *, count: int = 5) -> Examples:
    """Up to `count` items that gained most and as many that lost most; of equal changes those that stand first in the test.

    For scored pairs an item's value is how near its rank is to that of its score, in [0, 1]. Raises ValueError when the tests
    were different ones.
    """
    check_same_test(base, tuned)
    before, after = base.items, tuned.items
    change = after - before

    def largest(size: NDArray[np.float64]) -> list[Change]:
        first = np.argsort(-size, kind="stable")[:count]
        return [Change(int(item), float(before[item]), float(after[item])) for item in first if size[item] > 0]

    return Examples(won=largest(change), lost=largest(-change))


def _verdict(score: str, found: Comparison) -> Verdict:
    outcome: Outcome = "better" if found.low > 0 else "worse" if found.high < 0 else "no evidence"
    knows_its_noise = found.items >= _FEWEST_ITEMS and found.standard_error > 1e-12
    smallest_visible = _VISIBLE_ERRORS * found.standard_error if knows_its_noise else None
    return Verdict(
        score=score,
        difference=found.difference,
        low=found.low,
        high=found.high,
        wins=found.wins,
        losses=found.losses,
        queries=found.items,
        outcome=outcome,
        smallest_visible=smallest_visible,
        warning=_warning(found, smallest_visible) if outcome == "no evidence" else None,
    )


def _warning(found: Comparison, smallest_visible: float | None) -> str | None:
    """A sentence where a gain worth having may hide in the interval, and how many items would bring it to light."""
    if found.items < _FEWEST_ITEMS:
        return f"A test of {found.items} items can show nothing; {_FEWEST_ITEMS} are the least, some hundreds are usual."
    if found.high < WORTH_HAVING or smallest_visible is None:
        return None
    gain = max(found.difference, WORTH_HAVING)
    needed = _rounded_up(found.items * (smallest_visible / gain) ** 2)
    which = f"the observed gain of {gain:.3f}" if gain == found.difference else f"a gain of {gain}"
    return (
        f"The test is too small: {found.items} items show gains from about {smallest_visible:.3f} on, and one of up to "
        f"{found.high:.3f} may be there; for {which} about {needed:,} items are needed."
    )


def _rounded_up(number: float) -> int:
    """To two digits: the estimate holds no more."""
    unit = int(10 ** max(0, floor(log10(number)) - 1))
    return ceil(number / unit) * unit
