"""The losses over labelled rows, against loops over anchors."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from zerogate.losses.groups import circle, supervised_contrastive


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def exact_batch(size: int, *, seed: int) -> Tensor:
    """Rows out of 16 unit vectors, so that many are equal."""
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=4)), dtype=torch.float64)
    return corners[torch.randint(16, (size,), generator=torch.Generator().manual_seed(seed))]


def groups(size: int, distinct: int, *, seed: int) -> Tensor:
    return torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def within_and_between(rows: list[list[float]], labels: list[int]) -> list[tuple[list[float], list[float]]]:
    """For each anchor that has both: its cosines to the other rows of its label, and to the rows of other labels."""
    anchors = []
    for i in range(len(rows)):
        within = [cosine(rows[i], rows[j]) for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        between = [cosine(rows[i], rows[j]) for j in range(len(rows)) if labels[j] != labels[i]]
        if within and between:
            anchors.append((within, between))
    return anchors


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("exact", [False, True])
def test_supervised_contrastive_is_the_mean_over_positives_outside_the_logarithm(
    seed: int, temperature: float, exact: bool
) -> None:
    size = 4 + 3 * seed
    rows = exact_batch(size, seed=seed) if exact else unit_batch(size, 5, seed=seed)
    labels = groups(size, 2 + seed // 2, seed=seed)

    losses = []
    for within, between in within_and_between(rows.tolist(), labels.tolist()):
        total = sum(math.exp(s / temperature) for s in within + between)
        losses.append(sum(-math.log(math.exp(s / temperature) / total) for s in within) / len(within))

    assert losses
    assert supervised_contrastive(rows, labels, temperature=temperature).item() == pytest.approx(
        sum(losses) / len(losses), rel=1e-9
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("margin", "scale"), [(0.25, 4.0), (0.4, 80.0), (0.0, 10.0)])
@pytest.mark.parametrize("exact", [False, True])
def test_circle_weighs_every_similarity_by_its_distance_from_the_optimum(
    seed: int, margin: float, scale: float, exact: bool
) -> None:
    size = 4 + 3 * seed
    rows = exact_batch(size, seed=seed) if exact else unit_batch(size, 5, seed=seed)
    labels = groups(size, 2 + seed // 2, seed=seed)

    losses = []
    for within, between in within_and_between(rows.tolist(), labels.tolist()):
        pull = sum(math.exp(-scale * max(0.0, 1 + margin - s) * (s - (1 - margin))) for s in within)
        push = sum(math.exp(scale * max(0.0, s + margin) * (s - margin)) for s in between)
        losses.append(math.log(1 + pull * push))

    assert losses
    assert circle(rows, labels, margin=margin, scale=scale).item() == pytest.approx(sum(losses) / len(losses), rel=1e-8)


def test_the_gradient_of_circle_holds_the_weights_constant() -> None:
    margin, scale, size = 0.25, 4.0, 8
    rows, labels = unit_batch(size, 4, seed=1).requires_grad_(), groups(size, 3, seed=2)
    fixed = (rows @ rows.T).detach()

    def with_fixed_weights(moving: Tensor) -> Tensor:
        similarities, losses = moving @ moving.T, []
        for i in range(size):
            pull = push = torch.zeros((), dtype=torch.float64)
            for j in range(size):
                s, weight = similarities[i, j], fixed[i, j]
                if j != i and labels[j] == labels[i]:
                    pull = pull + torch.exp(-scale * (1 + margin - weight).clamp(min=0) * (s - 1 + margin))
                elif labels[j] != labels[i]:
                    push = push + torch.exp(scale * (weight + margin).clamp(min=0) * (s - margin))
            if pull > 0 and push > 0:
                losses.append(torch.log(1 + pull * push))
        return torch.stack(losses).mean()

    (found,) = torch.autograd.grad(circle(rows, labels, margin=margin, scale=scale), rows)

    for i, j in ((0, 0), (3, 1), (7, 3)):
        step = torch.zeros_like(rows)
        step[i, j] = 1e-6
        slope = (with_fixed_weights(rows.detach() + step) - with_fixed_weights(rows.detach() - step)) / 2e-6
        assert found[i, j].item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_a_group_of_its_own_is_a_negative_of_the_others(seed: int) -> None:
    rows = unit_batch(7, 4, seed=seed)
    alone = torch.tensor([0, 0, 0, 1, 1, 1, 2])

    for loss in (lambda r, y: supervised_contrastive(r, y, temperature=0.2), lambda r, y: circle(r, y, margin=0.25, scale=4.0)):
        far = torch.cat((rows[:6], -rows[:1]))
        near = torch.cat((rows[:6], rows[:1]))
        assert loss(near, alone) > loss(far, alone)


def test_both_fall_as_groups_draw_together_and_apart() -> None:
    centres = torch.eye(3, 6, dtype=torch.float64).repeat_interleave(4, dim=0)
    labels = torch.arange(3).repeat_interleave(4)
    noise = unit_batch(12, 6, seed=1)

    def at(share: float) -> Tensor:
        return torch.nn.functional.normalize(share * noise + (1 - share) * centres, dim=1)

    for loss in (
        lambda r: supervised_contrastive(r, labels, temperature=0.1),
        lambda r: circle(r, labels, margin=0.25, scale=32),
    ):
        losses = [loss(at(share)).item() for share in (1.0, 0.75, 0.5, 0.25, 0.0)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > losses[-1] + 1


def test_perfect_groups_leave_supervised_contrastive_its_least_value_and_circle_nothing() -> None:
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)
    labels = torch.arange(3).repeat_interleave(4)

    assert supervised_contrastive(rows, labels, temperature=0.02).item() == pytest.approx(math.log(3))
    assert circle(rows, labels, margin=0.25, scale=256.0).item() < 1e-9
