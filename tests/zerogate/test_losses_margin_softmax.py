"""ArcFace and CosFace, against loops over rows and classes with real angles."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from zerogate.losses.margin_softmax import MarginSoftmax

Kind = Literal["arcface", "cosface"]
KINDS: tuple[Kind, ...] = ("arcface", "cosface")


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def groups(size: int, distinct: int, *, seed: int) -> Tensor:
    return torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed))


def naive(loss: MarginSoftmax, rows: list[list[float]], labels: list[int], weights: list[list[float]]) -> float:
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        logits = []
        for number, weight in enumerate(weights):
            length = math.sqrt(sum(w * w for w in weight))
            angle = math.acos(sum(x * w for x, w in zip(row, weight, strict=True)) / length)
            value = math.cos(angle)
            if number == label and loss.kind == "cosface":
                value = math.cos(angle) - loss.margin
            if number == label and loss.kind == "arcface":
                past = angle + loss.margin > math.pi
                value = math.cos(angle) - loss.margin * math.sin(loss.margin) if past else math.cos(angle + loss.margin)
            logits.append(loss.scale * value)
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.0, 0.35, 0.5, 1.4])
@pytest.mark.parametrize(("size", "classes", "scale"), [(1, 2, 1.0), (9, 4, 10.0), (40, 7, 64.0)])
def test_the_own_class_has_to_win_by_the_margin(kind: Kind, margin: float, size: int, classes: int, scale: float) -> None:
    loss = MarginSoftmax(3, classes=classes, kind=kind, margin=margin, scale=scale, seed=size).double()
    rows, labels = unit_batch(size, 3, seed=size), groups(size, classes, seed=size)

    found = loss(rows, labels)

    assert found.item() == pytest.approx(naive(loss, rows.tolist(), labels.tolist(), loss.weight.tolist()), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_margin_it_is_cross_entropy_over_cosines(kind: Kind) -> None:
    loss = MarginSoftmax(5, classes=4, kind=kind, margin=0.0, scale=12.0, seed=1).double()
    rows, labels = unit_batch(20, 5, seed=2), groups(20, 4, seed=3)

    cosines = torch.nn.functional.cosine_similarity(rows[:, None], loss.weight[None], dim=2)
    trusted = torch.nn.functional.cross_entropy(12.0 * cosines, labels)

    assert loss(rows, labels).item() == pytest.approx(trusted.item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_finite_differences_for_rows_and_weights(kind: Kind) -> None:
    loss = MarginSoftmax(3, classes=4, kind=kind, margin=0.5, scale=8.0, seed=1).double()
    rows, labels = unit_batch(12, 3, seed=2).requires_grad_(), groups(12, 4, seed=3)

    def of(moved: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"weight": weight}, (moved, labels))

    assert torch.autograd.gradcheck(of, (rows, loss.weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("off", [0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_it_is_safe_where_a_row_lies_on_a_class_direction_or_opposite(kind: Kind, off: float) -> None:
    loss = MarginSoftmax(3, classes=2, kind=kind, margin=0.5, scale=64.0)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    raw = torch.tensor([[1.0 + off, off, 0.0], [-1.0 - off, off, 0.0]], requires_grad=True)

    for rows in (raw, torch.nn.functional.normalize(raw, dim=1)):  # as they are, a little too long, and normalised
        value = loss(rows, torch.tensor([0, 0]))
        gradient, of_weight = torch.autograd.grad(value, (raw, loss.weight))
        assert value.isfinite()
        assert gradient.abs().max() < 2 * 64 * 2 * math.pi
        assert of_weight.abs().max() < 2 * 64 * 2 * math.pi
    on, opposite = loss(raw[:1], torch.tensor([0])), loss(raw[1:], torch.tensor([0]))
    assert on < 0.1
    assert opposite > 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_opposite_to_its_class_is_still_pulled(kind: Kind) -> None:
    loss = MarginSoftmax(2, classes=2, kind=kind, margin=0.5, scale=16.0)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    row = torch.tensor([[-1.0, 0.0]], requires_grad=True)

    loss(row, torch.tensor([0])).backward()

    assert row.grad is not None
    assert row.grad[0, 0] < -8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_the_loss_rises_with_the_angle_to_the_own_class_all_the_way(kind: Kind, margin: float) -> None:
    loss = MarginSoftmax(3, classes=2, kind=kind, margin=margin, scale=4.0).double()
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    angles = torch.linspace(0.002, math.pi - 0.002, 400, dtype=torch.float64)

    losses = torch.stack([loss(torch.stack((a.cos(), a.sin(), torch.zeros_like(a)))[None], torch.tensor([0])) for a in angles])

    assert (losses.diff() > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_margin_costs_more(kind: Kind) -> None:
    rows, labels = unit_batch(30, 6, seed=1), groups(30, 5, seed=2)

    losses = [
        MarginSoftmax(6, classes=5, kind=kind, margin=margin, scale=16.0, seed=3).double()(rows, labels).item()
        for margin in (0.0, 0.2, 0.4, 0.6)
    ]

    assert losses == sorted(set(losses))


def test_the_start_is_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = MarginSoftmax(6, classes=5, kind="arcface", margin=0.5, scale=16.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = MarginSoftmax(6, classes=5, kind="cosface", margin=0.1, scale=1.0, seed=3)
    other = MarginSoftmax(6, classes=5, kind="arcface", margin=0.5, scale=16.0, seed=4)

    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert [name for name, _ in first.named_parameters()] == ["weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_of_a_class_direction_does_not_matter(kind: Kind) -> None:
    loss = MarginSoftmax(6, classes=5, kind=kind, margin=0.3, scale=16.0).double()
    rows, labels = unit_batch(30, 6, seed=1), groups(30, 5, seed=2)
    before = loss(rows, labels).item()

    with torch.no_grad():
        loss.weight.mul_(torch.tensor([[0.01], [1.0], [2.0], [30.0], [5.0]]))

    assert loss(rows, labels).item() == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(("size", "classes"), [(5, 1), (0, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_class_or_an_empty_batch_gives_nothing_to_learn(kind: Kind, size: int, classes: int) -> None:
    loss = MarginSoftmax(4, classes=classes, kind=kind, margin=0.3, scale=16.0)
    rows = unit_batch(size, 4, seed=1).float().requires_grad_()

    value = loss(rows, torch.zeros(size, dtype=torch.int64))
    value.backward()

    assert value.item() == 0
    assert rows.grad is not None
    assert loss.weight.grad is not None
    assert rows.grad.count_nonzero() == loss.weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_rows_and_directions_puts_every_row_next_to_its_class(kind: Kind) -> None:
    loss = MarginSoftmax(8, classes=4, kind=kind, margin=0.3, scale=16.0, seed=1)
    rows, labels = unit_batch(24, 8, seed=2).float(), torch.arange(4).repeat(6)

    def right() -> float:
        found = (rows @ torch.nn.functional.normalize(loss.weight, dim=1).T).argmax(dim=1)
        return (found == labels).double().mean().item()

    before = right()
    for _ in range(50):
        rows.requires_grad_()
        of_rows, of_weight = torch.autograd.grad(loss(rows, labels), (rows, loss.weight))
        rows = torch.nn.functional.normalize(rows.detach() - of_rows, dim=1)
        with torch.no_grad():
            loss.weight -= of_weight

    assert before < 0.6
    assert right() == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "sphereface"}, "kind must be one of arcface, cosface, found 'sphereface'"),
        ({"margin": -0.1}, "margin of arcface must be from 0 to 1.571, found -0.1"),
        ({"margin": 1.6}, "margin of arcface must be from 0 to 1.571, found 1.6"),
        ({"margin": 2.1, "kind": "cosface"}, "margin of cosface must be from 0 to 2, found 2.1"),
        ({"margin": float("nan")}, "found nan"),
        ({"classes": 0}, "classes must be at least 1 and scale above 0, found 0 and 16.0"),
        ({"scale": 0.0}, "found 3 and 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, object], message: str) -> None:
    arguments = {"classes": 3, "kind": "arcface", "margin": 0.5, "scale": 16.0} | changed

    with pytest.raises(ValueError, match=message):
        MarginSoftmax(4, **arguments)
