"""The stay-near-base term, against loops over pairs of rows."""

import pytest
import torch
from torch import Tensor

from zerogate.losses.distillation import similarity_distillation


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", [2, 3, 11])
@pytest.mark.parametrize("dim", [4, 9])
def test_it_is_the_mean_squared_change_of_the_cosines_of_two_different_rows(size: int, dim: int) -> None:
    student, teacher = unit_batch(size, dim, seed=size), unit_batch(size, 4, seed=size + 1)
    student[1] = student[0]  # a copy of a row is another row

    changes = []
    for i in range(size):
        for j in range(size):
            if i != j:
                before, after = cosine(teacher[i].tolist(), teacher[j].tolist()), cosine(student[i].tolist(), student[j].tolist())
                changes.append((after - before) ** 2)

    assert similarity_distillation(student, teacher).item() == pytest.approx(sum(changes) / len(changes), rel=1e-9)


def test_rows_that_stay_where_they_were_cost_nothing_and_pull_at_nothing() -> None:
    student = unit_batch(12, 6, seed=1).requires_grad_()

    loss = similarity_distillation(student, student)
    loss.backward()

    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def test_turning_all_rows_together_is_free() -> None:
    teacher = unit_batch(12, 6, seed=1)
    turn, _ = torch.linalg.qr(unit_batch(6, 6, seed=2))

    assert similarity_distillation(teacher @ turn, teacher).item() == pytest.approx(0, abs=1e-28)


def test_it_grows_with_the_distance_from_the_teacher() -> None:
    teacher, elsewhere = unit_batch(30, 8, seed=1), unit_batch(30, 8, seed=2)

    losses = [
        similarity_distillation(torch.nn.functional.normalize((1 - share) * teacher + share * elsewhere, dim=1), teacher).item()
        for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]

    assert losses == sorted(set(losses))


def test_the_size_does_not_depend_on_the_size_of_the_batch() -> None:
    student, teacher = unit_batch(400, 8, seed=1), unit_batch(400, 8, seed=2)

    small, large = similarity_distillation(student[:60], teacher[:60]), similarity_distillation(student, teacher)

    assert small.item() == pytest.approx(large.item(), rel=0.1)


def test_no_gradient_goes_to_the_teacher_and_nothing_is_changed_in_place() -> None:
    student, teacher = unit_batch(5, 4, seed=1).requires_grad_(), unit_batch(5, 4, seed=2).requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()

    similarity_distillation(student, teacher).backward()

    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_descending_it_brings_the_similarities_back() -> None:
    teacher, student = unit_batch(20, 6, seed=1), unit_batch(20, 6, seed=2)

    for _ in range(300):
        student.requires_grad_()
        (gradient,) = torch.autograd.grad(similarity_distillation(student, teacher), student)
        student = torch.nn.functional.normalize(student.detach() - 10.0 * gradient, dim=1)

    assert torch.allclose(student @ student.T, teacher @ teacher.T, atol=0.02)
