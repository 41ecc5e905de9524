"""The recipes that `recipe: "auto"` tries: a fixed, seeded list whose length depends on the size of the data."""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from zerogate.examples import Kind
from zerogate.recipe import LOSSES, Recipe

# (examples, trials): with fewer examples a fit costs less and says less, so more are tried.
_TRIALS: Final = ((2_000, 20), (5_000, 12), (20_000, 8))
_FEWEST_TRIALS: Final = 5
# A fit of a million pairs needs no sixty epochs: the sum of all examples seen is bounded.
_MOST_EXAMPLES_SEEN: Final = 3_000_000
_FEWEST_EPOCHS: Final = 2
# Losses that are worth a trial beside the default of the kind (docs/experiments.md).
_OTHER_LOSSES: Final[dict[Kind, tuple[str, ...]]] = {"groups": ("supervised_contrastive",)}
# How strongly to stay near the base, by kind: a loss over labels pulls whole groups of texts together, and needs a stronger hold.
_NEAR: Final[dict[Kind, tuple[float, ...]]] = {"groups": (10.0, 30.0, 60.0, 100.0)}
_USUAL_NEAR: Final = (0.0, 0.0, 3.0, 10.0)


def trial_recipes(kind: Kind, examples: int, *, seed: int, count: int = 0) -> list[Recipe]:
    """The recipes to try on a task of this kind with so many examples; the first is the default one.

    count: of the recipes; 0 leaves it to the number of examples. A longer list begins with the shorter one.
    """
    count = count or next((trials for below, trials in _TRIALS if examples < below), _FEWEST_TRIALS)
    draw = np.random.default_rng(seed)
    near = 30.0 if kind == "groups" else 0.0
    default = _sized(Recipe(seed=seed, stay_near_base=near), examples).for_kind(kind)
    return [default, *(_drawn(default, kind, draw, seed + number) for number in range(1, count))]


def default_recipe(kind: Kind, examples: int, *, seed: int) -> Recipe:
    """The recipe for who cannot search: all that follows from the kind and the size of the data."""
    return trial_recipes(kind, examples, seed=seed)[0]


def _drawn(default: Recipe, kind: Kind, draw: np.random.Generator, seed: int) -> Recipe:
    """A recipe around the default. Every number is drawn whatever the others are: a new option changes only itself."""
    losses = [name for name, kinds in LOSSES.items() if kind in kinds][:1] * 2 + list(_OTHER_LOSSES.get(kind, ()))
    chosen: dict[str, Any] = {
        "loss": str(draw.choice(losses)),
        "skip_dropout": float(draw.choice([0.2, 0.3, 0.4, 0.5, 0.6])),
        "learning_rate": float(draw.choice([5e-3, 1e-2, 2e-2])),
        "weight_decay": float(draw.choice([0.01, 0.1, 1.0])),
        "epochs": max(1, round(default.epochs * float(draw.choice([0.5, 0.75, 1.0])))),
        "stay_near_base": float(draw.choice(_NEAR.get(kind, _USUAL_NEAR))),
        "blocks": int(draw.choice([1, 1, 1, 2])),
    }
    usual = replace(default, loss=chosen["loss"], temperature=0.0, margin=0.0).for_kind(kind)
    chosen["temperature"] = min(1.0, usual.temperature * float(draw.choice([0.75, 1.0, 1.5, 2.0])))
    chosen["margin"] = usual.margin * float(draw.choice([0.5, 1.0, 1.5]))
    return replace(usual, seed=seed, **chosen)


def _sized(recipe: Recipe, examples: int) -> Recipe:
    most = max(_FEWEST_EPOCHS, _MOST_EXAMPLES_SEEN // max(1, examples))
    return replace(recipe, epochs=min(recipe.epochs, most))
