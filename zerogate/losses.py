"""Losses over batches of unit vectors."""

import torch
from torch import Tensor


def contrastive(anchors: Tensor, positives: Tensor, *, temperature: float, same: Tensor | None = None) -> Tensor:
    """Symmetric in-batch contrastive loss (InfoNCE; van den Oord et al. 2018, symmetric as in CLIP, Radford et al. 2021).

    Row i of `anchors` belongs to row i of `positives`; all other rows of the batch are its negatives, in both directions.

    anchors, positives: (n, dim), unit rows.
    temperature: divides the similarities, > 0; smaller means that only the hardest negatives count.
    same: (n, n) bool, true where row i and row j must not be each other's negatives (`same_pairs`).
    Gives the mean over the batch and both directions, a scalar.
    """
    similarities = anchors @ positives.T / temperature  # (n, n)
    if same is not None:
        similarities = similarities.masked_fill(same, float("-inf"))
    target = torch.arange(len(anchors), device=anchors.device)
    forward = torch.nn.functional.cross_entropy(similarities, target)
    backward = torch.nn.functional.cross_entropy(similarities.T, target)
    return (forward + backward) / 2


def same_pairs(anchor_ids: Tensor, positive_ids: Tensor) -> Tensor:
    """The pairs of a batch that are no negatives of each other: they share their anchor's or their positive's text.

    anchor_ids, positive_ids: (n,) integers, equal where the texts are. Gives (n, n) bool, false on the diagonal.
    """
    same = (anchor_ids[:, None] == anchor_ids[None, :]) | (positive_ids[:, None] == positive_ids[None, :])
    return same.fill_diagonal_(fill_value=False)
