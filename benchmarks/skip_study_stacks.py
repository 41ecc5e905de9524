"""What the skip study does to trained stacks of eight blocks: take one out, and walk away from where training ended."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.skip_study_heads import Material, Raw, Start, plain_identity, plain_random, score, train, zero_gate
from zerogate.folded import Block, unit_rows
from zerogate.heads import LinearHead, SkipHead
from zerogate.losses.contrastive import contrastive, same_pairs
from zerogate.recipe import Recipe
from zerogate.stacked import StackedHead
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

STACK: Final = Recipe(blocks=8, skip_dropout=0.0, epochs=20)
# Start, activation and learning rate. At the default rate plain stacks of eight blocks hardly train: they get a tenth of it.
STACKS: Final[dict[str, tuple[Start, str, float]]] = {
    "residual": (zero_gate, "none", 1e-2),
    "plain, random start": (plain_random, "none", 1e-3),
    "plain, identity start": (plain_identity, "none", 1e-3),
    "residual, relu": (zero_gate, "relu", 1e-2),
    "plain, random start, relu": (plain_random, "relu", 1e-3),
}


def trained_stacks(material: Material, recipe: Recipe, seeds: Sequence[int]) -> dict[str, list[StackedHead]]:
    """The stacks of `STACKS`, trained with every seed; activation and learning rate are theirs, all else is the recipe's."""
    found: dict[str, list[StackedHead]] = {}
    for name, (start, activation, rate) in STACKS.items():
        for seed in seeds:
            seeded = replace(recipe, activation=activation, learning_rate=rate, seed=seed)
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
