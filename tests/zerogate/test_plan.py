"""Ways and plans as plain values: what a manifest holds, and what comes back from it."""

import json

import pytest

from zerogate.errors import ZerogateError
from zerogate.plan import Plan, Trial, Way
from zerogate.recipe import Recipe

RECIPES = (Recipe(seed=1).for_kind("pairs"), Recipe(norm="pre", activation="tanh", stop_after=3, seed=2).for_kind("pairs"))
WAYS = [Way("identity"), Way("ridge", pull=10.0, query_only=True), Way("head", RECIPES[1:]), Way("mean", RECIPES)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_ways_come_back_from_json(way: Way) -> None:
    assert Way.from_dict(json.loads(json.dumps(way.to_dict()))) == way


def test_a_whole_number_for_the_pull_is_the_same_way() -> None:
    assert Way.from_dict({"name": "ridge", "recipes": [], "pull": 10, "query_only": False}) == Way("ridge", pull=10.0)


def test_an_unknown_way_or_a_recipe_out_of_range_is_refused() -> None:
    good = Way("head", RECIPES[:1]).to_dict()

    for name in ("best", None, ""):
        with pytest.raises(ZerogateError, match=rf"way\.name must be one of identity, .*, found {name!r}"):
            Way.from_dict({**good, "name": name})
    with pytest.raises(ZerogateError, match=r"recipe\.epochs must be 1 to 10,000, found 0"):
        Way.from_dict({**good, "recipes": [{**good["recipes"][0], "epochs": 0}]})
    with pytest.raises(ZerogateError, match="recipe has no 'dropout'"):
        Way.from_dict({**good, "recipes": [{**good["recipes"][0], "dropout": 0.5}]})


def test_a_plan_tells_json_all_that_it_holds() -> None:
    trials = [Trial(0, 0.25, RECIPES[0], 0.5, 0.001, 0.75, 1.5), Trial(1, 1.0, RECIPES[1], None, None, None, 0.25)]
    curve = [{"strength": 0.0, "score": 0.25, "forgetting": 0.0}, {"strength": 1.0, "score": 0.5, "forgetting": 0.001}]
    plan = Plan(WAYS[3], 0.75, "mrr@10", curve, {"mean": curve[1]}, trials, planned=20, finished=2, seconds=3.5)

    told = json.loads(json.dumps(plan.to_dict(), allow_nan=False))

    assert Way.from_dict(told["way"]) == plan.way
    assert [Recipe.from_dict(trial["recipe"]) for trial in told["trials"]] == list(RECIPES)
    rest = {name: value for name, value in told["trials"][1].items() if name != "recipe"}
    assert rest == {"number": 1, "share": 1.0, "score": None, "forgetting": None, "strength": None, "seconds": 0.25}
    plain = {"strength": 0.75, "metric": "mrr@10", "curve": curve, "candidates": {"mean": curve[1]}}
    assert told == {**plain, "way": told["way"], "trials": told["trials"], "planned": 20, "finished": 2, "seconds": 3.5}
