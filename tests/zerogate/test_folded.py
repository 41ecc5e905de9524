"""The folded head: one matrix that does what the blocks do, and its dial."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from zerogate.folded import Block, FoldedHead, unit_rows
from zerogate.head_shapes import HeadShape
from zerogate.heads import SkipHead

EVERY_HEAD = [(blocks, bias) for blocks in (1, 2, 3) for bias in (False, True)]


def unit_vectors(count: int, dim: int, *, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(count, dim))
    found: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return found


def trained_like(dim: int, *, seed: int = 0, size: float = 0.2, **shape: Any) -> SkipHead:
    """A head with the gates and biases that a training could have left."""
    head = SkipHead(dim, HeadShape(**shape), skip_dropout=0.4, seed=seed).eval()
    draw = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for gate in head.gates:
            gate.copy_(torch.randn(dim, generator=draw) * size)
        for layer in head.layers:
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(dim, generator=draw) / dim**0.5)
    return head


@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_the_folded_head_agrees_with_the_blocks(blocks: int, bias: bool) -> None:
    head = trained_like(384, blocks=blocks, bias=bias)
    x = unit_vectors(200, 384)

    with torch.inference_mode():
        expected = head(torch.from_numpy(x)).numpy()

    assert np.abs(head.fold().raw(x) - expected).max() < 1e-6
    assert np.abs(expected - x).max() > 0.01  # it is no identity that was compared


@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_the_folded_head_is_what_the_formula_gives_number_by_number(blocks: int, bias: bool) -> None:
    dim = 7
    draw = np.random.default_rng(blocks)
    parts = [
        Block(
            gate=draw.normal(size=dim).astype(np.float32),
            weight=draw.normal(size=(dim, dim)).astype(np.float32),
            bias=draw.normal(size=dim).astype(np.float32) if bias else None,
        )
        for _ in range(blocks)
    ]
    x = unit_vectors(3, dim)

    expected = []
    for row in x.tolist():
        for part in parts:
            g, W, b = part.gate.tolist(), part.weight.tolist(), [0.0] * dim if part.bias is None else part.bias.tolist()
            row = [row[i] + g[i] * (sum(W[i][j] * row[j] for j in range(dim)) + b[i]) for i in range(dim)]  # noqa: PLW2901
        expected.append(row)

    np.testing.assert_allclose(FoldedHead.fold(parts).raw(x), expected, rtol=1e-5, atol=1e-4 if blocks == 3 else 1e-5)


def test_there_is_no_offset_without_a_bias() -> None:
    assert trained_like(8, blocks=3, bias=False).fold().offset is None
    assert trained_like(8, blocks=1, bias=True).fold().offset is not None


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_fresh_head_folds_into_the_identity_bit_for_bit(blocks: int) -> None:
    folded = SkipHead(384, HeadShape(blocks=blocks, bias=True)).fold()
    x = unit_vectors(50, 384)

    assert folded.raw(x).tobytes() == x.tobytes()
    assert folded.matrix.tobytes() == FoldedHead.identity(384).matrix.tobytes()


def test_the_identity_gives_every_bit_back() -> None:
    x = unit_vectors(100, 384)

    assert FoldedHead.identity(384).raw(x).tobytes() == x.tobytes()


@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_strength_0_is_the_encoder_to_the_last_bit(blocks: int, bias: bool) -> None:
    x = unit_vectors(50, 64)

    found = trained_like(64, blocks=blocks, bias=bias).fold().at_strength(0.0).raw(x)

    assert found.tobytes() == x.tobytes()


@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_strength_1_is_the_head(blocks: int, bias: bool) -> None:
    x = unit_vectors(50, 64)
    folded = trained_like(64, blocks=blocks, bias=bias).fold()

    assert np.abs(folded.at_strength(1.0).raw(x) - folded.raw(x)).max() < 1e-7


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.5, 0.9, 1.2, 1.5])
@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_the_dial_moves_every_vector_on_a_straight_line(blocks: int, bias: bool, strength: float) -> None:
    x = unit_vectors(50, 64)
    folded = trained_like(64, blocks=blocks, bias=bias).fold()
    whole_way = folded.raw(x).astype(np.float64) - x

    found = folded.at_strength(strength).raw(x)

    np.testing.assert_allclose(found, x + strength * whole_way, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_dial_interpolates_the_folded_map_and_not_each_gate(blocks: int) -> None:
    head = trained_like(64, blocks=blocks, bias=False, size=0.8)
    x = unit_vectors(100, 64)
    gates_halved = FoldedHead.fold(
        [Block(0.5 * block.gate, block.weight, None) for block in head.blocks() if block.gate is not None]
    )

    cosines = (head.fold().at_strength(0.5).vectors(x) * gates_halved.vectors(x)).sum(axis=1)

    if blocks == 1:
        assert cosines.min() > 1 - 1e-6
    else:
        assert cosines.min() < 0.98


def test_vectors_are_the_raw_outputs_with_unit_rows() -> None:
    x = unit_vectors(100, 384)
    folded = trained_like(384, blocks=2, bias=True).fold()

    found = folded.vectors(x)

    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, normalize(folded.raw(x)), atol=1e-7)


def test_a_zero_row_stays_zero() -> None:
    x = unit_vectors(3, 16)
    x[1] = 0

    found = trained_like(16, blocks=2, bias=False).fold().vectors(x)

    assert found[1].tolist() == [0.0] * 16
    np.testing.assert_allclose(np.linalg.norm(found[[0, 2]], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("length", [1e-15, 1e-3, 1e3, 1e15])
def test_the_length_of_a_row_does_not_matter(length: float) -> None:
    x = unit_vectors(10, 16)

    np.testing.assert_allclose(unit_rows(x * np.float32(length)), x, atol=1e-6)


@pytest.mark.parametrize(("blocks", "bias"), EVERY_HEAD)
def test_blocks_that_append_fold_into_a_tall_matrix_number_by_number(blocks: int, bias: bool) -> None:
    dim = 5
    head = trained_like(dim, blocks=blocks, bias=bias, merge="concat", size=0.8)
    x = unit_vectors(3, dim)

    expected = []
    for row in x.tolist():
        for part in head.blocks():
            assert part.gate is not None
            g, W, b = part.gate.tolist(), part.weight.tolist(), [0.0] * dim if part.bias is None else part.bias.tolist()
            row = row + [g[i] * (sum(w * r for w, r in zip(W[i], row, strict=True)) + b[i]) for i in range(dim)]  # noqa: PLW2901
        expected.append(row)

    folded = head.fold()
    assert (folded.dim, folded.out_dim) == (dim, dim * (blocks + 1))
    np.testing.assert_allclose(folded.raw(x), expected, rtol=1e-5, atol=1e-6)


def test_plain_layers_fold_into_the_product_of_their_matrices() -> None:
    draw = np.random.default_rng(0)
    W, V, b, c = (draw.normal(size=size).astype(np.float32) for size in ((4, 4), (4, 4), 4, 4))

    folded = FoldedHead.fold([Block(None, W, b), Block(None, V, c)])

    assert folded.offset is not None
    np.testing.assert_allclose(folded.matrix, V.astype(np.float64) @ W, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(folded.offset, V.astype(np.float64) @ b + c, rtol=1e-5, atol=1e-6)


def test_a_tall_head_turned_down_to_0_gives_the_encoder_and_zeros() -> None:
    x = unit_vectors(10, 16)
    folded = trained_like(16, blocks=2, bias=True, merge="concat").fold()

    found = folded.at_strength(0.0).raw(x)
    halfway = folded.at_strength(0.5).raw(x)

    assert found[:, :16].tobytes() == x.tobytes()
    assert not found[:, 16:].any()
    np.testing.assert_allclose(halfway, (found.astype(np.float64) + folded.raw(x)) / 2, atol=1e-6)


def test_the_mean_of_heads_gives_the_mean_of_their_outputs() -> None:
    heads = [trained_like(32, blocks=blocks, bias=bias, seed=blocks).fold() for blocks, bias in EVERY_HEAD]
    x = unit_vectors(20, 32)

    found = FoldedHead.mean(heads)

    np.testing.assert_allclose(found.raw(x), np.mean([head.raw(x) for head in heads], axis=0, dtype=np.float64), atol=1e-6)
    assert found.matrix.dtype == np.float32
    assert found.offset is not None
    assert found.offset.dtype == np.float32


def test_the_mean_is_rounded_once() -> None:
    """Against exact fractions; adding up in float32 would lose the small numbers next to the large one."""
    draw = np.random.default_rng(0)
    matrices = [(draw.normal(size=(6, 6)) * size).astype(np.float32) for size in (1e4, 1.0, 1.0, 1e-3, 1e-3)]

    found = FoldedHead.mean([FoldedHead(matrix, None) for matrix in matrices]).matrix

    exact = [sum(Fraction(float(matrix.flat[place])) for matrix in matrices) / len(matrices) for place in range(36)]
    assert found.ravel().tolist() == [float(np.float32(float(one))) for one in exact]
    assert found.tobytes() != np.mean(matrices, axis=0, dtype=np.float32).tobytes()


def test_the_mean_of_one_head_is_that_head_and_heads_without_offset_have_none() -> None:
    head = trained_like(16, blocks=2, bias=True).fold()
    plain = [trained_like(16, blocks=1, bias=False, seed=seed).fold() for seed in (1, 2)]

    alone = FoldedHead.mean([head])

    assert alone.matrix.tobytes() == head.matrix.tobytes()
    assert alone.offset is not None
    assert head.offset is not None
    assert alone.offset.tobytes() == head.offset.tobytes()
    assert FoldedHead.mean(plain).offset is None


def test_heads_that_do_not_belong_together_have_no_mean() -> None:
    tall = trained_like(8, blocks=1, merge="concat").fold()

    with pytest.raises(ValueError, match="found none"):
        FoldedHead.mean([])
    with pytest.raises(ValueError, match="one dimension"):
        FoldedHead.mean([FoldedHead.identity(8), FoldedHead.identity(9)])
    with pytest.raises(ValueError, match="append numbers"):
        FoldedHead.mean([tall, tall])


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 63, 64, 65, 512, 513])
def test_few_rows_and_many_get_the_same_product(rows: int) -> None:
    draw = np.random.default_rng(rows)
    head = FoldedHead(draw.standard_normal((385, 300)).astype(np.float32), None)
    base = draw.standard_normal((rows, 300)).astype(np.float32)

    expected = base.astype(np.float64) @ head.matrix.astype(np.float64).T

    assert head.raw(base).shape == (rows, 385)
    assert np.abs(head.raw(base) - expected).max(initial=0.0) < 1e-4
