"""What a tuning recipe and its examples may be, checked before anything heavy is loaded."""

import math
import subprocess
import sys
from typing import Any

import pytest

from zerogate.errors import TooFewExamples, ZerogateError
from zerogate.tuning_recipe import TuningExamples, TuningRecipe


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def pairs(count: int) -> dict[str, list[Any]]:
    return {"anchor": texts(count), "positive": texts(count)}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_recipe_comes_back_from_json_as_it_was(mode: str) -> None:
    recipe = TuningRecipe.from_dict({"mode": mode, "epochs": 2, "lora_alpha": 8, "last_layers": 1, "learning_rate": 1e-4})

    assert TuningRecipe.from_dict(recipe.to_dict()) == recipe
    assert (recipe.mode, recipe.epochs, recipe.lora_alpha, recipe.last_layers) == (mode, 2, 8.0, 1)
    assert isinstance(recipe.lora_alpha, float)


def test_a_learning_rate_left_open_is_filled_in_by_the_mode() -> None:
    full, lora, chosen = TuningRecipe(), TuningRecipe(mode="lora"), TuningRecipe(learning_rate=2e-6)

    assert 0 < full.learning_rate < lora.learning_rate  # adapters start from nothing
    assert full.to_dict()["learning_rate"] == full.learning_rate
    assert chosen.learning_rate == 2e-6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "half"}, "tuning.mode must be full or lora, found 'half'"),
        ({"epochs": 0}, "tuning.epochs must be 1 to 1,000, found 0"),
        ({"epochs": 2.0}, "tuning.epochs must be int, found 2.0"),
        ({"epochs": True}, "tuning.epochs must be int, found True"),
        ({"learning_rate": -1e-5}, "tuning.learning_rate must be above 0 and at most 0.1, or 0 for"),
        ({"learning_rate": 10**400}, "tuning.learning_rate must be above 0 and at most 0.1"),
        ({"learning_rate": math.nan}, "tuning.learning_rate must be above 0"),
        ({"learning_rate": "fast"}, "tuning.learning_rate must be float, found 'fast'"),
        ({"head_learning_rate": 0.2}, "tuning.head_learning_rate must be 0 to 0.1, found 0.2"),
        ({"batch_size": 3}, "tuning.batch_size must be 4 to 65,536, found 3"),
        ({"temperature": 0}, "tuning.temperature must be above 0 and at most 1, found 0"),
        ({"last_layers": -1}, "tuning.last_layers must be 0 "),
        ({"lora_rank": 0}, "tuning.lora_rank must be 1 to 1,024, found 0"),
        ({"lora_alpha": 0.0}, "tuning.lora_alpha must be above 0"),
        ({"lora_dropout": 1.0}, "tuning.lora_dropout must be at least 0 and below 1, found 1.0"),
        ({"weight_decay": 1.5}, "tuning.weight_decay must be 0 to 1, found 1.5"),
        ({"warmup_ratio": 1.0}, "tuning.warmup_ratio must be at least 0 and below 1, found 1.0"),
        ({"seed": 2**31}, "tuning.seed must be 0 to 2^31 - 1"),
        ({"rate": 1}, "tuning has no 'rate'; it may have mode, epochs, "),
    ],
)
def test_a_wrong_recipe_names_field_value_and_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ZerogateError) as caught:
        TuningRecipe.from_dict(values)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        (
            "documents",
            {"id": texts(8), "text": texts(8)},
            "an encoder is tuned to pairs, triplets, scored, groups; found 'documents'",
        ),
        ("pairs", {"anchor": texts(8)}, "columns of pairs are anchor, positive; found anchor"),
        ("pairs", {"positive": texts(8), "anchor": texts(8)}, "columns of pairs are anchor, positive; found positive, anchor"),
        (
            "pairs",
            {"anchor": texts(8), "positive": texts(9)},
            "columns must be of one length, found {'anchor': 8, 'positive': 9}",
        ),
        ("triplets", {**pairs(8), "negatives": [["a"], []] * 4}, "row 2 of triplets has no negatives"),
    ],
)
def test_wrong_columns_are_refused(kind: Any, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ZerogateError) as caught:
        TuningExamples(kind, columns)

    assert message in str(caught.value)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(TooFewExamples, match="examples to tune on: found 7, at least 8 are needed"):
        TuningExamples("pairs", pairs(7))
    with pytest.raises(TooFewExamples, match="labels with at least two texts: found 1, at least 2 are needed"):
        TuningExamples("groups", {"text": texts(9), "label": ["a"] * 7 + ["b", "c"]})

    assert len(TuningExamples("pairs", pairs(8))) == 8
    assert len(TuningExamples("groups", {"text": texts(9), "label": ["a"] * 7 + ["b", "b"]})) == 9


def test_a_digest_changes_with_kind_texts_and_order() -> None:
    columns = pairs(8)
    scored = {"sentence1": columns["anchor"], "sentence2": columns["positive"], "score": [0.5] * 8}
    others = [
        TuningExamples("pairs", {"anchor": columns["anchor"][::-1], "positive": columns["positive"][::-1]}),
        TuningExamples("pairs", {"anchor": [*columns["anchor"][:-1], "another"], "positive": columns["positive"]}),
        TuningExamples("scored", scored),
        TuningExamples("scored", {**scored, "score": [0.5] * 7 + [0.25]}),
        TuningExamples("triplets", {**columns, "negatives": [["a"]] * 8}),
    ]

    digests = {one.digest() for one in (TuningExamples("pairs", columns), *others)}

    assert len(digests) == 6
    assert TuningExamples("pairs", pairs(8)).digest() in digests


def test_recipes_load_no_torch() -> None:
    code = "import sys, zerogate.tuning_recipe; print('torch' in sys.modules, 'datasets' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == ["False", "False"]
