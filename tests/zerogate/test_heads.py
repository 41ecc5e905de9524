"""The zero-gated skip head: it starts as the identity, to the last bit, and it can leave there."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zerogate.encoder import Encoder
from zerogate.heads import SkipHead

TEXTS = [
    "Return the absolute value of the argument.",
    "Wie kündige ich meinen Vertrag?",
    "x",
    "日本語のテキスト",
    "Read until EOF and return a list of the lines.",
    *(f"Question {number}: how do I reset device {number * 37}?" for number in range(27)),
]


@pytest.fixture(scope="module")
def base(encoder: Encoder) -> Tensor:
    """Real outputs of the encoder, (32, 384)."""
    return torch.from_numpy(encoder.encode(TEXTS, role="query"))


class SigmoidGateHead(nn.Module):
    """Quaterion's skip connection: a gate of sigmoid(-4) = 0.018 where ours has 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)) / dim**0.5)
        self.gate = nn.Parameter(torch.full((dim,), -4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.gate) * (x @ self.weight.T)


def distance_from_identity(head: nn.Module, x: Tensor) -> float:
    """max |y - x|; 0 only if y is x to the last bit."""
    y = head(x).detach()
    distance = float((y - x).abs().max())
    assert (distance == 0) == torch.equal(y, x) == (y.numpy().tobytes() == x.numpy().tobytes())
    return distance


def opened(head: SkipHead, *, seed: int = 0) -> SkipHead:
    """The head with gates and biases that are not zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (*head.gates, *head.biases):
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return head


def pull_together(head: SkipHead, x: Tensor) -> Tensor:
    """A loss: row 0 shall point where row 1 points, row 2 where row 3 points, and so on."""
    y = nn.functional.normalize(head(x), dim=1)
    return -(y[0::2] * y[1::2]).sum(dim=1).mean()


def size_of_gradients(parameters: nn.ParameterList) -> float:
    return sum(float(parameter.grad.abs().sum()) for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_head_gives_real_encoder_outputs_back_bit_for_bit(base: Tensor, blocks: int, bias: bool, training: bool) -> None:
    head = SkipHead(384, blocks=blocks, bias=bias, dropout=0.4).train(training)

    assert distance_from_identity(head, base) == 0


def test_a_gate_of_sigmoid_minus_4_is_caught_by_the_same_check(base: Tensor) -> None:
    assert distance_from_identity(SigmoidGateHead(384), base) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_at_the_first_step_only_the_gate_gets_a_gradient(base: Tensor, bias: bool) -> None:
    head = SkipHead(384, blocks=2, bias=bias)

    pull_together(head, base).backward()

    assert all(float(gate.grad.abs().max()) > 0 for gate in head.gates if gate.grad is not None)
    assert size_of_gradients(head.gates) > 0
    assert size_of_gradients(head.weights) == 0
    assert size_of_gradients(head.biases) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_after_one_step_everything_gets_a_gradient(base: Tensor, bias: bool) -> None:
    head = SkipHead(384, blocks=2, bias=bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    pull_together(head, base).backward()
    optimizer.step()
    optimizer.zero_grad()

    pull_together(head, base).backward()

    for parameter in head.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("bias", [False, True])
def test_with_zero_weights_as_well_nothing_would_ever_train(base: Tensor, bias: bool) -> None:
    head = SkipHead(384, bias=bias)
    nn.init.zeros_(head.weights[0])
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)

    for _ in range(5):
        optimizer.zero_grad()
        pull_together(head, base).backward()
        optimizer.step()

    assert all(torch.equal(parameter, torch.zeros_like(parameter)) for parameter in head.parameters())


def test_a_few_steps_reduce_the_loss(base: Tensor) -> None:
    head = SkipHead(384)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    before = pull_together(head, base).item()

    for _ in range(10):
        optimizer.zero_grad()
        pull_together(head, base).backward()
        optimizer.step()

    assert pull_together(head, base).item() < before - 0.05


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_output_is_what_the_formula_gives_number_by_number(blocks: int, bias: bool) -> None:
    dim = 5
    head = opened(SkipHead(dim, blocks=blocks, bias=bias, seed=3))
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(1))

    expected = []
    for row in x.tolist():
        for number in range(blocks):
            W, g = head.weights[number].tolist(), head.gates[number].tolist()
            b = head.biases[number].tolist() if bias else [0.0] * dim
            row = [row[i] + g[i] * (sum(W[i][j] * row[j] for j in range(dim)) + b[i]) for i in range(dim)]  # noqa: PLW2901
        expected.append(row)

    np.testing.assert_allclose(head(x).detach().numpy(), expected, atol=2e-6)


def test_dropout_never_touches_the_skip_path() -> None:
    head = SkipHead(64, dropout=0.9).train()
    with torch.no_grad():
        head.weights[0].copy_(torch.eye(64))
        head.gates[0].fill_(1.0)
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))

    y = head(x)

    dropped = y == x  # y = x + 0
    kept = torch.isclose(y, x + x / (1 - 0.9))
    assert bool((dropped ^ kept).all())
    assert 0.85 < float(dropped.float().mean()) < 0.95


def test_rows_whose_whole_branch_is_dropped_come_back_bit_for_bit(base: Tensor) -> None:
    head = opened(SkipHead(384, dropout=0.999, seed=5)).train()

    y = head(base).detach()

    untouched = (y == base).all(dim=1)
    assert 10 < int(untouched.sum()) < 31  # 0.999^384 = 68 % of 32 rows
    assert float((y - base)[~untouched].abs().max()) > 0.1


def test_dropout_leaves_the_mean_where_it_is() -> None:
    head = opened(SkipHead(8, dropout=0.4, seed=2), seed=7)
    x = torch.randn(8, generator=torch.Generator().manual_seed(4))

    dropped = head.train()(x.expand(40_000, 8))
    whole = head.eval()(x)

    standard_error = dropped.std(dim=0) / math.sqrt(40_000)
    assert bool(((dropped.mean(dim=0) - whole).abs() < 5 * standard_error + 1e-6).all())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_start() -> None:
    first, second, other = (SkipHead(32, blocks=2, bias=True, seed=seed) for seed in (7, 7, 8))

    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert one.detach().numpy().tobytes() == same.detach().numpy().tobytes()
    assert not torch.equal(first.weights[0], other.weights[0])
    assert not torch.equal(first.weights[0], first.weights[1])


def test_a_row_of_the_start_has_a_length_of_about_one() -> None:
    lengths = SkipHead(384, seed=1).weights[0].detach().norm(dim=1)

    assert abs(float(lengths.mean()) - 1) < 0.02
    assert float(lengths.std()) < 0.06


def test_masks_repeat_although_others_draw_random_numbers() -> None:
    x = torch.ones(16, 32)
    alone, disturbed = (opened(SkipHead(32, dropout=0.5, seed=3)).train() for _ in range(2))
    expected = [alone(x) for _ in range(3)]

    found = []
    for number in range(3):
        torch.manual_seed(number)
        torch.rand(number + 1)
        found.append(disturbed(x))

    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert not torch.equal(expected[0], expected[1])


def test_a_head_takes_nothing_from_the_generator_of_others() -> None:
    before = torch.get_rng_state()

    opened(SkipHead(32, dropout=0.5)).train()(torch.ones(2, 32))

    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_draws_other_masks() -> None:
    heads = [SkipHead(32, dropout=0.5, seed=seed).train() for seed in (1, 2)]
    for head in heads:
        with torch.no_grad():
            head.weights[0].copy_(torch.eye(32))
            head.gates[0].fill_(1.0)

    first, second = (head(torch.ones(4, 32)) for head in heads)

    assert not torch.equal(first, second)


def test_the_blocks_are_a_copy() -> None:
    head = opened(SkipHead(8, bias=True))
    block = head.blocks()[0]
    before = block.gate.tobytes(), block.weight.tobytes()

    with torch.no_grad():
        head.gates[0].zero_()
        head.weights[0].zero_()

    assert (block.gate.tobytes(), block.weight.tobytes()) == before
    assert block.bias is not None


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        SkipHead(8, dropout=dropout)


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_head_without_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        SkipHead(8, blocks=blocks)
