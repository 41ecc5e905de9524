"""Recipes from JSON: what is allowed, what goes together, what each kind of dataset fills in, and what a person is told."""

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogate.errors import ZerogateError
from zerogate.examples import Kind
from zerogate.head_shapes import HeadShape
from zerogate.recipe import LOSSES, Recipe

RANGES = {
    "temperature": "above 0 and at most 1, or 0 for what is usual for the loss",
    "margin": "above 0 and at most 1.5, or 0 for what is usual for the loss",
    "hard_negatives": "0 to 16",
    "stay_near_base": "0 to 1,000",
    "skip_dropout": "at least 0 and below 1",
    "epochs": "1 to 10,000",
    "stop_after": "0 (never) to the number of epochs",
    "learning_rate": "above 0 and at most 1",
    "weight_decay": "0 to 1",
    "batch_size": "2 to 65,536",
    "seed": "0 to 2^31 - 1",
}
KINDS: tuple[Kind, ...] = ("pairs", "triplets", "queries", "scored", "groups")
BY_KIND = {kind: [name for name, kinds in LOSSES.items() if kind in kinds] for kind in KINDS}  # the default first


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ZerogateError) as caught:
        Recipe.from_dict(values)
    return str(caught.value)


@st.composite
def allowed(draw: st.DrawFn) -> dict[str, Any]:
    """Any recipe that may be made, as the values that are given for it."""
    values: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "loss": st.sampled_from(["auto", *LOSSES]),
                "temperature": st.floats(0, 1),
                "margin": st.floats(0, 1.5),
                "hard_negatives": st.integers(0, 16),
                "stay_near_base": st.floats(0, 1000),
                "skip_dropout": st.floats(0, 1, exclude_max=True),
                "epochs": st.integers(1, 10_000),
                "learning_rate": st.floats(0, 1, exclude_min=True),
                "weight_decay": st.floats(0, 1),
                "batch_size": st.integers(2, 65_536),
                "query_only": st.booleans(),
                "seed": st.integers(0, 2**31 - 1),
            },
        )
    )
    values["head"] = kind = draw(st.sampled_from(["skip", "gated", "linear", "identity"]))
    if kind in ("skip", "linear"):
        values |= {"blocks": draw(st.integers(1, 8)), "norm": draw(st.sampled_from(["none", "pre", "post"]))}
        values |= {"activation": draw(st.sampled_from(["none", "relu", "gelu", "tanh"])), "bias": draw(st.booleans())}
    if kind == "skip" and not values.get("query_only"):
        values["merge"] = draw(st.sampled_from(["add", "concat"]))
    values["stop_after"] = draw(st.integers(0, values.get("epochs", Recipe().epochs)))
    return values


@given(allowed())
def test_every_recipe_within_the_ranges_survives_json(values: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(values)

    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))

    assert again == recipe
    assert values.items() <= recipe.to_dict().items()
    assert recipe.shape == HeadShape.from_dict({name: recipe.to_dict()[name] for name in shape_names()} | {"kind": recipe.head})


def shape_names() -> list[str]:
    return [one.name for one in fields(HeadShape) if one.name != "kind"]


@given(allowed(), st.sampled_from(KINDS))
def test_a_recipe_is_filled_in_for_a_kind_or_refused(values: dict[str, Any], kind: Kind) -> None:
    recipe = Recipe.from_dict(values)
    one_sided = kind in ("scored", "groups")
    fits = recipe.loss in ("auto", *BY_KIND[kind]) and not (one_sided and (recipe.query_only or recipe.hard_negatives))
    ignores = recipe.loss == "multi_positive" and recipe.hard_negatives

    if not fits or ignores:
        with pytest.raises(ZerogateError, match=r"^recipe\.(loss|query_only|hard_negatives) "):
            recipe.for_kind(kind)
        return
    filled = recipe.for_kind(kind)

    assert filled.loss == (BY_KIND[kind][0] if recipe.loss == "auto" else recipe.loss)
    assert 0 < filled.temperature <= 1
    assert 0 < filled.margin <= 1.5
    assert filled.temperature == recipe.temperature or recipe.temperature == 0
    assert filled.margin == recipe.margin or recipe.margin == 0
    left_open = ("loss", "temperature", "margin")
    assert {**filled.to_dict(), **dict.fromkeys(left_open)} == {**recipe.to_dict(), **dict.fromkeys(left_open)}
    assert filled.for_kind(kind) == filled


def test_nothing_given_is_the_default() -> None:
    assert Recipe.from_dict({}) == Recipe()


def test_every_kind_has_the_losses_that_were_asked_for() -> None:
    retrieval = {"contrastive", "multi_positive", "triplet", "online_contrastive"}
    labels = {"supervised_contrastive", "arcface", "cosface", "circle", "semi_hard_triplet", "batch_hard_triplet"}

    for kind, asked in {"pairs": retrieval, "triplets": retrieval, "queries": retrieval, "groups": labels}.items():
        assert asked <= set(BY_KIND[kind])  # type: ignore[index]
        assert not set(BY_KIND["scored"]) & asked
    assert {"cosent", "cosine"} <= set(BY_KIND["scored"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_takes_the_kinds_that_it_is_made_for(kind: Kind, loss: str) -> None:
    if loss in BY_KIND[kind]:
        assert Recipe(loss=loss).for_kind(kind).loss == loss
        return
    with pytest.raises(ZerogateError) as caught:
        Recipe(loss=loss).for_kind(kind)
    names = " or ".join(BY_KIND[kind])
    assert str(caught.value) == f"recipe.loss must be auto, {names} for a dataset of kind {kind}, found '{loss}'"


@pytest.mark.parametrize(("name", "value"), [("query_only", True), ("hard_negatives", 3)])
def test_what_means_nothing_without_documents_is_refused(name: str, value: Any) -> None:
    recipe = Recipe.from_dict({name: value})

    for kind in ("scored", "groups"):
        with pytest.raises(ZerogateError, match=f"recipe.{name} means nothing for kind {kind}, which has no documents"):
            recipe.for_kind(kind)
    for other in ("pairs", "triplets", "queries"):
        assert getattr(recipe.for_kind(other), name) == value


def test_hard_negatives_are_refused_where_the_loss_takes_none() -> None:
    with pytest.raises(ZerogateError, match=r"recipe\.hard_negatives means nothing for the loss multi_positive"):
        Recipe(loss="multi_positive", hard_negatives=2).for_kind("pairs")
    assert Recipe(loss="multi_positive").for_kind("pairs").hard_negatives == 0


def test_a_head_of_the_queries_only_cannot_lengthen_vectors() -> None:
    assert refusal({"query_only": True, "merge": "concat"}).startswith("recipe.query_only needs merge 'add', found 'concat'")
    assert Recipe(query_only=True, norm="pre", activation="gelu", blocks=3).query_only
    assert Recipe(merge="concat").shape.merge == "concat"


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("identity", ("blocks", "merge", "norm", "activation", "bias")),
        ("gated", ("blocks", "merge", "norm", "activation", "bias")),
        ("linear", ("merge",)),
        ("skip", ()),
    ],
)
def test_a_part_that_a_head_does_not_have_is_refused(head: str, names: tuple[str, ...]) -> None:
    others = {"blocks": 2, "merge": "concat", "norm": "pre", "activation": "relu", "bias": True}

    for name, value in others.items():
        if name in names:
            assert f"head.{name} must be" in refusal({"head": head, name: value})
        else:
            assert getattr(Recipe.from_dict({"head": head, name: value}).shape, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head", "dense"),
        ("head", ""),
        ("merge", "sum"),
        ("norm", "both"),
        ("activation", "swish"),
        ("blocks", 0),
        ("blocks", 9),
        ("loss", "mse"),
        ("loss", ""),
    ],
)
def test_an_unknown_name_of_a_part_is_refused_with_those_that_are_known(name: str, value: object) -> None:
    message = refusal({name: value})

    assert repr(value) in message
    known = {"head": "skip, gated, linear, identity", "merge": "add, concat", "norm": "none, pre, post"}
    known |= {"activation": "none, relu, gelu, tanh", "blocks": "1 to 8", "loss": f"auto, {', '.join(LOSSES)}"}
    assert known[name] in message


@pytest.mark.parametrize("name", ["temperature", "learning_rate", "weight_decay", "skip_dropout", "margin", "stay_near_base"])
def test_a_whole_number_is_good_where_a_float_is_wanted(name: str) -> None:
    value = 0 if name == "skip_dropout" else 1

    found = Recipe.from_dict({name: value}).to_dict()[name]

    assert isinstance(found, float)
    assert found == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1.0001),
        ("temperature", -0.1),
        ("temperature", 10**400),
        ("margin", -1e-9),
        ("margin", 1.6),
        ("hard_negatives", -1),
        ("hard_negatives", 17),
        ("stay_near_base", -0.5),
        ("stay_near_base", 1000.5),
        ("skip_dropout", 1),
        ("skip_dropout", -1e-9),
        ("epochs", 0),
        ("epochs", 10_001),
        ("epochs", 10**400),
        ("stop_after", -1),
        ("stop_after", 61),
        ("learning_rate", 0.0),
        ("learning_rate", 2),
        ("weight_decay", -0.1),
        ("weight_decay", 1.1),
        ("batch_size", 1),
        ("batch_size", 65_537),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(name: str, value: float) -> None:
    message = refusal({"epochs": 60, name: value})

    assert message == f"recipe.{name} must be {RANGES[name]}, found {value!r}"


@pytest.mark.parametrize("name", ["temperature", "margin", "stay_near_base", "skip_dropout", "learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_refused_with_the_range(name: str, value: float) -> None:
    assert RANGES[name] in refusal({name: value})


def test_the_ranges_that_are_told_are_those_that_hold() -> None:
    """The two ends of every range that is told, from the other side."""
    ends: dict[str, tuple[float, ...]] = {
        "temperature": (0.0, 1.0),
        "margin": (0.0, 1.5),
        "hard_negatives": (0, 16),
        "stay_near_base": (0.0, 1000.0),
        "skip_dropout": (0.0, 0.999999),
        "epochs": (1, 10_000),
        "stop_after": (0, 60),
        "learning_rate": (1e-30, 1.0),
        "weight_decay": (0.0, 1.0),
        "batch_size": (2, 65_536),
        "blocks": (1, 8),
        "seed": (0, 2**31 - 1),
    }

    for name, values in ends.items():
        for value in values:
            assert Recipe.from_dict({"epochs": 60, name: value}).to_dict()[name] == value


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", True, "int"),
        ("epochs", 10.0, "int"),
        ("epochs", "10", "int"),
        ("epochs", None, "int"),
        ("blocks", [1], "int"),
        ("seed", False, "int"),
        ("stop_after", 1.0, "int"),
        ("hard_negatives", True, "int"),
        ("temperature", "0.02", "float"),
        ("temperature", True, "float"),
        ("skip_dropout", False, "float"),
        ("weight_decay", None, "float"),
        ("bias", 1, "bool"),
        ("bias", 0.0, "bool"),
        ("bias", "true", "bool"),
        ("query_only", None, "bool"),
        ("loss", None, "str"),
        ("loss", ["contrastive"], "str"),
        ("head", 1, "str"),
        ("merge", True, "str"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, wanted: str) -> None:
    assert refusal({name: value}) == f"recipe.{name} must be {wanted}, found {value!r}"


@pytest.mark.parametrize("name", ["lr", "Epochs", "", "temperature ", "dropout"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    message = refusal({"epochs": 5, name: 1})

    assert f"'{name}'" in message
    assert all(known in message for known in (*RANGES, "bias", "loss", "head", "query_only", *shape_names()))


def test_a_recipe_made_in_python_is_checked_as_well() -> None:
    with pytest.raises(ZerogateError, match=r"recipe\.skip_dropout must be at least 0 and below 1, found 1.0"):
        Recipe(skip_dropout=1.0)


@pytest.mark.parametrize("one", fields(Recipe), ids=lambda one: one.name)
def test_every_field_tells_its_range(one: Any) -> None:
    """The API's documentation is made of these."""
    assert one.metadata["range"]
