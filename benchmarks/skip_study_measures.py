"""What the skip study measures of heads with one block: where they start, the way from there, and the dial."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from benchmarks.skip_study_heads import STARTS, Material, Start, evaluate, held_out_loss, raw_of, score, train
from zerogate.bootstrap import compare_means
from zerogate.folded import FoldedHead, ServedHead
from zerogate.guard import Forgetting, forgetting
from zerogate.head_shapes import HeadShape
from zerogate.heads import make_head
from zerogate.recipe import Recipe
from zerogate.sides import tuned_vectors


def random_mlp(dim: int, recipe: Recipe) -> nn.Module:
    """Linear, gelu, linear: what is often put on top of an encoder."""
    first = make_head(dim, HeadShape(kind="linear", activation="gelu"), seed=recipe.seed)
    return nn.Sequential(first, make_head(dim, HeadShape(kind="linear"), seed=recipe.seed + 1_000))


def step_0(material: Material, seeds: Sequence[int]) -> dict[str, Any]:
    """Held-out MRR@10 of fresh heads; how far they move a vector, |y - x| / |x|; whether they give it back bit for bit."""
    base = material.test.queries
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
    return {"encoder": material.task.test.test.evaluate(material.test).scores["mrr@10"], "heads": heads}


@dataclass(frozen=True)
class Curve:
    """One start: held-out MRR@10 and loss after each number of steps, a row for each seed; and the trained heads."""

    scores: list[list[float]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    heads: list[FoldedHead] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"mrr@10": self.scores, "loss": self.losses}


def over_training(
    material: Material, recipe: Recipe, starts: dict[str, Start], *, seeds: Sequence[int], at: Sequence[int]
) -> dict[str, Curve]:
    """Train every start with every seed, and test after so many steps."""
    found = {name: Curve() for name in starts}
    for name, start in starts.items():
        for seed in seeds:
            _train_and_test(found[name], start, material, replace(recipe, seed=seed), at)
    return found


def _train_and_test(curve: Curve, start: Start, material: Material, recipe: Recipe, at: Sequence[int]) -> None:
    head = start(material.dim, recipe)
    raw, temperature = raw_of(head), recipe.for_kind(material.task.kind).temperature
    scores: list[float] = []
    losses: list[float] = []

    def test(step: int) -> None:
        if step in at:
            scores.append(score(raw, material))
            losses.append(held_out_loss(raw, material, temperature))

    train(head, material, recipe, test)
    curve.scores.append(scores)
    curve.losses.append(losses)
    curve.heads.append(head.fold())


def leads(material: Material, curves: dict[str, Curve], of: str) -> dict[str, dict[str, float]]:
    """By how much the trained heads of one start beat those of each other one: MRR@10 with the paired 95 % interval.

    Each test query counts with its mean over the seeds, so the interval is that of the queries.
    """
    items = {
        name: np.mean([evaluate(head.raw, material).per_item["mrr@10"] for head in curve.heads], axis=0)
        for name, curve in curves.items()
    }
    compared = {name: compare_means(one, items[of]) for name, one in items.items() if name != of}
    return {name: {"difference": one.difference, "low": one.low, "high": one.high} for name, one in compared.items()}


def settings(
    material: Material, recipe: Recipe, *, rates: Sequence[float], dropouts: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Held-out MRR@10 of two starts at other learning rates and shares of skip dropout, a number for each seed.

    The recipe's defaults were chosen for the zero gate: this is the same choice for the plain layer.
    """
    found = []
    for name, rate, dropout in product(("zero gate", "plain, identity start"), rates, dropouts):
        scores = []
        for seed in seeds:
            seeded = replace(recipe, seed=seed, learning_rate=rate, skip_dropout=dropout)
            head = STARTS[name](material.dim, seeded)
            train(head, material, seeded)
            scores.append(score(raw_of(head), material))
        found.append({"head": name, "learning_rate": rate, "skip_dropout": dropout, "mrr@10": scores})
    return found


def dial(material: Material, heads: Sequence[FoldedHead], strengths: Sequence[float]) -> dict[str, Any]:
    """Held-out MRR@10 and forgetting on the reporting half of the guard over the strength: of each head, and of their mean."""
    mean = FoldedHead.mean(heads)
    lost = [_forgetting(material, mean.at_strength(strength)) for strength in strengths]
    return {
        "strengths": list(strengths),
        "encoder": material.task.test.test.evaluate(material.test).scores["mrr@10"],
        "heads": {
            "mrr@10": [[score(head.at_strength(s).raw, material) for s in strengths] for head in heads],
            "forgetting": [
                [_guard_score(material, None) - _guard_score(material, h.at_strength(s)) for s in strengths] for h in heads
            ],
        },
        "mean": {
            "mrr@10": [score(mean.at_strength(s).raw, material) for s in strengths],
            "forgetting": [one.value for one in lost],
            "low": [one.low for one in lost],
            "high": [one.high for one in lost],
        },
    }


def _forgetting(material: Material, head: ServedHead) -> Forgetting:
    tuned = tuned_vectors(material.guard_vectors, head, query_only=False)
    return forgetting(material.guard.reporting.evaluate(material.guard_vectors), material.guard.reporting.evaluate(tuned))


def _guard_score(material: Material, head: ServedHead | None) -> float:
    vectors = material.guard_vectors
    return material.guard.reporting.evaluate(vectors if head is None else tuned_vectors(vectors, head, query_only=False)).value
