"""What the skip study measures on real vectors: the start, the way from there, lost blocks, valleys, and the dial."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.skip_study_heads import (
    STARTS,
    Material,
    Raw,
    Start,
    held_out_loss,
    plain_identity,
    plain_random,
    raw_of,
    score,
    train,
    zero_gate,
)
from zerogate.folded import Block, FoldedHead, ServedHead, unit_rows
from zerogate.guard import forgetting
from zerogate.head_shapes import HeadShape
from zerogate.heads import LinearHead, SkipHead, make_head
from zerogate.losses.contrastive import contrastive, same_pairs
from zerogate.recipe import Recipe
from zerogate.sides import tuned_vectors
from zerogate.stacked import StackedHead
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

# At the default rate of 0.01 plain stacks of eight blocks do not train at all; skip stacks do not mind a tenth of it.
STACK: Final = Recipe(blocks=8, learning_rate=1e-3, skip_dropout=0.0, epochs=20)
STACKS: Final[dict[str, tuple[Start, str]]] = {
    "residual": (zero_gate, "none"),
    "plain, random start": (plain_random, "none"),
    "plain, identity start": (plain_identity, "none"),
    "residual, relu": (zero_gate, "relu"),
    "plain, random start, relu": (plain_random, "relu"),
}


def random_mlp(dim: int, recipe: Recipe) -> nn.Module:
    """Linear, gelu, linear: what is often put on top of an encoder."""
    first = make_head(dim, HeadShape(kind="linear", activation="gelu"), seed=recipe.seed)
    return nn.Sequential(first, make_head(dim, HeadShape(kind="linear"), seed=recipe.seed + 1_000))


def step_0(material: Material, seeds: Sequence[int]) -> dict[str, Any]:
    """Held-out MRR@10 of fresh heads; how far they move a vector, |y - x| / |x|; whether they give it back bit for bit."""
    base = material.test.queries
    encoder = material.task.test.test.evaluate(material.test).scores["mrr@10"]
    made: dict[str, Callable[[int, Recipe], nn.Module]] = {**STARTS, "gelu MLP, random start": random_mlp}
    heads: dict[str, Any] = {}
    for name, start in made.items():
        raws = [raw_of(start(material.dim, Recipe(seed=seed))) for seed in seeds]
        outputs = [raw(base) for raw in raws]
        heads[name] = {
            "mrr@10": [score(raw, material) for raw in raws],
            "moved": float(np.mean([np.linalg.norm(y - base, axis=1) for y in outputs])),
            "bit_for_bit": all(np.array_equal(y, base) for y in outputs),
        }
    return {"encoder": encoder, "heads": heads}


@dataclass(frozen=True)
class Trained:
    """curves: by head the held-out MRR@10 and loss at `steps`, a row for each seed. heads: the trained ones, by name."""

    steps: list[int]
    curves: dict[str, dict[str, list[list[float]]]]
    heads: dict[str, list[FoldedHead]]

    def to_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "curves": self.curves}


def over_training(material: Material, recipe: Recipe, starts: dict[str, Start], seeds: Sequence[int], at: Sequence[int]) -> Trained:
    """Train every start with every seed, and test after so many steps; `at` must end with the last step."""
    temperature = recipe.for_kind(material.task.kind).temperature
    found = Trained(list(at), {name: {"mrr@10": [], "loss": []} for name in starts}, {name: [] for name in starts})
    for name, start in starts.items():
        for seed in seeds:
            seeded = replace(recipe, seed=seed)
            head = start(material.dim, seeded)
            raw, scores, losses = raw_of(head), [], []  # type: ignore[var-annotated]

            def test(step: int, raw: Raw = raw, scores: list[float] = scores, losses: list[float] = losses) -> None:
                if step in at:
                    scores.append(score(raw, material))
                    losses.append(held_out_loss(raw, material, temperature))

            train(head, material, seeded, test)
            found.curves[name]["mrr@10"].append(scores)
            found.curves[name]["loss"].append(losses)
            found.heads[name].append(head.fold())
    return found


def without_dropout(material: Material, recipe: Recipe, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Held-out MRR@10 after training without skip dropout, by start, a number for each seed."""
    found: dict[str, list[float]] = {}
    for name in ("zero gate", "plain, identity start"):
        for seed in seeds:
            seeded = replace(recipe, seed=seed, skip_dropout=0.0)
            head = STARTS[name](material.dim, seeded)
            train(head, material, seeded)
            found.setdefault(name, []).append(score(raw_of(head), material))
    return found


def trained_stacks(material: Material, recipe: Recipe, seeds: Sequence[int]) -> dict[str, list[StackedHead]]:
    """The stacks of `STACKS`, trained with every seed."""
    found: dict[str, list[StackedHead]] = {}
    for name, (start, activation) in STACKS.items():
        for seed in seeds:
            seeded = replace(recipe, activation=activation, seed=seed)
            head = start(material.dim, seeded)
            train(head, material, seeded)
            assert isinstance(head, SkipHead | LinearHead)
            found.setdefault(name, []).append(StackedHead(head.shape, tuple(head.blocks())))
    return found


def dropping(material: Material, stacks: dict[str, list[StackedHead]]) -> dict[str, Any]:
    """Held-out MRR@10 of trained stacks, whole and without each of their blocks; a row for each seed. After Veit et al. 2016."""
    return {
        name: {
            "whole": [score(stack.raw, material) for stack in trained],
            "without": [
                [score(without_block(stack, number).raw, material) for number in range(len(stack.blocks))] for stack in trained
            ],
        }
        for name, trained in stacks.items()
    }


def without_block(stack: StackedHead, number: int) -> StackedHead:
    """The stack with one block taken out: what came into it goes on to the next."""
    left = (*stack.blocks[:number], *stack.blocks[number + 1 :])
    return replace(stack, shape=replace(stack.shape, blocks=len(left)), blocks=left)


def valleys(
    material: Material, stacks: dict[str, list[StackedHead]], *, pairs: int, directions: int, distances: Sequence[float]
) -> dict[str, Any]:
    """The training loss around what training found, along random directions; a row for each. After Li et al. 2018.

    A direction has a row of its own length for every row of every W ("filter normalisation"); gates stay. At distance 1 every row
    of W has been changed by as much as it is long. pairs: so many training pairs, in one batch, make the loss.
    """
    examples = material.task.train
    assert isinstance(examples, PairExamples)
    chosen = examples.pairs[:pairs]
    base = Vectors(material.vectors.queries[chosen[:, 0]], material.vectors.documents[chosen[:, 1]])
    ids = torch.from_numpy(chosen)
    same = same_pairs(ids[:, 0], ids[:, 1])
    temperature = STACK.for_kind(material.task.kind).temperature

    def loss(raw: Raw) -> float:
        first, second = (torch.from_numpy(unit_rows(raw(side))) for side in (base.queries, base.documents))
        return float(contrastive(first, second, temperature=temperature, same=same))

    found: dict[str, Any] = {"distances": list(distances), "loss": {}}
    for name, trained in stacks.items():
        drawn = [random_direction(trained[0], seed=10_000 + number) for number in range(directions)]
        found["loss"][name] = [[loss(moved(trained[0], one, far).raw) for far in distances] for one in drawn]
    return found


def random_direction(stack: StackedHead, *, seed: int) -> list[NDArray[np.float32]]:
    """For every block a random matrix of W's shape, each row as long as W's."""
    draw = np.random.default_rng(seed)
    found = []
    for block in stack.blocks:
        direction = unit_rows(draw.standard_normal(block.weight.shape).astype(np.float32))
        found.append(direction * np.linalg.norm(block.weight, axis=1, keepdims=True))
    return found


def moved(stack: StackedHead, direction: Sequence[NDArray[np.float32]], distance: float) -> StackedHead:
    """The stack with W + distance * direction in every block."""
    blocks = [
        Block(block.gate, block.weight + np.float32(distance) * step, block.bias)
        for block, step in zip(stack.blocks, direction, strict=True)
    ]
    return replace(stack, blocks=tuple(blocks))


def dial(material: Material, heads: Sequence[FoldedHead], strengths: Sequence[float]) -> dict[str, Any]:
    """Held-out MRR@10 and Spearman on the reporting half of the guard over the strength: of each head, and of their mean."""
    mean = FoldedHead.mean(heads)
    rows = [_dial_of(material, head, strengths) for head in (*heads, mean)]
    reporting = material.guard.reporting
    lost = forgetting(
        reporting.evaluate(material.guard_vectors),
        reporting.evaluate(tuned_vectors(material.guard_vectors, mean, query_only=False)),
    )
    return {
        "strengths": list(strengths),
        "encoder": {
            "mrr@10": material.task.test.test.evaluate(material.test).scores["mrr@10"],
            "guard": reporting.evaluate(material.guard_vectors).value,
        },
        "heads": {"mrr@10": [row[0] for row in rows[:-1]], "guard": [row[1] for row in rows[:-1]]},
        "mean": {"mrr@10": rows[-1][0], "guard": rows[-1][1]},
        "forgetting_of_mean_at_1": lost.to_dict(),
    }


def _dial_of(material: Material, head: ServedHead, strengths: Sequence[float]) -> tuple[list[float], list[float]]:
    weaker = [head.at_strength(strength) for strength in strengths]
    guard = [
        material.guard.reporting.evaluate(tuned_vectors(material.guard_vectors, one, query_only=False)).value for one in weaker
    ]
    return [score(one.raw, material) for one in weaker], guard
