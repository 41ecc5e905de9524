"""What labels say about the pairs of a batch. Shared by the losses that take labels."""

import torch
from torch import Tensor


def positives_and_negatives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (row, other row) of one label and of two labels, each (n, n) bool; a row is no positive of itself.

    labels: (n,) integers, equal where two rows belong to the same group.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same
