"""Losses over pairs of texts that have a similarity score."""

import torch
from torch import Tensor


def cosent(first: Tensor, second: Tensor, scores: Tensor, *, scale: float) -> Tensor:
    """CoSENT (Su 2022, kexue.fm/archives/8847): log(1 + sum of exp(scale * (cosine_i - cosine_j)) over score_i < score_j).

    Only the order of the scores counts: a pair with a lower score shall have a lower cosine. It fits a rank correlation.

    first, second: (n, dim), floats of one dtype, unit rows; row i of both is a pair.
    scores: (n,) numbers of any range. Pairs with equal scores are not compared.
    scale: > 0, the inverse of a temperature; usual is 20.
    Gives a scalar: of the whole batch, not a mean, so it grows with the logarithm of the number of comparisons. With fewer than
    two different scores it is 0 with a zero gradient.
    """
    cosines = (first * second).sum(dim=1)  # (n,)
    excess = scale * (cosines[:, None] - cosines[None, :])  # (n, n): what row's pair has more than column's
    excess = excess.masked_fill(scores[:, None] >= scores[None, :], float("-inf"))
    return torch.cat((excess.new_zeros(1), excess.flatten())).logsumexp(dim=0)


def cosine_regression(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of cosine and score, as sentence-transformers' CosineSimilarityLoss.

    The score is the wanted cosine itself: 1 asks for equal directions, 0 for a right angle. Nothing asks for opposite
    directions, because texts that have nothing to do with each other have cosines near 0 in these encoders, not near -1.

    first, second: (n, dim), floats of one dtype, unit rows; row i of both is a pair.
    scores: (n,) floats in [0, 1]; scores of another range (0..5) have to be divided first.
    Gives a scalar. Every pair counts by itself; an empty batch gives 0 with a zero gradient.
    """
    differences = (first * second).sum(dim=1) - scores.to(first.dtype)  # (n,)
    return differences.square().sum() / max(1, len(differences))
