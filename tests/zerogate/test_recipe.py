"""Recipes from JSON: what is allowed, and what a person is told about the rest."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogate.errors import ZerogateError
from zerogate.recipe import Recipe

RANGES = {
    "temperature": "above 0 and at most 1",
    "dropout": "at least 0 and below 1",
    "epochs": "1 to 10,000",
    "learning_rate": "above 0 and at most 1",
    "weight_decay": "0 to 1",
    "batch_size": "2 to 65,536",
    "blocks": "1 to 8",
    "seed": "0 to 2^31 - 1",
}


def refusal(values: dict[str, object]) -> str:
    with pytest.raises(ZerogateError) as caught:
        Recipe.from_dict(values)
    return str(caught.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 1, exclude_min=True),
            "dropout": st.floats(0, 1, exclude_max=True),
            "epochs": st.integers(1, 10_000),
            "learning_rate": st.floats(0, 1, exclude_min=True),
            "weight_decay": st.floats(0, 1),
            "batch_size": st.integers(2, 65_536),
            "blocks": st.integers(1, 8),
            "bias": st.booleans(),
            "seed": st.integers(0, 2**31 - 1),
        },
    )
)
def test_every_recipe_within_the_ranges_survives_json(values: dict[str, object]) -> None:
    recipe = Recipe.from_dict(values)

    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))

    assert again == recipe
    assert values.items() <= recipe.to_dict().items()


def test_nothing_given_is_the_default() -> None:
    assert Recipe.from_dict({}) == Recipe()


@pytest.mark.parametrize("name", ["temperature", "learning_rate", "weight_decay"])
def test_a_whole_number_is_a_number_and_becomes_a_float(name: str) -> None:
    found = Recipe.from_dict({name: 1}).to_dict()[name]

    assert isinstance(found, float)
    assert found == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 1.0001),
        ("temperature", -0.1),
        ("dropout", 1),
        ("dropout", -1e-9),
        ("epochs", 0),
        ("epochs", 10_001),
        ("learning_rate", 0.0),
        ("learning_rate", 2),
        ("weight_decay", -0.1),
        ("weight_decay", 1.1),
        ("batch_size", 1),
        ("batch_size", 65_537),
        ("blocks", 0),
        ("blocks", 9),
        ("seed", -1),
        ("seed", 2**31),
        ("epochs", 10**400),
        ("temperature", 10**400),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(name: str, value: float) -> None:
    message = refusal({name: value})

    assert message == f"recipe.{name} must be {RANGES[name]}, found {value!r}"


@pytest.mark.parametrize("name", ["temperature", "dropout", "learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_refused_with_the_range(name: str, value: float) -> None:
    assert RANGES[name] in refusal({name: value})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", True, "int"),
        ("epochs", 10.0, "int"),
        ("epochs", "10", "int"),
        ("epochs", None, "int"),
        ("blocks", [1], "int"),
        ("seed", False, "int"),
        ("temperature", "0.02", "float"),
        ("temperature", True, "float"),
        ("dropout", False, "float"),
        ("weight_decay", None, "float"),
        ("bias", 1, "bool"),
        ("bias", 0.0, "bool"),
        ("bias", "true", "bool"),
        ("bias", None, "bool"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, wanted: str) -> None:
    assert refusal({name: value}) == f"recipe.{name} must be {wanted}, found {value!r}"


@pytest.mark.parametrize("name", ["lr", "Epochs", "", "temperature "])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    message = refusal({"epochs": 5, name: 1})

    assert f"'{name}'" in message
    assert all(known in message for known in (*RANGES, "bias"))


def test_a_recipe_made_in_python_is_checked_as_well() -> None:
    with pytest.raises(ZerogateError, match=r"recipe\.dropout must be at least 0 and below 1, found 1.0"):
        Recipe(dropout=1.0)


def test_the_ranges_that_are_told_are_those_that_hold() -> None:
    """The two ends of every range that is told, from the other side."""
    ends = [("epochs", 1), ("epochs", 10_000), ("batch_size", 2), ("batch_size", 65_536), ("blocks", 1), ("blocks", 8)]
    ends += [("seed", 0), ("seed", 2**31 - 1)]

    for name, value in ends:
        assert Recipe.from_dict({name: value}).to_dict()[name] == value
    for name, number in {"temperature": 1.0, "dropout": 0.0, "learning_rate": 1.0, "weight_decay": 0.0}.items():
        assert Recipe.from_dict({name: number}).to_dict()[name] == number
    assert Recipe.from_dict({"weight_decay": 1.0}).weight_decay == 1.0
