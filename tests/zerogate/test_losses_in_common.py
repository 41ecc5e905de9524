"""What every loss promises: gradients, no dependence on order or rotation, degenerate batches, dtypes, and that it learns."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, online_contrastive, same_pairs
from zerogate.losses.distillation import similarity_distillation
from zerogate.losses.groups import circle, supervised_contrastive
from zerogate.losses.scored import cosent, cosine_regression
from zerogate.losses.triplet import batch_hard, semi_hard_triplets, triplet

# Of two sides (n, dim) each and the labels (n,) of their rows. Each row has a partner: the same row of the other side.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _same(labels: Tensor) -> Tensor:
    return labels[:, None] == labels[None, :]


LOSSES: dict[str, Loss] = {
    "contrastive": lambda a, b, y: contrastive(a, b, temperature=0.2, same=same_pairs(y, torch.arange(len(y)))),
    "multi positive": lambda a, b, y: multi_positive_contrastive(a, b, _same(y), temperature=0.2),
    "online": lambda a, b, y: online_contrastive(a, b, y % 2 == 0, margin=0.9),
    "triplet": lambda a, b, y: triplet(a, b, b[None].expand(len(a), *b.shape), margin=0.3, present=~_same(y)),
    "semi-hard": lambda a, b, y: semi_hard_triplets(a, y, margin=0.3) + semi_hard_triplets(b, y, margin=0.3),
    "batch hard": lambda a, b, y: batch_hard(a, y, margin=0.3) + batch_hard(b, y, margin=0.3),
    "cosent": lambda a, b, y: cosent(a, b, y / 4, scale=5.0),
    "regression": lambda a, b, y: cosine_regression(a, b, y / 4),
    "supervised": lambda a, b, y: supervised_contrastive(torch.cat((a, b)), y.repeat(2), temperature=0.2),
    "circle": lambda a, b, y: circle(torch.cat((a, b)), y.repeat(2), margin=0.25, scale=8.0),
    "distillation": lambda a, b, y: similarity_distillation(a, b),
}
LABELLED = ["multi positive", "triplet", "semi-hard", "batch hard", "supervised", "circle"]

every_loss = pytest.mark.parametrize("name", LOSSES)


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def batch(size: int, *, seed: int, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(4, (size,), generator=torch.Generator().manual_seed(seed))
    return unit_batch(size, dim, seed=seed), unit_batch(size, dim, seed=seed + 1000), labels


def value_and_gradients(name: str, a: Tensor, b: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = LOSSES[name](a, b, labels)
    gradients = torch.autograd.grad(loss, (a, b), allow_unused=True)
    return loss.item(), torch.cat([torch.zeros_like(a) if gradient is None else gradient for gradient in gradients])


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"circle", "distillation"}))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gradient_is_that_of_finite_differences(name: str, seed: int) -> None:
    """Circle is left out: it holds its weights constant, which no difference of values does (see its own test)."""
    a, b, labels = batch(8, seed=seed, dim=4)

    assert value_and_gradients(name, a, b, labels)[1].abs().max() > 0.01
    assert torch.autograd.gradcheck(lambda x, y: LOSSES[name](x, y, labels), (a.requires_grad_(), b.requires_grad_()))


def test_the_gradient_of_distillation_is_that_of_finite_differences() -> None:
    student, teacher = unit_batch(8, 4, seed=1).requires_grad_(), unit_batch(8, 6, seed=2)

    assert torch.autograd.gradcheck(lambda rows: similarity_distillation(rows, teacher), (student,))


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_batch_does_not_matter(name: str, seed: int) -> None:
    a, b, labels = batch(17, seed=seed)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(seed))

    before, gradients = value_and_gradients(name, a, b, labels)
    after, moved = value_and_gradients(name, a[order], b[order], labels[order])

    assert before > 0
    assert after == pytest.approx(before, rel=1e-12)
    assert torch.allclose(moved, torch.cat((gradients[:17][order], gradients[17:][order])), atol=1e-12)


@every_loss
def test_turning_all_vectors_together_does_not_matter(name: str) -> None:
    a, b, labels = batch(17, seed=4)
    turn, _ = torch.linalg.qr(unit_batch(5, 5, seed=5))

    assert LOSSES[name](a @ turn, b @ turn, labels).item() == pytest.approx(LOSSES[name](a, b, labels).item(), rel=1e-9)


@pytest.mark.parametrize("name", LABELLED)
def test_the_names_of_the_groups_do_not_matter(name: str) -> None:
    a, b, labels = batch(17, seed=4)
    renamed = torch.tensor([70, -3, 2**40, 0])[labels]

    assert torch.equal(LOSSES[name](a, b, renamed), LOSSES[name](a, b, labels))


@every_loss
def test_float32_gives_the_number_of_float64_and_stays_float32(name: str) -> None:
    a, b, labels = batch(17, seed=6)

    found = LOSSES[name](a.float(), b.float(), labels)

    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found.item() == pytest.approx(LOSSES[name](a, b, labels).item(), rel=1e-4)


@every_loss
def test_rows_that_have_all_become_one_give_finite_numbers(name: str) -> None:
    labels = torch.arange(12) % 4
    collapsed = unit_batch(1, 5, seed=1).float().repeat(12, 1)

    value, gradients = value_and_gradients(name, collapsed, collapsed, labels)

    assert value >= 0
    assert gradients.isfinite().all()


@pytest.mark.parametrize("name", [*LABELLED, "online", "cosent"])
@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_one_group_alone_is_nothing_to_learn_from(name: str, size: int) -> None:
    """No negatives; for `online` no dissimilar pair, for `cosent` a single score."""
    a, b, _ = batch(size, seed=7)

    value, gradients = value_and_gradients(name, a, b, torch.full((size,), 2))

    assert value == 0
    assert gradients.shape == (2 * size, 5)
    assert gradients.count_nonzero() == 0


@pytest.mark.parametrize("name", ["semi-hard", "batch hard"])
@pytest.mark.parametrize("size", [2, 9])
def test_groups_of_one_are_nothing_to_learn_from(name: str, size: int) -> None:
    a, b, _ = batch(size, seed=8)

    value, gradients = value_and_gradients(name, a, b, torch.arange(size))

    assert value == 0
    assert gradients.count_nonzero() == 0


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("supervised", lambda rows: supervised_contrastive(rows, torch.arange(len(rows)), temperature=0.1)),
        ("circle", lambda rows: circle(rows, torch.arange(len(rows)), margin=0.25, scale=80.0)),
        (
            "no positive",
            lambda rows: multi_positive_contrastive(rows, rows, torch.zeros(9, 9, dtype=torch.bool), temperature=1.0),
        ),
        (
            "all ignored",
            lambda rows: multi_positive_contrastive(
                rows, rows, torch.eye(9, dtype=torch.bool), temperature=1.0, ignored=torch.ones(9, 9, dtype=torch.bool)
            ),
        ),
        ("no similar pair", lambda rows: online_contrastive(rows, rows.flip(0), torch.zeros(9, dtype=torch.bool), margin=0.9)),
        ("no negatives", lambda rows: triplet(rows, rows.flip(0), rows.new_zeros(9, 0, 5), margin=0.9)),
        (
            "all missing",
            lambda rows: triplet(rows, rows.flip(0), rows[:, None], margin=0.9, present=torch.zeros(9, 1, dtype=torch.bool)),
        ),
        ("one row", lambda rows: similarity_distillation(rows[:1], unit_batch(1, 5, seed=3))),
        ("no row", lambda rows: similarity_distillation(rows[:0], rows[:0])),
        ("no pair", lambda rows: cosine_regression(rows[:0], rows[:0], torch.zeros(0))),
        ("one pair", lambda rows: cosent(rows[:1], rows[1:2], torch.zeros(1), scale=20.0)),
    ],
)
def test_without_a_positive_or_a_row_there_is_nothing_to_learn(name: str, loss: Callable[[Tensor], Tensor]) -> None:
    rows = unit_batch(9, 5, seed=1).requires_grad_()

    found = loss(rows)
    (gradient,) = torch.autograd.grad(found, rows)

    assert found.item() == 0
    assert gradient.count_nonzero() == 0


def descend(name: str, labels: Tensor, *, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """Two sides of random rows, before plain gradient descent along the sphere and after it, stacked: (2, n, dim) each."""
    start = torch.stack([unit_batch(len(labels), 6, seed=seed) for seed in (1, 2)])
    rows = start.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(LOSSES[name](rows[0], rows[1], labels), rows)
        rows = torch.nn.functional.normalize(rows.detach() - rate * gradient, dim=2).requires_grad_()
    return start, rows.detach()


@pytest.mark.parametrize(("name", "across"), [(name, name in {"multi positive", "triplet"}) for name in LABELLED])
def test_descending_it_puts_every_row_next_to_its_group(name: str, across: bool) -> None:
    labels = torch.arange(16) % 4

    def nearest_is_of_the_group(sides: Tensor) -> float:
        similarities = sides[0] @ sides[int(across)].T
        if not across:
            similarities.fill_diagonal_(-1)
        return (labels[similarities.argmax(dim=1)] == labels).double().mean().item()

    before, after = descend(name, labels, steps=60, rate=2.0 if name != "circle" else 0.2)

    assert nearest_is_of_the_group(before) < 0.6
    assert nearest_is_of_the_group(after) == 1


@pytest.mark.parametrize("name", ["cosent", "regression"])
def test_descending_it_puts_the_cosines_into_the_order_of_the_scores(name: str) -> None:
    labels = torch.arange(20) % 5

    _, after = descend(name, labels, steps=80, rate=0.5)

    cosines = (after[0] * after[1]).sum(dim=1)
    of_score = [cosines[labels == score] for score in range(5)]
    assert all(low.max() < high.min() for low, high in pairwise(of_score))
