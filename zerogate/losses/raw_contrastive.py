"""The symmetric in-batch contrastive loss of raw outputs: `contrastive` of their unit rows, in three products and few passes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# As torch.nn.functional.normalize has it.
_SHORTEST = 1e-12


def raw_contrastive(anchors: Tensor, positives: Tensor, *, temperature: float, same: Tensor | None = None) -> Tensor:
    """`contrastive` of the rows of anchors and positives, each divided by its length.

    anchors, positives: (n, dim), floats of one dtype, rows of any length.
    temperature, same: as in `contrastive`.
    Gives a scalar float32. It is written out by hand because the steps between the products cost more than the products: rows
    are never normalised, their lengths go into the (n, n) similarities; softmaxes are float32, the products of the rows' dtype.
    """
    found: Tensor = _RawContrastive.apply(anchors, positives, temperature, same)  # type: ignore[no-untyped-call]
    return found


class _RawContrastive(torch.autograd.Function):
    """With a and p the raw rows, r and c the inverses of their lengths, and t the temperature:

    s[i, j] = (a[i] . p[j]) r[i] c[j] / t                      the similarities
    loss    = -mean over i of (log softmax of row i at i + log softmax of column i at i) / 2
    g       = d loss / d s = (softmax of rows + softmax of columns - 2 I) / 2n
    d a[i]  = sum over j of g[i, j] r[i] c[j] / t p[j]  -  a[i] r[i]^2 (sum over j of g[i, j] s[i, j])

    and d p alike: the second term is the part along the row, which its length takes away.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, positives: Tensor, temperature: float, same: Tensor | None) -> Tensor:
        first, second = (
            1 / torch.linalg.vector_norm(side, dim=1, dtype=torch.float32).clamp_(min=_SHORTEST) for side in (anchors, positives)
        )  # r, c: (n,)
        similarities = (anchors @ positives.T).float().mul_(first[:, None] / temperature).mul_(second)  # (n, n)
        if same is not None:  # not infinity: the sum of g * s would be no number
            similarities.masked_fill_(same, torch.finfo(torch.float32).min)
        rows, columns = (torch.log_softmax(similarities, dim=dim) for dim in (1, 0))  # (n, n)
        loss = -(rows.diagonal().mean() + columns.diagonal().mean()) / 2
        slope = rows.exp_().add_(columns.exp_())  # 2n g, (n, n)
        slope.diagonal().sub_(2)
        ctx.temperature = temperature
        ctx.save_for_backward(anchors, positives, first, second, similarities, slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        anchors, positives, first, second, similarities, slope = ctx.saved_tensors
        scale = above / (2 * len(anchors))
        along = similarities * slope  # (n, n)
        weights = slope.mul((scale * first / ctx.temperature)[:, None]).mul_(second).to(anchors.dtype)  # (n, n)
        found: list[Tensor | None] = [None, None]
        for place, (own, other, inverse, products) in enumerate(
            ((anchors, positives, first, weights), (positives, anchors, second, weights.T))
        ):
            if ctx.needs_input_grad[place]:
                shares = (along.sum(dim=1 - place) * inverse.square() * scale).to(own.dtype)  # (n,)
                found[place] = (products @ other).addcmul_(own, shares[:, None], value=-1)
        return found[0], found[1], None, None
