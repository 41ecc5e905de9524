"""The contrastive loss and its mask, against loops over pairs of rows."""

import math

import pytest
import torch
from torch import Tensor

from zerogate.losses.contrastive import contrastive, same_pairs


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def ids(size: int, distinct: int, *, seed: int) -> Tensor:
    return torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed))


def naive_same_pairs(anchor_ids: list[int], positive_ids: list[int]) -> list[list[bool]]:
    size = len(anchor_ids)
    same = [[False] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            if i != j and (anchor_ids[i] == anchor_ids[j] or positive_ids[i] == positive_ids[j]):
                same[i][j] = True
    return same


def naive_contrastive(
    anchors: list[list[float]],
    positives: list[list[float]],
    temperature: float,
    same: list[list[bool]],
    negatives: list[list[list[float]]] | None = None,
    present: list[list[bool]] | None = None,
) -> float:
    size = len(anchors)

    def score(one: list[float], other: list[float]) -> float:
        return math.exp(sum(a * p for a, p in zip(one, other, strict=True)) / temperature)

    total = 0.0
    for i in range(size):
        own = score(anchors[i], positives[i])
        documents = [score(anchors[i], positives[j]) for j in range(size) if not same[i][j]]
        queries = [score(anchors[j], positives[i]) for j in range(size) if not same[j][i]]
        if negatives:
            documents += [score(anchors[i], one) for k, one in enumerate(negatives[i]) if present is None or present[i][k]]
        total += math.log(sum(documents) / own) + math.log(sum(queries) / own)
    return total / (2 * size)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_the_loss_is_the_mean_over_rows_and_directions_without_the_masked_entries(seed: int, temperature: float) -> None:
    size = 5 + 3 * seed
    anchors, positives = unit_batch(size, 6, seed=seed), unit_batch(size, 6, seed=seed + 100)
    anchor_ids, positive_ids = ids(size, size // 2 + 1, seed=seed), ids(size, size // 2 + 1, seed=seed + 1)

    found = contrastive(anchors, positives, temperature=temperature, same=same_pairs(anchor_ids, positive_ids))

    same = naive_same_pairs(anchor_ids.tolist(), positive_ids.tolist())
    assert any(any(row) for row in same)
    assert found.item() == pytest.approx(naive_contrastive(anchors.tolist(), positives.tolist(), temperature, same), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_share_a_text_are_no_negatives_of_each_other(seed: int) -> None:
    anchor_ids, positive_ids = ids(12, 6, seed=seed), ids(12, 5, seed=seed + 50)

    assert same_pairs(anchor_ids, positive_ids).tolist() == naive_same_pairs(anchor_ids.tolist(), positive_ids.tolist())


def test_without_a_mask_it_is_the_cross_entropy_in_both_directions() -> None:
    anchors, positives = unit_batch(20, 8, seed=1), unit_batch(20, 8, seed=2)
    own = torch.arange(20)

    found = contrastive(anchors, positives, temperature=0.05)

    forward = torch.nn.functional.cross_entropy(anchors @ positives.T / 0.05, own)
    backward = torch.nn.functional.cross_entropy(positives @ anchors.T / 0.05, own)
    assert found.item() == pytest.approx(((forward + backward) / 2).item(), rel=1e-12)


def test_distinct_texts_make_a_mask_that_changes_nothing() -> None:
    anchors, positives = unit_batch(10, 8, seed=1), unit_batch(10, 8, seed=2)
    same = same_pairs(torch.arange(10), torch.arange(10) + 50)

    assert contrastive(anchors, positives, temperature=0.1, same=same) == contrastive(anchors, positives, temperature=0.1)


def test_the_loss_falls_when_a_positive_moves_closer() -> None:
    directions = torch.eye(10, dtype=torch.float64)
    anchors = directions[:5]

    losses = []
    for angle in (1.4, 1.0, 0.6, 0.2, 0.0):
        positives = anchors.clone()
        positives[2] = math.cos(angle) * anchors[2] + math.sin(angle) * directions[7]  # nearer to its anchor, to nothing else
        losses.append(contrastive(anchors, positives, temperature=0.1).item())

    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 0.1


def test_the_loss_grows_when_a_negative_moves_closer() -> None:
    directions = torch.eye(10, dtype=torch.float64)
    anchors = directions[:5]

    def loss(angle: float) -> float:
        positives = anchors.clone()
        positives[0] = math.cos(angle) * anchors[0] + math.sin(angle) * anchors[1]
        return contrastive(anchors, positives, temperature=0.1).item()

    assert loss(0.0) < loss(0.3) < loss(0.6) < loss(0.9)


def test_the_order_of_the_batch_does_not_matter() -> None:
    anchors, positives = unit_batch(16, 6, seed=3), unit_batch(16, 6, seed=4)
    anchor_ids, positive_ids = ids(16, 8, seed=5), ids(16, 8, seed=6)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(7))

    before = contrastive(anchors, positives, temperature=0.05, same=same_pairs(anchor_ids, positive_ids))
    after = contrastive(
        anchors[order], positives[order], temperature=0.05, same=same_pairs(anchor_ids[order], positive_ids[order])
    )

    assert after.item() == pytest.approx(before.item(), rel=1e-12)


def test_anchors_and_positives_are_treated_alike() -> None:
    anchors, positives = unit_batch(16, 6, seed=3), unit_batch(16, 6, seed=4)

    assert contrastive(anchors, positives, temperature=0.1).item() == pytest.approx(
        contrastive(positives, anchors, temperature=0.1).item(), rel=1e-12
    )


def test_a_batch_whose_positives_are_all_the_same_text_has_nothing_to_lose() -> None:
    anchors = unit_batch(9, 6, seed=1)
    positives = unit_batch(1, 6, seed=2).expand(9, 6)
    same = same_pairs(torch.arange(9), torch.zeros(9, dtype=torch.int64))

    assert contrastive(anchors, positives, temperature=0.05, same=same).item() == 0
    assert contrastive(anchors, positives, temperature=0.05).item() >= math.log(9)


def test_the_gradient_is_that_of_finite_differences() -> None:
    anchors, positives = (unit_batch(7, 4, seed=seed).requires_grad_() for seed in (1, 2))
    same = same_pairs(ids(7, 4, seed=3), ids(7, 4, seed=4))

    assert torch.autograd.gradcheck(lambda a, p: contrastive(a, p, temperature=0.2, same=same), (anchors, positives))


def test_a_masked_row_pulls_at_nothing() -> None:
    anchors, positives = unit_batch(6, 4, seed=1), unit_batch(6, 4, seed=2).requires_grad_()
    same = same_pairs(torch.zeros(6, dtype=torch.int64), torch.arange(6))  # one anchor: no negatives at all

    contrastive(anchors, positives, temperature=0.1, same=same).backward()

    assert positives.grad is not None
    assert float(positives.grad.abs().max()) == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("some_missing", [False, True])
def test_given_negatives_are_further_candidates_of_their_own_anchor(seed: int, temperature: float, some_missing: bool) -> None:
    size, many = 4 + 2 * seed, 1 + seed % 3
    anchors, positives = unit_batch(size, 6, seed=seed), unit_batch(size, 6, seed=seed + 100)
    negatives = unit_batch(size * many, 6, seed=seed + 200).reshape(size, many, 6)
    present = torch.rand(size, many, generator=torch.Generator().manual_seed(seed)) < 0.6 if some_missing else None
    same = same_pairs(ids(size, size // 2 + 1, seed=seed), ids(size, size, seed=seed + 1))

    found = contrastive(anchors, positives, temperature=temperature, same=same, negatives=negatives, present=present)

    there = None if present is None else present.tolist()
    wanted = naive_contrastive(anchors.tolist(), positives.tolist(), temperature, same.tolist(), negatives.tolist(), there)
    assert found.item() == pytest.approx(wanted, rel=1e-9)
    assert found > contrastive(anchors, positives, temperature=temperature, same=same)


def test_missing_negatives_change_neither_the_loss_nor_a_gradient_whatever_numbers_stand_there() -> None:
    anchors, positives = unit_batch(5, 4, seed=1).requires_grad_(), unit_batch(5, 4, seed=2)
    drawn = unit_batch(15, 4, seed=3).reshape(5, 3, 4)
    present = torch.tensor([[True, False, True]] * 4 + [[False] * 3])
    filled = [torch.where(present[:, :, None], drawn, filler).requires_grad_() for filler in (0.0, 1e6)]

    losses = [contrastive(anchors, positives, temperature=0.1, negatives=some, present=present) for some in filled]
    of_anchors = [torch.autograd.grad(loss, anchors, retain_graph=True)[0] for loss in losses]
    of_negatives = [torch.autograd.grad(loss, some)[0] for loss, some in zip(losses, filled, strict=True)]

    assert losses[0].item() == losses[1].item()
    assert torch.equal(*of_anchors)
    assert not of_negatives[1][~present].any()
    assert bool(of_negatives[1][present].any(dim=-1).all())


def test_negatives_that_are_all_missing_are_as_good_as_none() -> None:
    anchors, positives = unit_batch(6, 4, seed=1), unit_batch(6, 4, seed=2)
    nothing = torch.zeros(6, 2, dtype=torch.bool)

    without = contrastive(anchors, positives, temperature=0.1)

    assert (
        contrastive(anchors, positives, temperature=0.1, negatives=positives[:, None].expand(6, 2, 4), present=nothing) == without
    )
    assert contrastive(anchors, positives, temperature=0.1, negatives=torch.empty(6, 0, 4, dtype=torch.float64)) == without


def test_the_gradient_with_negatives_is_that_of_finite_differences() -> None:
    anchors, positives = (unit_batch(5, 4, seed=seed).requires_grad_() for seed in (1, 2))
    negatives = unit_batch(10, 4, seed=3).reshape(5, 2, 4).requires_grad_()
    present = torch.tensor([[True, True], [True, False], [False, False], [False, True], [True, True]])

    def loss(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return contrastive(a, p, temperature=0.2, negatives=n, present=present)

    assert torch.autograd.gradcheck(loss, (anchors, positives, negatives))
