"""The test of scored pairs: does the cosine rank them as their scores do? Spearman's rank correlation, and its bootstrap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerogate.bootstrap import Comparison, interval, resamples
from zerogate.evaluation import NUMBERS_PER_BLOCK, Evaluation, OnBlock, Test, check_any, check_same_test
from zerogate.vectors import Vectors


@dataclass(frozen=True)
class RankEvaluation(Evaluation):
    """Pairs in the order of their cosines against the order of their scores; cosines, wanted: (k,)."""

    cosines: NDArray[np.float32]
    wanted: NDArray[np.float32]
    primary: str = "spearman"

    @property
    def scores(self) -> dict[str, float]:
        return {self.primary: spearman(self.cosines, self.wanted)}

    @property
    def items(self) -> NDArray[np.float64]:
        """How near each pair's rank is to the rank of its score, (k,) in [0, 1]: 1 at its place, 0 at the other end."""
        once = np.ones((len(self.wanted), 1), np.int32)
        apart = np.abs(_Order.of(self.cosines).ranks(once) - _Order.of(self.wanted).ranks(once))[:, 0]
        near: NDArray[np.float64] = 1 - apart / (2 * max(1, len(apart) - 1))
        return near

    def compare(self, tuned: Evaluation, *, seed: int = 0) -> Comparison:
        """Compare by a paired bootstrap: the pairs are drawn anew, and each of the 10,000 samples is ranked anew."""
        check_same_test(self, tuned)
        assert isinstance(tuned, RankEvaluation)
        resampled = resampled_spearmans((self.cosines, tuned.cosines), self.wanted, seed=seed)  # (2, 10_000)
        differences = resampled[1] - resampled[0]
        low, high = interval(differences, influence(tuned) - influence(self), seed=seed)
        moved = tuned.items - self.items
        pairs = len(self.wanted)
        return Comparison(
            difference=tuned.value - self.value,
            low=low,
            high=high,
            # As with a mean, the resamples of k pairs vary by a factor (k - 1) / k too little.
            standard_error=float(differences.std()) * (pairs / (pairs - 1)) ** 0.5 if pairs > 1 else float("inf"),
            wins=int(np.count_nonzero(moved > 0)),
            losses=int(np.count_nonzero(moved < 0)),
            items=pairs,
        )


@dataclass(frozen=True)
class ScoredTest(Test):
    """Pairs of texts with the similarity they should have. pairs: (k, 2) int64 rows of `queries`; scores: (k,) in [0, 1]."""

    pairs: NDArray[np.int64]
    scores: NDArray[np.float32]

    @property
    def size(self) -> int:
        return len(self.pairs)

    def evaluate(self, vectors: Vectors, on_block: OnBlock | None = None) -> RankEvaluation:
        """Raises TooFewExamples without pairs. A cosine that is no number counts as lower than all others."""
        check_any(len(self.pairs), "pairs to test on")
        cosines = np.empty(len(self.pairs), np.float32)
        rows = max(1, NUMBERS_PER_BLOCK // (2 * vectors.queries.shape[1]))
        for start in range(0, len(cosines), rows):
            if on_block is not None:
                on_block(start, len(cosines))
            block = self.pairs[start : start + rows]
            one, other = vectors.queries[block[:, 0]], vectors.queries[block[:, 1]]  # (b, dim)
            cosines[start : start + rows] = np.einsum("bd,bd->b", one, other)
        return RankEvaluation(np.where(np.isnan(cosines), np.float32(-np.inf), cosines), self.scores)


def spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's rank correlation of two rows of n numbers, in [-1, 1]; equal numbers share the mean of their ranks.

    It is 0 where one of them is constant: an order that says nothing agrees with nothing.
    """
    once = np.ones((len(one), 1), np.int32)
    return float(_correlations(_Order.of(one).ranks(once), _Order.of(other).ranks(once), once)[0])


def resampled_spearmans(
    versions: tuple[NDArray[np.floating], ...], wanted: NDArray[np.floating], *, seed: int
) -> NDArray[np.float64]:
    """Spearman's correlation of each version's k numbers with the wanted ones in 10,000 resamples, (versions, 10_000).

    All versions meet the same resamples, `zerogate.bootstrap.resamples(k, seed)`. Each is ranked exactly: the numbers are
    sorted once, and the rank of a number in a resample follows from how often those before it were drawn.
    """
    orders = [_Order.of(numbers) for numbers in versions]
    wanted_order = _Order.of(wanted)
    found = []
    for chosen in resamples(len(wanted), seed=seed):  # (b, k)
        rows, pairs = chosen.shape
        flat = chosen * rows + np.arange(rows)[:, None]
        counts = np.bincount(flat.ravel(), minlength=pairs * rows).astype(np.int32).reshape(pairs, rows)
        wanted_ranks = wanted_order.ranks(counts)
        found.append(np.stack([_correlations(order.ranks(counts), wanted_ranks, counts) for order in orders]))
    return np.concatenate(found, axis=1)


@dataclass(frozen=True)
class _Order:
    """n numbers, sorted once. order: (n,) from the smallest; below, upto: (n,) how many numbers are smaller, and not larger."""

    order: NDArray[np.int64]
    below: NDArray[np.int64]
    upto: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.floating]) -> "_Order":
        order = np.argsort(numbers)
        ascending = numbers[order]
        starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))  # of the runs of equal numbers
        lengths = np.diff(np.append(starts, len(numbers)))
        below, upto = np.empty_like(order), np.empty_like(order)
        below[order] = np.repeat(starts, lengths)
        upto[order] = np.repeat(starts + lengths, lengths)
        return cls(order, below, upto)

    def ranks(self, counts: NDArray[np.int32]) -> NDArray[np.int64]:
        """Twice the mid-ranks of the numbers, less their mean, in resamples that hold number i counts[i] times; (n, b).

        An equal run that stands at positions a+1..b has the mid-rank (a + b + 1) / 2, and the mean of all N is (N + 1) / 2:
        twice the difference is a + b - N, a whole number.
        """
        before = np.zeros((len(counts) + 1, counts.shape[1]), np.int64)
        np.cumsum(counts[self.order], axis=0, out=before[1:])
        ranks: NDArray[np.int64] = before[self.below] + before[self.upto] - before[-1]
        return ranks

    def larger_less_smaller(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each number the sum of the values of all larger numbers, less that of all smaller ones, (n,)."""
        before = np.append(0.0, np.cumsum(values[self.order]))
        sums: NDArray[np.float64] = before[-1] - before[self.upto] - before[self.below]
        return sums


def _correlations(one: NDArray[np.int64], other: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Pearson's correlation of centred ranks (n, b) whose rows count so many times, (b,); 0 where one is constant."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    weighted_a, weighted_b = a * counts, b * counts
    shared = np.einsum("nb,nb->b", weighted_a, b)
    scale = np.sqrt(np.einsum("nb,nb->b", weighted_a, a) * np.einsum("nb,nb->b", weighted_b, b))
    found: NDArray[np.float64] = np.divide(shared, scale, out=np.zeros_like(shared), where=scale > 0)
    return found


def influence(found: RankEvaluation) -> NDArray[np.float64]:
    """What each pair adds to Spearman's correlation, by its own ranks and by moving the ranks of others, (k,).

    The mean is the correlation; a pair's excess over it is the derivative by the pair's weight (the empirical influence
    function; infinitesimal jackknife, Jaeckel 1972). With s_ij the sign of x_i - x_j, and t_ij that of y, the centred ranks are
    a_i = sum_j s_ij and b_i = sum_j t_ij, and the sum of their products is a sum over i, j and k of s_ij t_ik: the weight of m
    counts in it as i, as j and as k. All zeros where the cosines or the scores are constant.
    """
    once = np.ones((len(found.wanted), 1), np.int32)
    x, y = _Order.of(found.cosines), _Order.of(found.wanted)
    a, b = (order.ranks(once)[:, 0].astype(np.float64) for order in (x, y))
    aa, bb, ab = a @ a, b @ b, a @ b
    if not (aa > 0 and bb > 0):
        return np.zeros(len(a))
    by_ab = a * b + x.larger_less_smaller(b) + y.larger_less_smaller(a)
    by_aa = a * a + 2 * x.larger_less_smaller(a)
    by_bb = b * b + 2 * y.larger_less_smaller(b)
    correlation = ab / np.sqrt(aa * bb)
    excess = by_ab / np.sqrt(aa * bb) - correlation / 2 * (by_aa / aa + by_bb / bb)
    shares: NDArray[np.float64] = correlation + len(a) * excess
    return shares
