"""Is the version better than the encoder, or was the test set lucky? A paired bootstrap over the queries."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["better", "worse", "no evidence"]

RESAMPLES = 10_000
_CONFIDENCE = 0.95
_NUMBERS_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class Verdict:
    """The mean difference (tuned minus base) of one score, its 95 % interval, and what follows from it."""

    score: str
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    queries: int
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(score: str, base: NDArray[np.float64], tuned: NDArray[np.float64], *, seed: int = 0) -> Verdict:
    """Compare two versions query by query.

    base, tuned: (queries,) values of the score named, in the same order. `better` means that the whole interval lies above 0.
    The interval is the percentile bootstrap (Efron 1979) with 10,000 seeded resamples of the queries.
    """
    difference = tuned - base
    low, high = bootstrap_interval(difference, seed=seed)
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "no evidence"
    return Verdict(
        score=score,
        difference=float(difference.mean()),
        low=low,
        high=high,
        wins=int(np.count_nonzero(difference > 0)),
        losses=int(np.count_nonzero(difference < 0)),
        queries=len(difference),
        outcome=outcome,
    )


def bootstrap_interval(values: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values`, (n,), from 10,000 seeded resamples."""
    draw = np.random.default_rng(seed)
    rows = max(1, _NUMBERS_PER_BLOCK // len(values))  # bounded memory: a block of resamples at a time
    means = []
    for start in range(0, RESAMPLES, rows):
        chosen = draw.integers(len(values), size=(min(rows, RESAMPLES - start), len(values)))
        means.append(values[chosen].mean(axis=1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
