"""The heads while they train: the zero-gated one starts as the identity, to the last bit, and it can leave there.

What holds for heads of every shape stands in test_head_shapes.py.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zerogate.encoder import Encoder
from zerogate.head_shapes import HeadShape, Kind
from zerogate.heads import HEADS, NUDGE, SkipDropout, SkipHead, make_head

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


def skip_head(dim: int, *, skip_dropout: float = 0.0, seed: int = 0, **shape: Any) -> SkipHead:
    return SkipHead(dim, HeadShape(**shape), skip_dropout=skip_dropout, seed=seed)


def parts(head: SkipHead) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gates, weights and biases of all blocks."""
    layers = list(head.layers)
    return list(head.gates), [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]


def opened(head: SkipHead, *, seed: int = 0) -> SkipHead:
    """The head with gates and biases that are not zero."""
    draw = torch.Generator().manual_seed(seed)
    gates, _, biases = parts(head)
    with torch.no_grad():
        for parameter in (*gates, *biases):
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return head


def with_identity_inside(head: SkipHead) -> SkipHead:
    """The head with W = I and g = 1, so that its branch is its input."""
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.eye(head.dim))
        head.gates[0].fill_(1.0)
    return head


def pull_together(head: nn.Module, x: Tensor) -> Tensor:
    """A loss: row 0 shall point where row 1 points, row 2 where row 3 points, and so on."""
    y = nn.functional.normalize(head(x), dim=1)
    return -(y[0::2] * y[1::2]).sum(dim=1).mean()


def train(head: nn.Module, x: Tensor, *, steps: int, lr: float = 0.01) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        pull_together(head, x).backward()
        optimizer.step()


def size_of_gradients(parameters: list[Tensor]) -> float:
    return sum(float(parameter.grad.abs().sum()) for parameter in parameters if parameter.grad is not None)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_head_gives_real_encoder_outputs_back_bit_for_bit(base: Tensor, blocks: int, bias: bool, training: bool) -> None:
    head = skip_head(384, blocks=blocks, bias=bias, skip_dropout=0.4).train(training)

    assert distance_from_identity(head, base) == 0


def test_a_gate_of_sigmoid_minus_4_is_caught_by_the_same_check(base: Tensor) -> None:
    assert distance_from_identity(SigmoidGateHead(384), base) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_at_the_first_step_only_the_gate_gets_a_gradient(base: Tensor, bias: bool) -> None:
    head = skip_head(384, blocks=2, bias=bias)

    pull_together(head, base).backward()

    gates, weights, biases = parts(head)
    assert all(gate.grad is not None and float(gate.grad.abs().max()) > 0 for gate in gates)
    assert size_of_gradients(weights) == 0
    assert size_of_gradients(biases) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_after_one_step_everything_gets_a_gradient(base: Tensor, bias: bool) -> None:
    head = skip_head(384, blocks=2, bias=bias)
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
    head = skip_head(384, bias=bias)
    nn.init.zeros_(head.layers[0].weight)

    train(head, base, steps=5, lr=0.1)

    assert all(torch.equal(parameter, torch.zeros_like(parameter)) for parameter in head.parameters())


def test_a_few_steps_reduce_the_loss(base: Tensor) -> None:
    head = skip_head(384)
    before = pull_together(head, base).item()

    train(head, base, steps=10)

    assert pull_together(head, base).item() < before - 0.05


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_output_is_what_the_formula_gives_number_by_number(blocks: int, bias: bool) -> None:
    dim = 5
    head = opened(skip_head(dim, blocks=blocks, bias=bias, seed=3))
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(1))

    gates, weights, biases = ([one.tolist() for one in kind] for kind in parts(head))
    expected = []
    for row in x.tolist():
        for number in range(blocks):
            W, g, b = weights[number], gates[number], biases[number] if bias else [0.0] * dim
            row = [row[i] + g[i] * (sum(W[i][j] * row[j] for j in range(dim)) + b[i]) for i in range(dim)]  # noqa: PLW2901
        expected.append(row)

    np.testing.assert_allclose(head(x).detach().numpy(), expected, atol=2e-6)


def test_dropout_never_touches_the_skip_path() -> None:
    head = with_identity_inside(skip_head(64, skip_dropout=0.9)).train()
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))

    y = head(x)

    dropped = y == x  # y = x + 0
    kept = torch.isclose(y, x + x / (1 - 230 / 256))  # 0.9 of 256 bytes
    assert bool((dropped ^ kept).all())
    assert 0.85 < float(dropped.float().mean()) < 0.95


def test_rows_whose_whole_branch_is_dropped_come_back_bit_for_bit(base: Tensor) -> None:
    head = opened(skip_head(384, skip_dropout=0.999, seed=5)).train()  # 255 of 256 bytes

    y = head(base).detach()

    untouched = (y == base).all(dim=1)
    assert 1 <= int(untouched.sum()) < 18  # (255 / 256)^384 = 22 % of 32 rows
    assert float((y - base)[~untouched].abs().max()) > 0.1


def test_dropout_leaves_the_mean_where_it_is() -> None:
    head = opened(skip_head(8, skip_dropout=0.4, seed=2), seed=7)
    x = torch.randn(8, generator=torch.Generator().manual_seed(4))

    dropped = head.train()(x.expand(40_000, 8))
    whole = head.eval()(x)

    standard_error = dropped.std(dim=0) / math.sqrt(40_000)
    assert bool(((dropped.mean(dim=0) - whole).abs() < 5 * standard_error + 1e-6).all())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_start() -> None:
    first, second, other = (skip_head(32, blocks=2, bias=True, seed=seed) for seed in (7, 7, 8))

    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert one.detach().numpy().tobytes() == same.detach().numpy().tobytes()
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, first.layers[1].weight)


@pytest.mark.parametrize("shape", [{}, {"blocks": 2, "merge": "concat"}])
def test_a_row_of_the_start_has_a_length_of_about_one(shape: dict[str, Any]) -> None:
    lengths = skip_head(384, seed=1, **shape).layers[-1].weight.detach().norm(dim=1)

    assert abs(float(lengths.mean()) - 1) < 0.02
    assert float(lengths.std()) < 0.06


def test_masks_repeat_although_others_draw_random_numbers() -> None:
    x = torch.ones(16, 32)
    alone, disturbed = (opened(skip_head(32, skip_dropout=0.5, seed=3)).train() for _ in range(2))
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

    opened(skip_head(32, skip_dropout=0.5)).train()(torch.ones(2, 32))

    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_draws_other_masks() -> None:
    heads = [with_identity_inside(skip_head(32, skip_dropout=0.5, seed=seed)).train() for seed in (1, 2)]

    first, second = (head(torch.ones(4, 32)) for head in heads)

    assert not torch.equal(first, second)


def test_the_blocks_are_a_copy() -> None:
    head = opened(skip_head(8, bias=True))
    block = head.blocks()[0]
    assert block.gate is not None
    before = block.gate.tobytes(), block.weight.tobytes()

    with torch.no_grad():
        head.gates[0].zero_()
        head.layers[0].weight.zero_()

    assert (block.gate.tobytes(), block.weight.tobytes()) == before
    assert block.bias is not None


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", HEADS)
def test_a_dropout_outside_its_range_is_refused(kind: Kind, dropout: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        make_head(8, HeadShape(kind=kind), skip_dropout=dropout)


@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_head_trains_to_the_weights_that_the_bare_formula_gives(bias: bool) -> None:
    """The gate is multiplied with the weights before the product, and the mask comes from the bits of whole numbers."""
    x = nn.functional.normalize(torch.randn(32, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    start, masks = torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    bare = nn.Module()
    bare.weights = nn.ParameterList(torch.randn(24, 24, generator=start) / 24**0.5 for _ in range(2))
    bare.gates = nn.ParameterList(torch.zeros(24) for _ in range(2))
    bare.biases = nn.ParameterList(torch.zeros(24) for _ in range(2 if bias else 0))

    def forward(x: Tensor) -> Tensor:
        for number in range(2):
            drawn = torch.empty(32 * 24 // 8, dtype=torch.int64).random_(-(2**63), None, generator=masks).numpy()
            keep = torch.from_numpy(np.frombuffer(drawn.tobytes(), dtype=np.uint8).reshape(32, 24) >= 102)  # 0.4 of 256
            branch = nn.functional.linear(x * keep / (1 - 102 / 256), bare.weights[number], bare.biases[number] if bias else None)
            x = x + bare.gates[number] * branch
        return x

    bare.forward = forward
    train(bare, x, steps=20)

    head = skip_head(24, blocks=2, bias=bias, skip_dropout=0.4, seed=5)
    train(head, x, steps=20)

    gates, weights, biases = parts(head)
    for found, expected in zip([*gates, *weights, *biases], [*bare.gates, *bare.weights, *bare.biases], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert float(gates[0].detach().abs().max()) > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.9999])
def test_dropout_drops_its_share_in_256ths_and_makes_up_for_it(dtype: torch.dtype, share: float) -> None:
    drop = SkipDropout(share, seed=3).train()
    x = torch.ones(1001, 203, dtype=dtype)  # no multiple of 8 numbers

    y, masked = drop(x), drop.masked(x)

    allowed = min(round(share * 256), 255) / 256
    assert drop.share == allowed
    for found, kept in ((y, 1 / (1 - allowed)), (masked, 1.0)):
        assert set(found.unique().tolist()) <= {0.0, torch.tensor(kept, dtype=dtype).item()}
        dropped = (found == 0).double().mean()
        assert abs(float(dropped) - allowed) <= 5 * math.sqrt(allowed * (1 - allowed) / x.numel())
    assert drop.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masks_are_uncorrelated_across_calls_rows_and_columns(dtype: torch.dtype) -> None:
    drop = SkipDropout(0.5, seed=3).train()
    first, second = (drop.masked(torch.ones(2000, 64, dtype=dtype)).float() - 0.5 for _ in range(2))

    for one, other in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first[:, 8:], first[:, :-8])):
        assert abs(float((4 * one * other).mean())) < 5 / math.sqrt(one.numel())


def test_what_is_dropped_gets_no_gradient_and_what_is_kept_its_own() -> None:
    x = torch.randn(50, 31, requires_grad=True)
    drop = SkipDropout(0.3, seed=1).train()

    y = drop.masked(x)
    (y * torch.arange(31.0)).sum().backward()

    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, torch.arange(31.0).expand(50, 31)))


def test_appended_parts_are_stationary_at_a_gate_of_0_and_leave_it_all_the_same(base: Tensor) -> None:
    head = skip_head(384, merge="concat")
    layer, true_gate = head.layers[0], torch.zeros(384, requires_grad=True)
    before = pull_together(head, base)
    pull_together(lambda x: torch.cat([x, true_gate * layer(x)], dim=1), base).backward()  # type: ignore[arg-type]
    before.backward()

    assert true_gate.grad is not None
    assert float(true_gate.grad.abs().max()) == 0  # squared in every cosine: nothing would ever train
    assert head.gates[0].grad is not None
    assert head.gates[0].grad.tolist() == [pytest.approx(-NUDGE)] * 384

    train(head, base, steps=30, lr=0.1)

    assert pull_together(head, base).item() < before.item() - 0.05


def test_an_open_gate_of_an_appended_part_has_its_true_gradient() -> None:
    head = opened(skip_head(6, merge="concat", blocks=2, bias=True))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))

    def plain(x: Tensor) -> Tensor:
        for gate, layer in zip(head.gates, head.layers, strict=True):
            x = torch.cat([x, gate * layer(x)], dim=1)
        return x

    found = torch.autograd.grad(pull_together(head, x), list(head.parameters()))
    expected = torch.autograd.grad(pull_together(plain, x), list(head.parameters()))  # type: ignore[arg-type]

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_where_the_loss_reads_the_appended_numbers_a_closed_gate_has_its_true_gradient() -> None:
    head = skip_head(4, merge="concat")
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    head(x)[:, 4:].sum().backward()

    np.testing.assert_allclose(head.gates[0].grad, head.layers[0](x).detach().sum(dim=0), rtol=1e-5)
