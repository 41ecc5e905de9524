"""The skip study's measurements against closed forms, naive twins and properties, on a tiny dataset of random vectors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import skip_study_depth as depth
from benchmarks import skip_study_measures as measures
from benchmarks import skip_study_plots as plots
from benchmarks import skip_study_stacks as stacks
from benchmarks.skip_study import Effort, rounded, study
from benchmarks.skip_study_depth import WIRINGS, Stack, Wiring
from benchmarks.skip_study_heads import (
    STARTS,
    Material,
    SigmoidGatedHead,
    held_out_loss,
    plain_identity,
    raw_of,
    score,
    steps_of,
    train,
    zero_gate,
)
from benchmarks.skip_study_tables import tables
from zerogate.evaluation import RetrievalTest
from zerogate.fitting import fit
from zerogate.folded import Block, FoldedHead, unit_rows
from zerogate.guard import make_guard
from zerogate.head_shapes import Activation, HeadShape
from zerogate.recipe import Recipe
from zerogate.stacked import StackedHead
from zerogate.task_parts import Rows
from zerogate.tasks import make_task
from zerogate.vectors import Vectors

DIM = 16
_LINEAR_AND_RELU: tuple[Activation, ...] = ("none", "relu")
PAGE = Path(__file__).parents[2] / "docs" / "skip-connections.md"
TINY = Effort(
    seeds=range(2),
    setting_seeds=range(1),
    fewer_seeds=range(1),
    epochs=2,
    rates=(1e-2,),
    dropouts=(0.0,),
    stack_epochs=2,
    depths=(1, 2),
    pairs=12,
    valley_pairs=12,
    directions=2,
)


@pytest.fixture(scope="module")
def material() -> Material:
    """100 queries; each document is its query, the query turned by one rotation, and noise: there is something to learn."""
    draw = np.random.default_rng(0)
    task = make_task(Rows("pairs", [{"anchor": f"query {n}", "positive": f"document {n}"} for n in range(100)]))
    turn = np.linalg.qr(draw.standard_normal((DIM, DIM)))[0]
    meant = {name.split()[1]: draw.standard_normal(DIM) for name in task.queries}
    queries = np.stack([meant[name.split()[1]] for name in task.queries])
    documents = np.stack([meant[name.split()[1]] for name in task.documents]) @ (0.4 * np.eye(DIM) + turn)
    documents += 0.3 * draw.standard_normal(documents.shape)
    scored = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "score": n / 24} for n in range(24)]
    guard = make_guard("scored", scored)
    texts = draw.standard_normal((len(guard.queries), DIM))
    return Material(
        task,
        Vectors(_units(queries), _units(documents)),
        guard,
        Vectors(_units(texts), np.empty((0, DIM), dtype=np.float32)),
    )


@pytest.fixture(scope="module")
def found(material: Material) -> dict[str, Any]:
    """A whole study."""
    measured: dict[str, Any] = rounded(study(material, TINY))
    return measured


def test_training_loop_gives_the_bytes_of_the_librarys_fit(material: Material) -> None:
    recipe = Recipe(epochs=5, batch_size=32, seed=3)
    head = zero_gate(DIM, recipe)
    train(head, material, recipe, on_step=lambda _step: None)

    fitted = fit(material.vectors, material.task.train, recipe).head

    assert np.array_equal(head.fold().matrix, fitted.fold().matrix)
    assert not np.array_equal(head.fold().matrix, np.eye(DIM))


def test_training_tells_every_step_and_the_end(material: Material) -> None:
    recipe = Recipe(epochs=3, batch_size=32)
    told: list[int] = []
    train(zero_gate(DIM, recipe), material, recipe, told.append)

    assert told == list(range(steps_of(material, recipe) + 1))


def test_sigmoid_gate_is_its_formula_in_torch_and_folded() -> None:
    head = SigmoidGatedHead(DIM, seed=1)
    x = _units(np.random.default_rng(1).standard_normal((5, DIM)))
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()

    expected = x + 1 / (1 + np.exp(4)) * (x @ weight.T + bias)

    assert np.allclose(raw_of(head)(x), expected, atol=1e-6)
    assert np.allclose(head.fold().raw(x), expected, atol=1e-6)


def test_held_out_loss_is_the_naive_one(material: Material) -> None:
    def raw(base: NDArray[np.float32]) -> NDArray[np.float32]:
        return base * np.linspace(0.5, 2, DIM, dtype=np.float32)

    queries, documents = unit_rows(raw(material.test.queries)), unit_rows(raw(material.test.documents))
    test = material.task.test.test
    assert isinstance(test, RetrievalTest)
    losses = []
    for query, relevant in zip(test.queries, test.relevant, strict=True):
        odds = [np.exp(float(queries[query] @ document) / 0.1) for document in documents]
        losses.append(-np.log(odds[relevant[0]] / sum(odds)))

    assert held_out_loss(raw, material, 0.1) == pytest.approx(np.mean(losses), rel=1e-4)


def test_only_zero_gate_and_identity_start_at_the_encoder(found: dict[str, Any]) -> None:
    heads = found["step_0"]["heads"]

    assert {name for name, one in heads.items() if one["bit_for_bit"]} == {"zero gate", "plain, identity start"}
    for name in ("zero gate", "plain, identity start"):
        assert set(heads[name]["mrr@10"]) == {found["step_0"]["encoder"]}
        assert heads[name]["moved"] == 0


def test_sigmoid_gate_moves_vectors_by_one_and_a_half_percent(found: dict[str, Any]) -> None:
    # W and b are uniform in +-1/sqrt(d): W x and b have the squared length 1/3 each, for a unit x.
    assert found["step_0"]["heads"]["gate sigmoid(-4)"]["moved"] == pytest.approx((2 / 3) ** 0.5 / (1 + np.exp(4)), rel=0.15)


def test_curves_start_where_step_0_found_the_heads(found: dict[str, Any]) -> None:
    assert found["training"]["steps"][0] == 0
    for name, curve in found["training"]["curves"].items():
        assert [row[0] for row in curve["mrr@10"]] == found["step_0"]["heads"][name]["mrr@10"]


def test_raw_gradient_of_two_linear_blocks_is_its_closed_form() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    stack = Stack(8, 2, Wiring("residual", gate=0.5), "none", seed=2)
    first, second = (weight.detach() for weight in stack.layers.parameters())
    probe = torch.randn(6, 8, generator=torch.Generator().manual_seed(10_007)) / 8**0.5

    # y = (I + W2 / 2) (x + g * W1 x), so with v = (I + W2 / 2)^T u: d/dW1 = g v x^T and d/dg = v * W1 x.
    arriving = probe @ (torch.eye(8) + 0.5 * second)
    of_weight = (0.5 * arriving).T @ x / 6
    of_gate = (arriving * (x @ first.T)).mean(dim=0)

    expected = (of_weight.square().sum() + of_gate.square().sum()).sqrt()
    assert depth.raw_gradient(stack, x, seed=7) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("activation", ["none", "tanh", "relu"])
def test_gradient_of_zero_gated_stack_does_not_depend_on_depth(activation: Activation) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    one, many = (depth.raw_gradient(Stack(8, n, WIRINGS["residual, gate 0"], activation, seed=2), x, seed=7) for n in (1, 32))

    assert one == many > 0


def test_gain_multiplies_the_raw_gradient_of_a_plain_stack_in_every_block() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    one, twice = (depth.raw_gradient(Stack(8, 5, Wiring("plain", gain=gain), "relu", seed=2), x, seed=7) for gain in (1, 2))

    assert twice == pytest.approx(2**4 * one, rel=1e-5)  # four blocks between the first and the output


def test_concat_stack_appends_gated_branches() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    stack = Stack(8, 2, Wiring("concat", gate=0.5), "relu", seed=2)
    first, second = stack.layers.parameters()

    once = torch.cat((x, 0.5 * torch.relu(x @ first.T)), dim=1)
    expected = torch.cat((once, 0.5 * torch.relu(once @ second.T)), dim=1)

    assert torch.allclose(stack(x), expected, atol=1e-6)


def test_loss_gradient_shrinks_as_the_weights_grow() -> None:
    # The loss does not change with the length of y, so its gradient goes with one over the length of W.
    x, y = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    one, thrice = (depth.loss_gradient(Stack(8, 1, Wiring("plain", gain=gain), "none", seed=2), x, y) for gain in (1, 3))

    assert thrice == pytest.approx(one / 3, rel=1e-4)


def test_mean_cosine_is_that_of_all_different_pairs() -> None:
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    stack = Stack(8, 2, WIRINGS["residual, gate 1"], "relu", seed=2)
    y = stack(x).detach().numpy()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]

    assert depth.mean_cosine(stack, x) == pytest.approx(np.mean(cosines), abs=1e-5)


def test_gradients_of_a_linear_stack_are_the_same_everywhere_and_those_of_relu_are_its_closed_form() -> None:
    first, second = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    pair = first, second
    linear, relu = (Stack(8, 1, Wiring("plain"), activation, seed=2) for activation in _LINEAR_AND_RELU)
    (weight,) = (one.detach() for one in relu.layers.parameters())
    probe = torch.randn(8, generator=torch.Generator().manual_seed(10_000))
    one, other = ((probe * (x @ weight.T > 0)) @ weight for x in pair)

    assert depth.input_coherence(linear, pair) == pytest.approx(1, abs=1e-6)
    expected = float(torch.nn.functional.cosine_similarity(one, other, dim=1).mean())
    assert depth.input_coherence(relu, pair) == pytest.approx(expected, abs=1e-5)


def test_taking_a_block_out_leaves_the_product_of_the_others() -> None:
    blocks = tuple(_random_blocks(3, gate=None))
    stack = StackedHead(HeadShape(kind="linear", blocks=3), blocks)
    x = _units(np.random.default_rng(2).standard_normal((4, DIM)))

    assert np.allclose(stacks.without_block(stack, 1).raw(x), x @ blocks[0].weight.T @ blocks[2].weight.T, atol=1e-5)


def test_taking_out_a_closed_block_changes_nothing(material: Material) -> None:
    opened, closed = (next(_random_blocks(1, gate=gate)) for gate in (0.7, 0.0))
    stack = StackedHead(HeadShape(blocks=2, activation="relu"), (opened, closed))

    (measured,) = stacks.dropping(material, {"one": [stack]}).values()

    assert measured["without"][0][1] == measured["whole"][0] == score(stack.raw, material)
    assert measured["without"][0][0] != measured["whole"][0]


def test_directions_have_rows_as_long_as_those_of_the_weights() -> None:
    stack = StackedHead(HeadShape(blocks=2), tuple(_random_blocks(2, gate=0.3)))
    for direction, block in zip(stacks.random_direction(stack, seed=1), stack.blocks, strict=True):
        assert np.allclose(np.linalg.norm(direction, axis=1), np.linalg.norm(block.weight, axis=1), rtol=1e-5)
        assert not np.allclose(direction, block.weight)


def test_walking_back_by_the_weights_themselves_leaves_the_skip_path() -> None:
    stack = StackedHead(HeadShape(blocks=2), tuple(_random_blocks(2, gate=0.3)))
    x = _units(np.random.default_rng(2).standard_normal((4, DIM)))

    assert np.array_equal(stacks.moved(stack, [block.weight for block in stack.blocks], -1.0).raw(x), x)


def test_a_valley_is_measured_around_its_bottom(found: dict[str, Any]) -> None:
    bottom = found["valleys"]["distances"].index(0.0)
    for rows in found["valleys"]["loss"].values():
        assert len({row[bottom] for row in rows}) == 1  # the same place in all directions
        assert len({row[0] for row in rows}) == len(rows)


def test_dial_at_0_is_the_encoder_and_forgets_nothing(material: Material) -> None:
    heads = [FoldedHead(_units(np.random.default_rng(seed).standard_normal((DIM, DIM))), None) for seed in (1, 2)]
    turned = measures.dial(material, heads, [0.0, 1.0])

    for curve in (*turned["heads"]["mrr@10"], turned["mean"]["mrr@10"]):
        assert curve[0] == turned["encoder"] != curve[1]
    for curve in (*turned["heads"]["forgetting"], turned["mean"]["forgetting"]):
        assert curve[0] == 0 != curve[1]
    assert turned["mean"]["low"][1] <= turned["mean"]["forgetting"][1] <= turned["mean"]["high"][1]


def test_a_start_leads_its_worse_twin_by_the_difference_of_their_scores(material: Material) -> None:
    recipe = Recipe(epochs=20, batch_size=32)
    starts = {name: STARTS[name] for name in ("zero gate", "plain, random start")}
    curves = measures.over_training(material, recipe, starts, seeds=(0, 1), at=(steps_of(material, recipe),))
    lead = measures.leads(material, curves, "zero gate")["plain, random start"]

    ends = [np.mean(curve.scores) for curve in curves.values()]
    assert lead["difference"] == pytest.approx(ends[0] - ends[1], abs=0.02)  # folded in fp32: a tie may fall the other way
    assert lead["low"] <= lead["difference"] <= lead["high"]


def test_every_start_learns_the_rotation(material: Material) -> None:
    recipe = Recipe(epochs=150, batch_size=32, skip_dropout=0.0)
    for start in (zero_gate, plain_identity):
        head = start(DIM, recipe)
        before = score(raw_of(head), material)
        train(head, material, recipe)
        assert score(raw_of(head), material) > 1.5 * before > 0


def test_same_study_twice_gives_the_same_numbers(material: Material, found: dict[str, Any]) -> None:
    assert rounded(study(material, TINY)) == found


def test_pictures_are_drawn_with_named_axes_and_lines_that_differ(found: dict[str, Any], tmp_path: Path) -> None:
    plots.draw(found, tmp_path)

    drawn = plots._pictures(found)
    assert {path.stem for path in tmp_path.iterdir()} == set(drawn)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000
    for figure in drawn.values():
        assert figure.axes[-1].get_xlabel()
        assert figure.axes[0].get_ylabel() or any(label.get_text() for label in figure.axes[0].get_yticklabels())
        looks = list(_named_looks(figure))
        assert len(looks) == len(set(looks))


def test_numbers_of_the_page_are_those_that_were_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    measured = json.loads((PAGE.parent / "pictures" / "skip_study.json").read_text(encoding="utf-8"))
    lines = set(page.splitlines())

    assert [line for line in tables(measured).splitlines() if line not in lines] == []
    for name in plots._pictures(measured):
        assert f"(pictures/{name}.png)" in page
        assert (PAGE.parent / "pictures" / f"{name}.png").is_file()


def _named_looks(figure: Figure) -> Iterator[tuple[int, str, str, str]]:
    for number, axes in enumerate(figure.axes):
        for line in axes.get_lines():
            if not str(line.get_label()).startswith("_"):
                yield number, str(line.get_color()), str(line.get_linestyle()), str(line.get_marker())


def _random_blocks(count: int, *, gate: float | None) -> Iterator[Block]:
    draw = np.random.default_rng(5)
    for _ in range(count):
        weight = draw.standard_normal((DIM, DIM)).astype(np.float32)
        yield Block(None if gate is None else np.full(DIM, gate, dtype=np.float32), weight, None)


def _units(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return unit_rows(rows.astype(np.float32))
