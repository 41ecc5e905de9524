"""Heads that do not fold, in numpy: number by number what their formula says, and what torch computes."""

import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zerogate.folded import Block, FoldedHead
from zerogate.head_shapes import Activation, HeadShape, Merge, Norm
from zerogate.stacked import NORM_EPSILON, StackedHead, layer_norm

DIM = 5
MERGES: tuple[Merge, ...] = ("add", "concat")
NORMS: tuple[Norm, ...] = ("none", "pre", "post")
ACTIVATIONS: dict[Activation, Callable[[float], float]] = {
    "none": lambda z: z,
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * statistics.NormalDist().cdf(z),
    "tanh": math.tanh,
}

Rows = NDArray[np.float32]


def drawn(*size: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def some_head(shape: HeadShape) -> StackedHead:
    blocks = []
    for number in range(shape.blocks):
        inputs = DIM * (number + 1) if shape.merge == "concat" else DIM
        gate = drawn(DIM, seed=number) if shape.kind == "skip" else None
        bias = drawn(DIM, seed=20 + number) if shape.bias else None
        blocks.append(Block(gate, drawn(DIM, inputs, seed=10 + number), bias))
    return StackedHead(shape, tuple(blocks))


def normed(row: list[float]) -> list[float]:
    mean, deviation = statistics.fmean(row), math.sqrt(statistics.pvariance(row) + NORM_EPSILON)
    return [(number - mean) / deviation for number in row]


def naive(head: StackedHead, row: list[float]) -> list[float]:
    """One row through all blocks with loops and the standard library."""
    shape = head.shape
    for block in head.blocks:
        read = normed(row) if shape.norm == "pre" else row
        W, b = block.weight.tolist(), [0.0] * DIM if block.bias is None else block.bias.tolist()
        out = [ACTIVATIONS[shape.activation](sum(w * r for w, r in zip(W[i], read, strict=True)) + b[i]) for i in range(DIM)]
        out = normed(out) if shape.norm == "post" else out
        if block.gate is None:
            row = out
        else:
            gated = [g * o for g, o in zip(block.gate.tolist(), out, strict=True)]
            row = row + gated if shape.merge == "concat" else [r + o for r, o in zip(row, gated, strict=True)]
    return row


@pytest.mark.parametrize(("merge", "norm", "activation"), list(itertools.product(MERGES, NORMS, ACTIVATIONS)))
@pytest.mark.parametrize("bias", [False, True])
def test_skip_blocks_are_what_the_formula_gives(merge: Merge, norm: Norm, activation: Activation, bias: bool) -> None:
    head = some_head(HeadShape(blocks=2, merge=merge, norm=norm, activation=activation, bias=bias))
    x = drawn(4, DIM, seed=30)

    found = head.raw(x)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [naive(head, row) for row in x.tolist()], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("norm", "activation"), list(itertools.product(NORMS, ACTIVATIONS)))
def test_plain_layers_are_what_the_formula_gives(norm: Norm, activation: Activation) -> None:
    head = some_head(HeadShape(kind="linear", blocks=3, norm=norm, activation=activation, bias=True))
    x = drawn(4, DIM, seed=30)

    np.testing.assert_allclose(head.raw(x), [naive(head, row) for row in x.tolist()], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [HeadShape(blocks=2, bias=True), HeadShape(blocks=3, merge="concat"), HeadShape(kind="linear")])
def test_without_norm_and_activation_it_is_the_folded_head(shape: HeadShape) -> None:
    head = some_head(shape)
    x = drawn(6, DIM, seed=30)

    np.testing.assert_allclose(head.raw(x), FoldedHead.fold(head.blocks, merge=shape.merge).raw(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_an_activation_is_torchs_own_over_its_whole_range(activation: Activation) -> None:
    z = np.linspace(-12, 12, 4001, dtype=np.float32)[:, None]
    one_number = StackedHead(HeadShape(kind="linear", activation=activation), (Block(None, np.ones((1, 1), np.float32), None),))
    torchs = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[activation]

    np.testing.assert_allclose(one_number.raw(z), torchs(torch.from_numpy(z)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 384, 4096])
def test_layer_norm_is_torchs_and_takes_unit_rows_for_what_they_are(dim: int) -> None:
    x = drawn(20, dim)
    x /= np.linalg.norm(x, axis=1, keepdims=True)

    found = layer_norm(x)

    np.testing.assert_allclose(
        found, torch.nn.functional.layer_norm(torch.from_numpy(x), (dim,), eps=NORM_EPSILON), rtol=1e-4, atol=1e-5
    )
    # The deviation is 1: epsilon is small beside the variance of a unit row, 1/dim, which 1e-5 would not be.
    np.testing.assert_allclose(found.std(axis=1), 1, rtol=1e-3)


def test_a_row_of_equal_numbers_is_normed_to_zeros_and_its_rounding_is_not_blown_up() -> None:
    np.testing.assert_allclose(layer_norm(np.full((2, 7), 0.1, np.float32)), np.zeros((2, 7)), atol=1e-3)


@pytest.mark.parametrize("merge", MERGES)
def test_norms_leave_the_skip_path_alone(merge: Merge) -> None:
    x = drawn(4, DIM, seed=30) * 100 + 7  # far from what a layer norm would give

    for norm in NORMS:
        head = some_head(HeadShape(merge=merge, norm=norm))
        closed = StackedHead(head.shape, tuple(Block(np.zeros(DIM, np.float32), one.weight, one.bias) for one in head.blocks))
        assert closed.raw(x)[:, :DIM].tobytes() == x.tobytes()


@pytest.mark.parametrize("merge", MERGES)
def test_the_dial_multiplies_and_the_vectors_have_unit_rows(merge: Merge) -> None:
    head = some_head(HeadShape(blocks=2, merge=merge, norm="pre", activation="gelu"))
    x = drawn(6, DIM, seed=30)
    start = np.hstack([x, np.zeros((6, head.out_dim - DIM))])

    found = head.at_strength(0.5).at_strength(0.4)

    assert found.strength == pytest.approx(0.2)
    np.testing.assert_allclose(found.raw(x), start + 0.2 * (head.raw(x).astype(np.float64) - start), rtol=1e-5, atol=1e-5)
    assert head.at_strength(0.0).raw(x).tobytes() == start.astype(np.float32).tobytes()
    vectors = found.vectors(x).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors * np.linalg.norm(found.raw(x), axis=1, keepdims=True), found.raw(x), rtol=1e-5, atol=1e-6)


def test_the_base_vectors_are_not_changed() -> None:
    x = drawn(4, DIM, seed=30)
    before = x.tobytes()

    some_head(HeadShape(norm="pre", activation="relu", blocks=2)).at_strength(0.5).vectors(x)

    assert x.tobytes() == before
