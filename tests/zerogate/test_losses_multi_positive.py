"""The contrastive loss with several positives per anchor, against loops over anchors and candidates."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, same_pairs


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


def naive_multi_positive(
    anchors: list[list[float]],
    candidates: list[list[float]],
    positive: list[list[bool]],
    temperature: float,
    ignored: list[list[bool]],
) -> float:
    losses = []
    for anchor, positives, out in zip(anchors, positive, ignored, strict=True):
        scores = [math.exp(dot(anchor, candidate) / temperature) for candidate in candidates]
        wanted = [k for k in range(len(candidates)) if positives[k] and not out[k]]
        others = [k for k in range(len(candidates)) if not positives[k] and not out[k]]
        if wanted and others:
            total = sum(scores[k] for k in wanted + others)
            losses.append(sum(-math.log(scores[k] / total) for k in wanted) / len(wanted))
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_with_many_positives_it_is_the_mean_over_them_of_their_share_of_all_candidates(seed: int, temperature: float) -> None:
    size, many = 3 + 2 * seed, 5 + seed
    anchors = exact_batch(size, seed=seed) if seed % 2 else unit_batch(size, 4, seed=seed)
    candidates = exact_batch(many, seed=seed + 9) if seed % 2 else unit_batch(many, 4, seed=seed + 9)
    positive, ignored = bits(size, many, share=0.3, seed=seed), bits(size, many, share=0.3, seed=seed + 50)
    positive[0], ignored[1] = False, True  # an anchor with no positive, and one with no candidate

    found = multi_positive_contrastive(anchors, candidates, positive, temperature=temperature, ignored=ignored)

    expected = naive_multi_positive(anchors.tolist(), candidates.tolist(), positive.tolist(), temperature, ignored.tolist())
    assert expected > 0
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_with_one_positive_each_it_is_one_direction_of_the_contrastive_loss() -> None:
    anchors, positives = unit_batch(12, 6, seed=1), unit_batch(12, 6, seed=2)
    same = same_pairs(ids(12, 9, seed=3), ids(12, 9, seed=4))
    own = torch.eye(12, dtype=torch.bool)

    forward = multi_positive_contrastive(anchors, positives, own, temperature=0.1, ignored=same)
    backward = multi_positive_contrastive(positives, anchors, own, temperature=0.1, ignored=same.T)

    both = contrastive(anchors, positives, temperature=0.1, same=same)
    assert ((forward + backward) / 2).item() == pytest.approx(both.item(), rel=1e-12)


def test_an_anchor_without_positive_or_without_negative_changes_nothing() -> None:
    anchors, candidates = unit_batch(5, 6, seed=1).requires_grad_(), unit_batch(7, 6, seed=2)
    positive = bits(5, 7, share=0.4, seed=3)
    positive[1], positive[3] = False, True
    rest = [0, 2, 4]

    found = multi_positive_contrastive(anchors, candidates, positive, temperature=0.1)
    found.backward()

    assert found.item() == pytest.approx(
        multi_positive_contrastive(anchors[rest], candidates, positive[rest], temperature=0.1).item(), rel=1e-12
    )
    assert anchors.grad is not None
    assert torch.equal(anchors.grad.abs().sum(dim=1) > 0, torch.tensor([True, False, True, False, True]))


def test_the_least_possible_loss_is_the_logarithm_of_the_number_of_positives() -> None:
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    candidates = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]], dtype=torch.float64)
    positive = torch.tensor([[True, True, True, False]])

    assert multi_positive_contrastive(anchor, candidates, positive, temperature=0.02).item() == pytest.approx(math.log(3))


def test_masks_are_left_as_they_were() -> None:
    positive, ignored = bits(6, 6, share=0.4, seed=1), bits(6, 6, share=0.4, seed=2)
    before = positive.clone(), ignored.clone()

    rows = unit_batch(6, 4, seed=3)
    multi_positive_contrastive(rows, rows, positive, temperature=0.1, ignored=ignored)

    assert torch.equal(positive, before[0])
    assert torch.equal(ignored, before[1])
