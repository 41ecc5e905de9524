"""The triplet losses that mine, against loops over single triplets. Mining must never mix anchors (Quaterion's did)."""

from collections import defaultdict
from itertools import product

import pytest
import torch
from torch import Tensor

from zerogate.losses.triplet import batch_hard, mine_semi_hard, semi_hard_triplets


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def exact_batch(size: int, *, seed: int) -> Tensor:
    """Rows out of 16 unit vectors: many are equal, and all cosines are exact, so that ties are ties in any order of adding."""
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=4)), dtype=torch.float64)
    return corners[torch.randint(16, (size,), generator=torch.Generator().manual_seed(seed))]


def groups(size: int, distinct: int, *, seed: int) -> Tensor:
    return torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    return 1.0 - sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def slow_semi_hard(rows: Tensor, labels: Tensor) -> list[tuple[int, int, int]]:
    """FaceNet's choice, one anchor and one positive at a time."""
    size = len(rows)
    triplets = []
    for a in range(size):
        away = [distance(rows[a], rows[j]) for j in range(size)]
        negatives = [j for j in range(size) if labels[j] != labels[a]]
        for p in range(size):
            if p == a or labels[p] != labels[a] or not negatives:
                continue
            farther = [n for n in negatives if away[n] > away[p]]
            n = min(farther, key=away.__getitem__) if farther else max(negatives, key=away.__getitem__)
            triplets.append((a, p, n))
    return triplets


@pytest.mark.parametrize("seed", range(12))
def test_mining_gives_exactly_the_triplets_of_the_slow_loops(seed: int) -> None:
    size = 2 + 2 * seed
    rows, labels = unit(drawn(size, 3 + seed % 4, seed=seed)), groups(size, 1 + size // 3, seed=seed)

    assert [tuple(found) for found in mine_semi_hard(rows, labels).tolist()] == slow_semi_hard(rows, labels)


@pytest.mark.parametrize("seed", range(12))
def test_with_ties_and_copies_the_chosen_negatives_are_as_far_as_those_of_the_slow_loops(seed: int) -> None:
    size = 4 + 3 * seed
    rows, labels = exact_batch(size, seed=seed), groups(size, 1 + seed % 5, seed=seed + 40)

    found, expected = mine_semi_hard(rows, labels).tolist(), slow_semi_hard(rows, labels)

    assert [(a, p, labels[n] != labels[a], distance(rows[a], rows[n])) for a, p, n in found] == [
        (a, p, True, distance(rows[a], rows[n])) for a, p, n in expected
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("margin", [0.05, 0.5])
@pytest.mark.parametrize("exact", [False, True])
def test_the_semi_hard_loss_is_the_mean_over_the_triplets_of_the_slow_loops(seed: int, margin: float, exact: bool) -> None:
    size = 6 + 3 * seed
    rows = exact_batch(size, seed=seed) if exact else unit(drawn(size, 5, seed=seed))
    labels = groups(size, 2 + seed % 4, seed=seed)

    triplets = slow_semi_hard(rows, labels)
    losses = [max(0.0, distance(rows[a], rows[p]) - distance(rows[a], rows[n]) + margin) for a, p, n in triplets]

    assert triplets
    assert semi_hard_triplets(rows, labels, margin=margin).item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_the_closest_negative_beyond_the_positive_is_taken_else_the_farthest() -> None:
    """One anchor at angle 0, its positive at 0.5; negatives at the other angles."""

    def chosen(*angles: float) -> float:
        placed = torch.tensor([0.0, 0.5, *angles], dtype=torch.float64)
        rows = torch.stack((placed.cos(), placed.sin()), dim=1)
        labels = torch.tensor([0, 0, *range(1, len(angles) + 1)])
        of_anchor = {(a, p): n for a, p, n in mine_semi_hard(rows, labels).tolist()}
        return placed[of_anchor[0, 1]].item()

    assert chosen(0.2, 0.7, 0.9, 3.0) == 0.7
    assert chosen(3.0, 0.9, 0.4) == 0.9
    assert chosen(0.2, 0.4, 0.1) == 0.4
    assert chosen(0.3) == 0.3


@pytest.mark.parametrize("seed", range(5))
def test_a_triplet_never_mixes_anchors(seed: int) -> None:
    """An anchor's triplets depend on its own distances alone, whatever the distances between the other rows are."""
    cosines = torch.rand(20, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.8 - 0.9
    labels = torch.cat((torch.tensor([0]), groups(20, 4, seed=seed)))
    anchor = torch.eye(1, 8, dtype=torch.float64)

    of_anchor = []
    for again in range(6):
        sideways = torch.cat((torch.zeros(20, 1, dtype=torch.float64), unit(drawn(20, 7, seed=100 * seed + again))), dim=1)
        rows = torch.cat((anchor, cosines * anchor + (1 - cosines.square()).sqrt() * sideways))
        mined = mine_semi_hard(rows, labels)
        assert len(mined) == sum(int((labels == label).sum()) - 1 for label in labels.tolist())
        assert (labels[mined[:, 0]] == labels[mined[:, 1]]).all()
        assert (labels[mined[:, 0]] != labels[mined[:, 2]]).all()
        assert (mined[:, 0] != mined[:, 1]).all()
        of_anchor.append(mined[mined[:, 0] == 0].tolist())

    assert of_anchor[0]
    assert of_anchor == [of_anchor[0]] * 6


def test_each_anchor_and_positive_pair_comes_once_in_both_orders() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])

    mined = mine_semi_hard(unit(drawn(6, 4, seed=1)), labels)

    assert [(a, p) for a, p, _ in mined.tolist()] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (3, 4), (4, 3)]


def test_three_rows_of_three_groups_make_no_triplet() -> None:
    """Quaterion formed 18 triplets of such a batch, and counted a row as its own positive."""
    rows = unit(drawn(3, 4, seed=1)).requires_grad_()

    assert mine_semi_hard(rows, torch.arange(3)).shape == (0, 3)
    loss = semi_hard_triplets(rows, torch.arange(3), margin=0.5)
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None
    assert rows.grad.count_nonzero() == 0


def test_only_the_rows_of_a_violated_triplet_get_a_gradient() -> None:
    placed = torch.tensor([0.0, 0.5, 0.6, 2.5, 2.5], dtype=torch.float64)
    rows = torch.stack((placed.cos(), placed.sin()), dim=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 2])

    semi_hard_triplets(rows, labels, margin=0.1).backward()

    assert rows.grad is not None
    moved = rows.grad.abs().sum(dim=1) > 0
    # Rows 3 and 4 lie together, far from all: their triplets are satisfied. Row 2 is the semi-hard negative of row 0.
    assert moved.tolist() == [True, True, True, False, False]


def test_mining_a_large_batch_of_one_big_group_needs_no_cube_of_memory() -> None:
    rows, labels = unit(drawn(700, 8, seed=1)).float(), torch.zeros(700, dtype=torch.int64)
    labels[::2] = 1

    mined = mine_semi_hard(rows, labels)  # a cube would have 343 million distances

    per_anchor = defaultdict(set)
    for anchor, positive, _ in mined.tolist():
        per_anchor[anchor].add(positive)
    assert {len(positives) for positives in per_anchor.values()} == {349}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("margin", [0.05, 0.5])
@pytest.mark.parametrize("exact", [False, True])
def test_batch_hard_takes_the_farthest_positive_and_the_closest_negative_of_each_anchor(
    seed: int, margin: float, exact: bool
) -> None:
    size = 3 + 3 * seed
    rows = exact_batch(size, seed=seed) if exact else unit(drawn(size, 5, seed=seed))
    labels = groups(size, 2 + size // 3, seed=seed)

    losses = []
    for a in range(size):
        positives = [distance(rows[a], rows[j]) for j in range(size) if j != a and labels[j] == labels[a]]
        negatives = [distance(rows[a], rows[j]) for j in range(size) if labels[j] != labels[a]]
        if positives and negatives:
            losses.append(max(0.0, max(positives) - min(negatives) + margin))
    expected = sum(losses) / max(1, len(losses))

    assert batch_hard(rows, labels, margin=margin).item() == pytest.approx(expected, rel=1e-9)


def test_batch_hard_is_never_below_the_semi_hard_loss_of_groups_of_two() -> None:
    labels = torch.arange(10).repeat_interleave(2)

    for seed in range(10):
        rows = unit(drawn(20, 4, seed=seed))
        assert batch_hard(rows, labels, margin=0.2) >= semi_hard_triplets(rows, labels, margin=0.2)


def test_groups_that_stand_apart_by_more_than_the_margin_cost_nothing() -> None:
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(3, dim=0)
    labels = torch.arange(3).repeat_interleave(3)

    for loss in (semi_hard_triplets, batch_hard):
        assert loss(rows, labels, margin=0.99).item() == 0
        assert loss(rows, labels, margin=1.5).item() == pytest.approx(0.5)
