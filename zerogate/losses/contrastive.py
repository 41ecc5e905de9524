"""Contrastive losses over pairs of rows: in-batch (one or many positives) and over pairs that are marked similar or not."""

import torch
from torch import Tensor


def contrastive(
    anchors: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    same: Tensor | None = None,
    negatives: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Symmetric in-batch contrastive loss (InfoNCE; van den Oord et al. 2018, symmetric as in CLIP, Radford et al. 2021).

    Row i of `anchors` belongs to row i of `positives`; all other rows of the batch are its negatives, in both directions.

    anchors, positives: (n, dim), unit rows.
    temperature: divides the similarities, > 0; smaller means that only the hardest negatives count.
    same: (n, n) bool, true where row i and row j must not be each other's negatives (`same_pairs`).
    negatives: (n, h, dim), unit rows: further negatives of each anchor, of nobody else's (they may be others' positives).
    present: (n, h) bool, false where a negative is missing; the numbers there must be finite and change nothing.
    Gives the mean over the batch and both directions, a scalar.
    """
    similarities = anchors @ positives.T / temperature  # (n, n)
    if same is not None:
        similarities = similarities.masked_fill(same, float("-inf"))
    target = torch.arange(len(anchors), device=anchors.device)
    candidates = similarities  # (n, n) or (n, n + h)
    if negatives is not None:
        own = torch.einsum("nd,nhd->nh", anchors, negatives) / temperature  # (n, h)
        own = own if present is None else own.masked_fill(~present, float("-inf"))
        candidates = torch.cat((similarities, own), dim=1)
    forward = torch.nn.functional.cross_entropy(candidates, target)
    backward = torch.nn.functional.cross_entropy(similarities.T, target)
    return (forward + backward) / 2


def same_pairs(anchor_ids: Tensor, positive_ids: Tensor) -> Tensor:
    """The pairs of a batch that are no negatives of each other: they share their anchor's or their positive's text.

    anchor_ids, positive_ids: (n,) integers, equal where the texts are. Gives (n, n) bool, false on the diagonal.
    """
    same = (anchor_ids[:, None] == anchor_ids[None, :]) | (positive_ids[:, None] == positive_ids[None, :])
    return same.fill_diagonal_(fill_value=False)


def multi_positive_contrastive(
    anchors: Tensor, candidates: Tensor, positive: Tensor, *, temperature: float, ignored: Tensor | None = None
) -> Tensor:
    """In-batch contrastive loss with any number of positives per anchor (L_out of SupCon, Khosla et al. 2020, equation 2).

    For every anchor, the mean over its positives of -log(softmax over all its candidates); then the mean over the anchors.
    The other positives stay in the denominator: with p positives the least possible value is log(p), not 0.

    anchors: (n, dim), candidates: (m, dim); floats of one dtype, unit rows.
    positive: (n, m) bool, true where the candidate is a positive of the anchor; every other candidate is a negative.
    temperature: divides the similarities, > 0.
    ignored: (n, m) bool, true where a candidate is neither positive nor negative of the anchor (itself, a copy); it wins over
        `positive`.
    Gives a scalar. An anchor needs a positive and a negative, otherwise it counts for nothing; where no anchor has both, the
    loss is 0 with a zero gradient. With one positive per anchor, and the diagonal, it is one direction of `contrastive`.
    """
    if ignored is None:
        ignored = torch.zeros_like(positive)
    positive = positive & ~ignored
    usable = positive.any(dim=1) & (~positive & ~ignored).any(dim=1)  # (n,)
    positive = positive[usable]  # (u, m)
    similarities = anchors[usable] @ candidates.T / temperature  # (u, m)
    total = similarities.masked_fill(ignored[usable], float("-inf")).logsumexp(dim=1)  # (u,)
    pull = similarities.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)  # (u,)
    return (total - pull).sum() / max(1, len(total))


def online_contrastive(first: Tensor, second: Tensor, similar: Tensor, *, margin: float) -> Tensor:
    """Contrastive loss (Hadsell, Chopra and LeCun 2006) over the hard pairs of a batch only, as in sentence-transformers.

    With d = 1 - cosine: d^2 for every similar pair that is farther than the closest dissimilar pair, max(0, margin - d)^2 for
    every dissimilar pair that is closer than the farthest similar pair; the sum, divided by the number of all pairs, so that
    its size does not grow with the batch. (sentence-transformers' OnlineContrastiveLoss is the sum.)

    first, second: (n, dim), floats of one dtype, unit rows; row i of both is a pair.
    similar: (n,) bool. margin: in (0, 2], the cosine distance beyond which a dissimilar pair is far enough; usual is 0.5.
    Gives a scalar. What is hard is decided between similar and dissimilar pairs, so a batch without one of them gives 0 with a
    zero gradient (sentence-transformers compares with the mean there), and so does one that the pairs separate strictly.
    """
    distances = 1 - (first * second).sum(dim=1)  # (n,)
    near, far = distances[similar], distances[~similar]
    if len(near) == 0 or len(far) == 0:
        return distances.sum() * 0
    hard_near = near[near > far.min()]
    hard_far = far[far < near.max()]
    return (hard_near.square().sum() + (margin - hard_far).clamp(min=0).square().sum()) / len(distances)
