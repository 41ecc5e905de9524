"""The loss over given triplets, against a loop over them."""

import pytest
import torch
from torch import Tensor

from zerogate.losses.triplet import triplet


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def distance(a: Tensor, b: Tensor) -> float:
    return 1.0 - sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("margin", [0.1, 0.7])
def test_it_is_the_mean_over_the_negatives_that_are_there(seed: int, margin: float) -> None:
    size, many = 2 + 2 * seed, 1 + seed % 3
    anchors, positives = unit(drawn(size, 5, seed=seed)), unit(drawn(size, 5, seed=seed + 10))
    negatives = unit(drawn(size, many, 5, seed=seed + 20))
    present = drawn(size, many, seed=seed + 30) > -0.3

    found = triplet(anchors, positives, negatives, margin=margin, present=present)

    losses = []
    for i in range(size):
        for j in range(many):
            if present[i, j]:
                losses.append(max(0.0, distance(anchors[i], positives[i]) - distance(anchors[i], negatives[i, j]) + margin))
    assert 0 < len(losses) < size * many
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_with_one_negative_each_it_is_torchs_triplet_loss_with_the_cosine_distance() -> None:
    anchors, positives, negatives = (unit(drawn(30, 6, seed=seed)) for seed in (1, 2, 3))

    trusted = torch.nn.functional.triplet_margin_with_distance_loss(
        anchors,
        positives,
        negatives,
        distance_function=lambda a, b: 1 - torch.nn.functional.cosine_similarity(a, b),
        margin=0.3,
    )

    assert triplet(anchors, positives, negatives[:, None], margin=0.3).item() == pytest.approx(trusted.item(), rel=1e-12)


def test_what_stands_where_a_negative_is_missing_changes_nothing() -> None:
    anchors, positives = unit(drawn(4, 5, seed=1)), unit(drawn(4, 5, seed=2))
    present = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
    results = []
    for padding in (0.0, 1e6):
        negatives = unit(drawn(4, 2, 5, seed=3)).masked_fill(~present[:, :, None], padding).requires_grad_()
        loss = triplet(anchors, positives, negatives, margin=1.5, present=present)
        loss.backward()
        assert negatives.grad is not None
        assert torch.equal(negatives.grad.abs().sum(dim=2) > 0, present)
        results.append(loss.item())

    assert results[0] == results[1] > 0


def test_a_negative_beyond_the_margin_costs_nothing_and_the_loss_grows_as_it_comes_closer() -> None:
    angles = torch.tensor([1.5, 1.2, 0.9, 0.6, 0.3], dtype=torch.float64)
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    positive = torch.stack((torch.cos(angles[3:4]), -torch.sin(angles[3:4])), dim=1)

    losses = []
    for angle in angles:
        negative = torch.stack((angle.cos(), angle.sin()))[None, None]
        losses.append(triplet(anchor, positive, negative, margin=0.3).item())

    assert losses[:3] == [0, 0, pytest.approx(0.3 - (angles[3].cos() - angles[2].cos()).item())]
    assert losses[2] < losses[3] < losses[4]
    assert losses[3] == pytest.approx(0.3)
