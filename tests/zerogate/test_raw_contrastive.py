"""The contrastive loss of raw rows is that of their unit rows, and so is its gradient, which is written by hand."""

import pytest
import torch
from torch import Tensor

from zerogate.losses.contrastive import contrastive, same_pairs
from zerogate.losses.raw_contrastive import raw_contrastive


def rows(count: int, dim: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of lengths from 0.1 to 10."""
    draw = torch.Generator().manual_seed(seed)
    lengths = 10 ** (2 * torch.rand(count, 1, generator=draw) - 1)
    return (torch.nn.functional.normalize(torch.randn(count, dim, generator=draw), dim=1) * lengths).to(dtype)


def twin(anchors: Tensor, positives: Tensor, *, temperature: float, same: Tensor | None) -> Tensor:
    one, other = (torch.nn.functional.normalize(side.double(), dim=1) for side in (anchors, positives))
    return contrastive(one, other, temperature=temperature, same=same)


def gradients(loss: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, sides)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.02, 0.001])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("count", "dim"), [(1, 4), (2, 3), (37, 16), (64, 24)])
def test_loss_and_gradient_are_autograd_s_of_the_unit_rows(temperature: float, shared: bool, count: int, dim: int) -> None:
    anchors, positives = (rows(count, dim, seed=seed).requires_grad_() for seed in (1, 2))
    ids = torch.arange(count) // 3
    same = same_pairs(ids, torch.arange(count)) if shared else None

    found = raw_contrastive(anchors, positives, temperature=temperature, same=same)
    wanted = twin(anchors, positives, temperature=temperature, same=same)

    torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=2e-5)
    for one, other in zip(gradients(3 * found, anchors, positives), gradients(3 * wanted, anchors, positives), strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * largest + 1e-6)


def test_in_bfloat16_the_gradient_keeps_its_direction() -> None:
    anchors, positives = (rows(200, 64, seed=seed, dtype=torch.bfloat16).requires_grad_() for seed in (1, 2))

    found = raw_contrastive(anchors, positives, temperature=0.05)
    wanted = twin(anchors, positives, temperature=0.05, same=None)

    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=5e-3)
    for one, other in zip(gradients(found, anchors, positives), gradients(wanted, anchors, positives), strict=True):
        assert one.dtype == torch.bfloat16
        assert float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1).min()) > 0.99


def test_a_side_that_needs_no_gradient_gets_none_and_the_other_s_is_the_same() -> None:
    anchors, positives = rows(20, 8, seed=1).requires_grad_(), rows(20, 8, seed=2)

    (alone,) = gradients(raw_contrastive(anchors, positives, temperature=0.1), anchors)
    beside, _ = gradients(raw_contrastive(anchors, positives.requires_grad_(), temperature=0.1), anchors, positives)

    assert torch.equal(alone, beside)


def test_the_length_of_a_row_changes_nothing_and_gets_no_gradient() -> None:
    anchors, positives = rows(20, 8, seed=1).requires_grad_(), rows(20, 8, seed=2)

    loss = raw_contrastive(anchors, positives, temperature=0.1)
    (slope,) = gradients(loss, anchors)

    assert float(raw_contrastive(7 * anchors, positives, temperature=0.1).detach()) == pytest.approx(
        float(loss.detach()), rel=1e-5
    )
    along = torch.nn.functional.cosine_similarity(slope, anchors.detach(), dim=1)
    assert float(along.abs().max()) < 1e-4


def test_a_row_of_zeros_has_finite_numbers() -> None:
    anchors = rows(6, 4, seed=1)
    anchors[2] = 0
    anchors.requires_grad_()

    loss = raw_contrastive(anchors, rows(6, 4, seed=2), temperature=0.1)

    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradients(loss, anchors)[0]).all())
