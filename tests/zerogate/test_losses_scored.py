"""CoSENT and the regression of cosines, against loops over pairs."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from zerogate.losses.scored import cosent, cosine_regression


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def exact_batch(size: int, *, seed: int) -> Tensor:
    """Rows out of 16 unit vectors, so that many pairs of them have the same cosine."""
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=4)), dtype=torch.float64)
    return corners[torch.randint(16, (size,), generator=torch.Generator().manual_seed(seed))]


def graded(size: int, *, steps: int, seed: int) -> Tensor:
    """Scores in [0, 1], many of them equal."""
    return torch.randint(steps + 1, (size,), generator=torch.Generator().manual_seed(seed)) / steps


def pairs_with(cosines: list[float]) -> tuple[Tensor, Tensor]:
    wanted = torch.tensor(cosines, dtype=torch.float64)
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(cosines), 1)
    return first, torch.stack((wanted, (1 - wanted.square()).sqrt()), dim=1)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("exact", [False, True])
def test_cosent_compares_every_two_pairs_with_different_scores(seed: int, scale: float, exact: bool) -> None:
    size = 1 + 3 * seed
    first = exact_batch(size, seed=seed) if exact else unit_batch(size, 4, seed=seed)
    second = exact_batch(size, seed=seed + 9) if exact else unit_batch(size, 4, seed=seed + 9)
    scores = graded(size, steps=4, seed=seed)

    total = 1.0
    cosines = [cosine(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    for i in range(size):
        for j in range(size):
            if scores[i] < scores[j]:
                total += math.exp(scale * (cosines[i] - cosines[j]))

    assert cosent(first, second, scores, scale=scale).item() == pytest.approx(math.log(total), rel=1e-9, abs=1e-15)


def test_cosent_sees_the_order_of_the_scores_alone() -> None:
    first, second, scores = unit_batch(20, 4, seed=1), unit_batch(20, 4, seed=2), graded(20, steps=5, seed=3)

    assert torch.equal(cosent(first, second, scores, scale=20), cosent(first, second, 100 * scores.exp() - 7, scale=20))
    assert torch.equal(
        cosent(first, second, scores, scale=20), cosent(first, second, (5 * scores).round().to(torch.int64), scale=20)
    )


def test_cosent_falls_as_the_cosines_come_into_the_order_of_the_scores() -> None:
    scores = torch.tensor([0.0, 0.5, 1.0])

    losses = [
        cosent(*pairs_with(cosines), scores, scale=20).item()
        for cosines in ([0.9, 0.5, 0.1], [0.5, 0.9, 0.1], [0.5, 0.1, 0.9], [0.1, 0.5, 0.9], [-0.9, 0.0, 0.9])
    ]

    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(16, abs=1e-3)
    assert losses[-1] < 1e-6


def test_cosent_asks_nothing_of_pairs_with_one_score() -> None:
    first, second = unit_batch(9, 4, seed=1).requires_grad_(), unit_batch(9, 4, seed=2)

    loss = cosent(first, second, torch.full((9,), 0.6), scale=20)
    loss.backward()

    assert loss.item() == 0
    assert first.grad is not None
    assert first.grad.count_nonzero() == 0


def test_a_steep_cosent_of_opposite_pairs_stays_finite_in_float32() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

    loss = cosent(first, second, torch.tensor([0.0, 1.0]), scale=1000.0)
    loss.backward()

    assert loss.item() == 2000
    assert first.grad is not None
    assert first.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 17])
def test_regression_is_the_mean_squared_difference_of_cosine_and_score(size: int) -> None:
    first, second, scores = unit_batch(size, 4, seed=1), unit_batch(size, 4, seed=2), graded(size, steps=7, seed=3)

    expected = 0.0
    for a, b, score in zip(first.tolist(), second.tolist(), scores.tolist(), strict=True):
        expected += (cosine(a, b) - score) ** 2 / size

    assert cosine_regression(first, second, scores).item() == pytest.approx(expected, rel=1e-9)
    trusted = torch.nn.functional.mse_loss(torch.nn.functional.cosine_similarity(first, second), scores.double())
    assert cosine_regression(first, second, scores).item() == pytest.approx(trusted.item(), rel=1e-9)


def test_a_score_of_one_asks_for_equal_directions_and_zero_for_a_right_angle() -> None:
    first, second = pairs_with([1.0, 0.0, 0.25])

    assert cosine_regression(first, second, torch.tensor([1.0, 0.0, 0.25])).item() == pytest.approx(0, abs=1e-15)
    assert cosine_regression(first, second, torch.tensor([0.0, 0.0, 0.25])).item() == pytest.approx(1 / 3)
    assert cosine_regression(*pairs_with([-0.5]), torch.tensor([0.0])).item() == pytest.approx(0.25)
