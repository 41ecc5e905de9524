"""The list of recipes that a search tries: seeded, valid for its kind, and shorter the more there is to fit."""

from itertools import pairwise

import pytest

from zerogate.examples import Kind
from zerogate.recipe import LOSSES, Recipe
from zerogate.trials import default_recipe, trial_recipes

KINDS: tuple[Kind, ...] = ("pairs", "triplets", "queries", "scored", "groups")
SIZES = (8, 100, 2_000, 3_000, 6_000, 30_000, 200_000, 3_000_000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_recipe_is_ready_for_its_kind(kind: Kind, size: int) -> None:
    for recipe in trial_recipes(kind, size, seed=3):
        assert recipe.for_kind(kind) == recipe  # nothing is left open
        assert kind in LOSSES[recipe.loss]
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert recipe.stop_after == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_is_that_of_its_seed(kind: Kind) -> None:
    first, second, other = (trial_recipes(kind, 500, seed=seed) for seed in (7, 7, 8))

    assert first == second
    assert first[1:] != other[1:]
    assert len(set(first)) == len(first) == len(other) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_is_the_default_whatever_the_seed_but_for_its_own_seed(kind: Kind) -> None:
    one, other = (trial_recipes(kind, 500, seed=seed)[0] for seed in (7, 8))

    assert one == default_recipe(kind, 500, seed=7)
    assert one.seed == 7
    assert {**one.to_dict(), "seed": 8} == other.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_more_examples_have_fewer_trials_and_no_more_epochs(kind: Kind) -> None:
    lists = [trial_recipes(kind, size, seed=1) for size in SIZES]

    for fewer, more in pairwise(lists):
        assert len(more) <= len(fewer)
        assert max(recipe.epochs for recipe in more) <= max(recipe.epochs for recipe in fewer)
    assert len(lists[-1]) < len(lists[0])
    assert lists[-1][0].epochs < lists[0][0].epochs


@pytest.mark.parametrize("kind", KINDS)
def test_trials_of_one_list_start_from_seeds_of_their_own(kind: Kind) -> None:
    """Equal starts would make their mean worth less."""
    seeds = [recipe.seed for recipe in trial_recipes(kind, 500, seed=5)]

    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("kind", KINDS)
def test_trials_differ_in_what_matters(kind: Kind) -> None:
    found = trial_recipes(kind, 500, seed=1)

    for name in ("skip_dropout", "learning_rate", "epochs", "stay_near_base", "temperature"):
        assert len({getattr(recipe, name) for recipe in found}) > 1, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_any_length_begins_with_the_usual_one(kind: Kind) -> None:
    usual, longer, shorter = (trial_recipes(kind, 3_000, seed=2, count=count) for count in (0, 32, 5))

    assert len(longer) == len(set(longer)) == 32
    assert longer[: len(usual)] == usual
    assert shorter == usual[:5]
