"""Shapes of heads: which there are, and what holds for a head of every one of them."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerogate.errors import CannotFold, ZerogateError
from zerogate.folded import FoldedHead
from zerogate.head_files import HEAD_FILE, DumpedHead, dump_head, load_head
from zerogate.head_shapes import HeadShape
from zerogate.heads import HEADS, Head, SkipHead, make_head

DIM = 8
ENCODER = "e" * 64


def every_shape() -> Iterator[HeadShape]:
    """All shapes of all registered kinds with up to three blocks."""
    norms, activations = ("none", "pre", "post"), ("none", "relu", "gelu", "tanh")
    for values in itertools.product(HEADS, (1, 2, 3), ("add", "concat"), norms, activations, (False, True)):
        try:
            yield HeadShape(*values)
        except ZerogateError:  # senseless for this kind
            continue


def name(shape: HeadShape) -> str:
    found = [shape.kind, str(shape.blocks), shape.merge, shape.norm, shape.activation, "bias" if shape.bias else "none"]
    return "-".join(part for part in found if part not in ("none", "add"))


SHAPES = list(every_shape())
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=name)


def unit_rows(count: int = 16, *, seed: int = 0) -> Tensor:
    return nn.functional.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def pull_together(y: Tensor) -> Tensor:
    """A loss of cosines: row 0 shall point where row 1 points, row 2 where row 3 points, and so on."""
    y = nn.functional.normalize(y, dim=1)
    return -(y[0::2] * y[1::2]).sum(dim=1).mean()


def trained(shape: HeadShape, *, seed: int = 0) -> Head:
    """A head that a few steps have led away from its start."""
    head = make_head(DIM, shape, skip_dropout=0.3, seed=seed).train()
    for _ in range(6 if list(head.parameters()) else 0):
        gradients = torch.autograd.grad(pull_together(head(unit_rows())), list(head.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(head.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient.sign())
    return head.eval()


def dumped(head: Head) -> DumpedHead:
    return dump_head(head.weights(), shape=head.shape, strength=1.0, encoder_fingerprint=ENCODER, facts={})


def outputs(head: Head, x: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = head(x).numpy()
    return found


def padded(x: Tensor, out_dim: int) -> Tensor:
    return nn.functional.pad(x, (0, out_dim - DIM))


def test_there_are_as_many_shapes_as_make_sense() -> None:
    layers = 3 * 3 * 4 * 2  # blocks, norms, activations, bias

    assert len(SHAPES) == 2 * layers + layers + 1 + 1  # skip with two merges, linear, gated, identity
    assert {shape.kind for shape in SHAPES} == HEADS.keys() == {"skip", "linear", "gated", "identity"}
    assert all(HEADS[shape.kind] is type(make_head(DIM, shape)) for shape in SHAPES)


@each_shape
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_head_gives_its_input_back_bit_for_bit_if_it_promises_to(shape: HeadShape, training: bool) -> None:
    x = unit_rows()
    head = make_head(DIM, shape, skip_dropout=0.4).train(training)

    for y in (outputs(head, x), head.served().raw(x.numpy())):
        assert y.shape == (16, shape.out_dim(DIM))
        kept = y[:, :DIM].tobytes() == x.numpy().tobytes() and not y[:, DIM:].any()
        assert kept == shape.is_identity_at_start == (shape.kind != "linear")


@each_shape
def test_a_trained_head_is_saved_and_loaded_and_gives_the_same_vectors(shape: HeadShape) -> None:
    head = trained(shape)
    files = dumped(head).files
    x = unit_rows(40, seed=1)
    y = outputs(head, x)

    found = load_head(files[HEAD_FILE], json.loads(files["manifest.json"]), encoder_fingerprint=ENCODER)

    assert (found.dim, found.out_dim) == (head.dim, head.out_dim) == (DIM, y.shape[1])
    assert found.raw(x.numpy()).tobytes() == head.served().raw(x.numpy()).tobytes()
    assert found.raw(x.numpy()).dtype == found.vectors(x.numpy()).dtype == np.float32
    np.testing.assert_allclose(found.raw(x.numpy()), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.vectors(x.numpy()), nn.functional.normalize(torch.from_numpy(y), dim=1), atol=1e-5)
    distance = np.abs(y - padded(x, head.out_dim).numpy()).max()
    assert distance > 0.01 if shape.kind != "identity" else distance == 0


@each_shape
def test_the_file_of_a_head_holds_a_header_and_numbers_and_no_room_for_a_pickle(shape: HeadShape) -> None:
    head = trained(shape)
    weights = dumped(head).files[HEAD_FILE]

    size = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:size])

    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert sum(4 * int(np.prod(entry["shape"])) for entry in header.values()) == len(weights) - size
    assert (header.keys() <= {"matrix", "offset"}) == shape.folds


@each_shape
def test_a_head_folds_into_one_matrix_or_says_that_it_cannot(shape: HeadShape) -> None:
    head = trained(shape)
    x = unit_rows(40, seed=1)

    if shape.norm == "none" and shape.activation == "none":
        y = outputs(head, x).astype(np.float64)
        error = np.linalg.norm(head.fold().raw(x.numpy()) - y, axis=1) / np.linalg.norm(y, axis=1)
        assert error.max() < 3e-6  # rows that three plain layers make short have the rounding of longer ones
        assert shape.folds
    else:
        with pytest.raises(CannotFold, match="does not fold into one matrix"):
            head.fold()
        assert not shape.folds


@each_shape
def test_the_dial_goes_from_the_encoder_to_the_head_on_a_straight_line(shape: HeadShape) -> None:
    head = trained(shape).served()
    x = unit_rows(40, seed=1)
    start, end = padded(x, head.out_dim).numpy(), head.raw(x.numpy())

    assert head.at_strength(0.0).raw(x.numpy()).tobytes() == start.tobytes()
    np.testing.assert_allclose(head.at_strength(1.0).raw(x.numpy()), end, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(head.at_strength(0.3).raw(x.numpy()), 0.7 * start + 0.3 * end, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        head.at_strength(0.6).at_strength(0.5).raw(x.numpy()), 0.7 * start + 0.3 * end, rtol=1e-5, atol=2e-6
    )


@each_shape
def test_gradients_reach_every_parameter_of_the_head_and_never_the_encoder(shape: HeadShape) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, DIM), nn.Tanh()).requires_grad_(requires_grad=False)
    before = [parameter.numpy().tobytes() for parameter in encoder.parameters()]
    tokens = torch.arange(32)
    head = make_head(DIM, shape, skip_dropout=0.2).train()
    names = dict(head.named_parameters())
    optimizer = torch.optim.AdamW([*head.parameters(), *encoder.parameters()], lr=0.01)

    reached = []
    for _ in range(2 if names else 0):
        optimizer.zero_grad()
        pull_together(head(nn.functional.normalize(encoder(tokens), dim=1))).backward()
        reached.append({one for one, parameter in names.items() if parameter.grad is not None and parameter.grad.any()})
        optimizer.step()

    if names:
        assert reached[0] == ({one for one in names if "gate" in one} if shape.is_identity_at_start else names.keys())
        assert reached[1] == names.keys()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert [parameter.numpy().tobytes() for parameter in encoder.parameters()] == before
    # An encoder that is opened does get gradients through the head: it is not the head that keeps them away.
    encoder.requires_grad_(requires_grad=True)
    pull_together(head(nn.functional.normalize(encoder(tokens), dim=1))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


@each_shape
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(shape: HeadShape) -> None:
    first, second, other = dumped(trained(shape)), dumped(trained(shape)), dumped(trained(shape, seed=1))

    assert first.files == second.files
    drawn = shape.kind in ("skip", "linear")
    assert (first.files[HEAD_FILE] != other.files[HEAD_FILE]) == drawn


@each_shape
def test_a_shape_comes_back_from_json_and_tells_what_it_can(shape: HeadShape) -> None:
    assert HeadShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape
    assert shape.out_dim(10) == make_head(10, shape).out_dim == (10 + 10 * shape.blocks if shape.merge == "concat" else 10)
    assert shape.can_average == (shape.merge == "add" and shape.norm == "none" and shape.activation == "none")


def test_a_shape_without_a_word_is_one_plain_skip_block() -> None:
    assert HeadShape.from_dict({}) == HeadShape() == HeadShape("skip", 1, "add", "none", "none", bias=False)
    assert list(HeadShape().to_dict()) == [one.name for one in fields(HeadShape)]


@pytest.mark.parametrize(
    ("values", "field", "allowed"),
    [
        ({"kind": "residual"}, "head.kind", "skip, gated, linear, identity"),
        ({"kind": ["skip"]}, "head.kind", "skip, gated, linear, identity"),
        ({"merge": "multiply"}, "head.merge", "add, concat"),
        ({"norm": None}, "head.norm", "none, pre, post"),
        ({"activation": "swish"}, "head.activation", "none, relu, gelu, tanh"),
        ({"blocks": 0}, "head.blocks", "1 to 8"),
        ({"blocks": 9}, "head.blocks", "1 to 8"),
        ({"blocks": 10**400}, "head.blocks", "1 to 8"),
        ({"blocks": 2.0}, "head.blocks", "whole number"),
        ({"blocks": True}, "head.blocks", "whole number"),
        ({"blocks": "2"}, "head.blocks", "whole number"),
        ({"bias": 1}, "head.bias", "true or false"),
        ({"kind": "gated", "merge": "concat"}, "head.merge", "'add' for kind 'gated'"),
        ({"kind": "gated", "blocks": 2}, "head.blocks", "1 for kind 'gated'"),
        ({"kind": "gated", "activation": "relu"}, "head.activation", "'none' for kind 'gated'"),
        ({"kind": "identity", "bias": True}, "head.bias", "False for kind 'identity'"),
        ({"kind": "identity", "norm": "pre"}, "head.norm", "'none' for kind 'identity'"),
        ({"kind": "linear", "merge": "concat"}, "head.merge", "'add' for kind 'linear'"),
        ({"layers": 2}, "'layers'", "kind, blocks, merge, norm, activation, bias"),
        ("skip", "'skip'", "kind, blocks, merge, norm, activation, bias"),
    ],
)
def test_what_is_no_shape_is_refused_with_field_and_allowed_values(values: Any, field: str, allowed: str) -> None:
    with pytest.raises(ZerogateError) as caught:
        HeadShape.from_dict(values)

    assert field in str(caught.value)
    assert allowed in str(caught.value)
    if isinstance(values, dict) and "layers" not in values:
        assert f"found {values[field.removeprefix('head.')]!r}" in str(caught.value)


@pytest.mark.parametrize("module", ["head_shapes", "folded", "stacked", "head_files"])
def test_what_serving_needs_imports_no_torch_and_scipy_only_for_gelu(module: str) -> None:
    code = f"import sys, zerogate.{module}; print(sorted({{'torch', 'sentence_transformers', 'scipy'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert found.stdout.strip() == "[]"


def test_a_class_takes_shapes_of_its_kind_only() -> None:
    with pytest.raises(ValueError, match="SkipHead is of kind 'skip', found a shape of kind 'gated'"):
        SkipHead(8, HeadShape(kind="gated"))


def test_a_gate_alone_scales_every_number_by_one_plus_it() -> None:
    head = make_head(3, HeadShape(kind="gated"))
    with torch.no_grad():
        next(head.parameters()).copy_(torch.tensor([0.5, -1.0, 0.0]))

    assert head(torch.tensor([[2.0, 3.0, 4.0]])).tolist() == [[3.0, 0.0, 4.0]]
    assert head.fold().matrix.tolist() == [[1.5, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_the_identity_has_nothing_to_train() -> None:
    head = make_head(8, HeadShape(kind="identity"), skip_dropout=0.5).train()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))

    assert list(head.parameters()) == []
    assert head(x) is x
    assert head.fold().matrix.tobytes() == FoldedHead.identity(8).matrix.tobytes()


def test_plain_layers_have_no_skip_and_drop_their_input() -> None:
    head = make_head(64, HeadShape(kind="linear"), skip_dropout=0.9)
    with torch.no_grad():
        next(head.parameters()).copy_(torch.eye(64))
    x = torch.rand(200, 64, generator=torch.Generator().manual_seed(0)) + 0.5

    y = head.train()(x)

    assert bool(((y == 0) ^ torch.isclose(y, x / (1 - 230 / 256))).all())
    assert 0.85 < float((y == 0).float().mean()) < 0.95
    assert torch.equal(head.eval()(x), x)


@pytest.mark.parametrize(
    ("shape", "named", "silent"),
    [
        (HeadShape(norm="pre"), ["norm 'pre'"], "activation"),
        (HeadShape(activation="gelu", blocks=2), ["activation 'gelu'"], "norm"),
        (HeadShape(kind="linear", norm="post", activation="tanh"), ["norm 'post'", "activation 'tanh'"], "'none'"),
    ],
)
def test_a_head_that_does_not_fold_says_what_keeps_it_from_it(shape: HeadShape, named: list[str], silent: str) -> None:
    with pytest.raises(CannotFold, match="does not fold into one matrix") as caught:
        make_head(8, shape).fold()

    assert all(name in str(caught.value) for name in named)
    assert silent not in str(caught.value)
