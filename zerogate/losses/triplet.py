"""Triplet losses: an anchor shall be closer to its positive than to its negative, by a margin.

The distance is the cosine distance, 1 - cosine, in [0, 2]. On unit rows it is half the squared Euclidean distance, so that
mining finds the same triplets as FaceNet's.
"""

import torch
from torch import Tensor

from zerogate.losses.labels import positives_and_negatives


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, present: Tensor | None = None) -> Tensor:
    """Mean of max(0, d(anchor, positive) - d(anchor, negative) + margin) over all given triplets (Schroff et al. 2015).

    anchors, positives: (n, dim), negatives: (n, k, dim); floats of one dtype, unit rows; negatives[i] belong to anchors[i].
    margin: in (0, 2], how much farther the negative shall be.
    present: (n, k) bool, false where a negative is missing; the numbers there must be finite and change nothing.
    Gives a scalar: every present negative counts the same, so an anchor with more negatives counts more. Without any negative
    it is 0 with a zero gradient.
    """
    to_positive = (anchors * positives).sum(dim=1, keepdim=True)  # (n, 1)
    to_negative = torch.einsum("nd,nkd->nk", anchors, negatives)  # (n, k)
    losses = (to_negative - to_positive + margin).clamp(min=0)  # (n, k)
    if present is not None:
        losses = losses[present]
    return losses.sum() / max(1, losses.numel())


def semi_hard_triplets(embeddings: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Triplet loss with per-anchor semi-hard negatives (FaceNet, Schroff et al. 2015, section 3.2).

    Every pair of two rows with one label is an anchor and its positive, in both orders, and gets one negative: see
    `mine_semi_hard`. The mean of max(0, d(anchor, positive) - d(anchor, negative) + margin) over these triplets.

    embeddings: (n, dim) floats, unit rows. labels: (n,) integers.
    margin: in (0, 2]. A negative beyond the margin costs nothing.
    Gives a scalar. A row needs another row of its label and a row of another label; where no row has both (one group, or
    groups of one), the loss is 0 with a zero gradient.
    """
    anchor, positive, negative = mine_semi_hard(embeddings, labels).unbind(dim=1)  # each (t,)
    similarities = embeddings @ embeddings.T  # (n, n)
    losses = (similarities[anchor, negative] - similarities[anchor, positive] + margin).clamp(min=0)  # (t,)
    return losses.sum() / max(1, len(losses))


@torch.no_grad()
def mine_semi_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The semi-hard triplets of a batch: rows (anchor, positive, negative), (t, 3) int64, indices of rows.

    For every anchor and each of its positives: the closest of the anchor's negatives that is strictly farther from the anchor
    than the positive is; where none is farther, the farthest of the anchor's negatives (as TensorFlow Addons'
    triplet_semihard_loss does). All three distances are the anchor's own. Anchors without a negative have no triplets.

    embeddings: (n, dim) floats, unit rows. labels: (n,) integers. Needs memory for a few (n, n) matrices, not for n^3 triplets.
    """
    is_positive, is_negative = positives_and_negatives(labels)
    distances = -embeddings @ embeddings.T  # (n, n), without the constant 1: adding it would round close ones to equal
    # Each row: the anchor's negatives from the closest to the farthest, then infinities.
    sorted_negatives, order = distances.masked_fill(~is_negative, float("inf")).sort(dim=1, stable=True)
    place = torch.searchsorted(sorted_negatives, distances, right=True)  # (n, n): how many negatives are not farther
    farthest = is_negative.sum(dim=1, keepdim=True) - 1  # (n, 1); -1 without a negative
    negative = order.gather(1, place.minimum(farthest).clamp(min=0))  # (n, n): of row's anchor and column's positive
    anchor, positive = (is_positive & is_negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    return torch.stack((anchor, positive, negative[anchor, positive]), dim=1)


def batch_hard(embeddings: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Triplet loss of every anchor with its farthest positive and its closest negative (Hermans et al. 2017, equation 5).

    The mean of max(0, d(anchor, farthest positive) - d(anchor, closest negative) + margin) over the anchors.

    embeddings: (n, dim) floats, unit rows. labels: (n,) integers. margin: in (0, 2].
    Gives a scalar. A row needs another row of its label and a row of another label, otherwise it is no anchor; where no row
    has both, the loss is 0 with a zero gradient. Rows that are equally hard share the gradient.
    """
    positive, negative = positives_and_negatives(labels)
    usable = positive.any(dim=1) & negative.any(dim=1)  # (n,)
    if not usable.any():
        return embeddings.sum() * 0
    similarities = embeddings[usable] @ embeddings.T  # (u, n)
    to_positive = similarities.masked_fill(~positive[usable], float("inf")).amin(dim=1)  # (u,)
    to_negative = similarities.masked_fill(~negative[usable], float("-inf")).amax(dim=1)  # (u,)
    return (to_negative - to_positive + margin).clamp(min=0).mean()
