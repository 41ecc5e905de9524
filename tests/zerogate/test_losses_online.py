"""The online contrastive loss over similar and dissimilar pairs, against loops over pairs of pairs."""

from itertools import product

import pytest
import torch
from torch import Tensor

from zerogate.losses.contrastive import online_contrastive


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def ids(size: int, distinct: int, *, seed: int) -> Tensor:
    return torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed))


def exact_batch(size: int, *, seed: int) -> Tensor:
    """Rows out of 16 unit vectors: many are equal, and all cosines are exact, so that ties are ties in any order of adding."""
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=4)), dtype=torch.float64)
    return corners[ids(size, 16, seed=seed)]


def bits(*shape: int, share: float, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_online(first: list[list[float]], second: list[list[float]], similar: list[bool], margin: float) -> float:
    distances = [1 - dot(a, b) for a, b in zip(first, second, strict=True)]
    near = [d for d, alike in zip(distances, similar, strict=True) if alike]
    far = [d for d, alike in zip(distances, similar, strict=True) if not alike]
    if not near or not far:
        return 0.0
    total = 0.0
    for d in near:
        if any(d > other for other in far):
            total += d**2
    for d in far:
        if any(d < other for other in near):
            total += max(0.0, margin - d) ** 2
    return total / len(distances)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("margin", [0.3, 0.9])
def test_only_pairs_that_a_pair_of_the_other_kind_contradicts_count(seed: int, margin: float) -> None:
    size = 2 + 3 * seed
    first = exact_batch(size, seed=seed) if seed % 2 else unit_batch(size, 4, seed=seed)
    second = exact_batch(size, seed=seed + 9) if seed % 2 else unit_batch(size, 4, seed=seed + 9)
    similar = bits(size, share=0.5, seed=seed)

    found = online_contrastive(first, second, similar, margin=margin)

    assert found.item() == pytest.approx(naive_online(first.tolist(), second.tolist(), similar.tolist(), margin), rel=1e-9)


def pairs_at(*distances: float) -> tuple[Tensor, Tensor]:
    """Pairs of unit vectors with these cosine distances."""
    cosines = 1 - torch.tensor(distances, dtype=torch.float64)
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(distances), 1)
    return first, torch.stack((cosines, (1 - cosines.square()).sqrt()), dim=1)


def test_pairs_that_stand_in_the_right_order_cost_nothing_however_near_they_are() -> None:
    first, second = pairs_at(0.1, 0.2, 0.3, 0.31)

    assert online_contrastive(first, second, torch.tensor([True, True, False, False]), margin=0.9).item() == 0


def test_the_easy_pairs_of_a_batch_get_no_gradient() -> None:
    first, second = pairs_at(0.1, 0.6, 0.4, 1.2)
    second.requires_grad_()

    loss = online_contrastive(first, second, torch.tensor([True, True, False, False]), margin=0.9)
    loss.backward()

    assert loss.item() == pytest.approx((0.6**2 + 0.5**2) / 4)  # the far similar one and the near dissimilar one
    assert second.grad is not None
    assert torch.equal(second.grad.abs().sum(dim=1) > 0, torch.tensor([False, True, True, False]))


def test_equal_distances_contradict_nothing() -> None:
    first, second = pairs_at(0.5, 0.5)

    assert online_contrastive(first, second, torch.tensor([True, False]), margin=0.9).item() == 0


def test_the_online_loss_rises_as_a_similar_pair_moves_apart() -> None:
    def loss(distance: float) -> float:
        first, second = pairs_at(distance, 0.4)
        return online_contrastive(first, second, torch.tensor([True, False]), margin=0.6).item()

    assert 0 == loss(0.2) < loss(0.5) < loss(0.7) < loss(1.5)
