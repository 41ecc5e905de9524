"""What a valid row of each kind is, what its canonical form is, and what the error says when it is not valid."""

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogate.errors import InvalidRow
from zerogate.examples import KINDS, Kind, Row, column_names, missing_columns, parse_row, texts

VALID: dict[Kind, dict[str, Any]] = {
    "pairs": {"anchor": "a", "positive": "p"},
    "triplets": {"anchor": "a", "positive": "p", "negatives": ["n1", "n2"]},
    "scored": {"sentence1": "s1", "sentence2": "s2", "score": 0.5},
    "groups": {"text": "t", "label": "l"},
    "queries": {"query": "q", "documents": ["d1", "d2"]},
    "documents": {"id": "d1", "text": "t", "metadata": {"year": 2020}},
}
REQUIRED = [(kind, name) for kind, row in VALID.items() for name in row if name != "metadata"]


def refusal(kind: Kind, raw: dict[str, Any], line: int = 7) -> InvalidRow:
    with pytest.raises(InvalidRow) as caught:
        parse_row(kind, raw, line)
    assert caught.value.line == line
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_canonical_row_is_given_back_as_it_is(kind: Kind) -> None:
    assert parse_row(kind, VALID[kind], 1) == VALID[kind]


def test_a_single_negative_becomes_a_list() -> None:
    row = parse_row("triplets", {"anchor": "a", "positive": "p", "negative": "n"}, 1)

    assert row == {"anchor": "a", "positive": "p", "negatives": ["n"]}


def test_integer_ids_and_labels_become_strings() -> None:
    assert parse_row("documents", {"id": 17, "text": "t"}, 1)["id"] == "17"
    assert parse_row("groups", {"text": "t", "label": -3}, 1)["label"] == "-3"
    assert parse_row("queries", {"query": "q", "documents": [5, "x"]}, 1)["documents"] == ["5", "x"]


def test_a_document_named_twice_is_relevant_once() -> None:
    assert parse_row("queries", {"query": "q", "documents": ["b", 1, "a", "1", "b"]}, 1)["documents"] == ["b", "1", "a"]


@pytest.mark.parametrize(("score", "canonical"), [(0, 0.0), (1, 1.0), (0.25, 0.25)])
def test_scores_at_and_between_the_ends_are_floats(score: float, canonical: float) -> None:
    row = parse_row("scored", {**VALID["scored"], "score": score}, 1)

    assert row["score"] == canonical
    assert isinstance(row["score"], float)


@pytest.mark.parametrize("alias", ["validation", "valid", "val", "dev"])
def test_the_aliases_of_validation_are_honoured(alias: str) -> None:
    assert parse_row("pairs", {**VALID["pairs"], "split": alias}, 1)["split"] == "validation"


@pytest.mark.parametrize("split", ["Train", "holdout", "", 1, ["train"]])
def test_an_unknown_split_is_refused_with_the_allowed_ones(split: object) -> None:
    error = refusal("pairs", {**VALID["pairs"], "split": split})

    assert error.field == "split"
    assert repr(split) in error.problem
    assert error.problem.endswith("allowed are train, validation, valid, val, dev, test")


@pytest.mark.parametrize("name", ["split", "negatives"])
def test_a_null_stands_for_an_absent_column(name: str) -> None:
    row = parse_row("triplets", {"anchor": "a", "positive": "p", "negative": "n", name: None}, 1)

    assert row == {"anchor": "a", "positive": "p", "negatives": ["n"]}


@pytest.mark.parametrize(("kind", "name"), REQUIRED)
@pytest.mark.parametrize("is_null", [True, False])
def test_a_missing_or_null_required_column_is_named(kind: Kind, name: str, is_null: bool) -> None:
    raw = {**VALID[kind], name: None} if is_null else {key: value for key, value in VALID[kind].items() if key != name}

    error = refusal(kind, raw)

    assert error.field == ("negative" if name == "negatives" else name)
    assert error.problem.startswith("is missing, null or empty")


def test_negative_and_negatives_exclude_each_other() -> None:
    error = refusal("triplets", {**VALID["triplets"], "negative": "n"})

    assert (error.field, error.problem) == ("negatives", "give negative or negatives, not both")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "documents"])
def test_an_unknown_column_is_refused_with_the_allowed_ones(kind: Kind) -> None:
    error = refusal(kind, {**VALID[kind], "anchr": "x"}, line=3)

    assert str(error) == (f"line 3, field 'anchr': is not a column of {kind}; allowed are {', '.join(column_names(kind))}")
    assert {*VALID[kind], "split"} <= set(column_names(kind))


TEXT = "a text that is not blank is needed"
NAME = "a string that is not blank, or an integer, is needed"
SCORE = "a number from 0 to 1 is needed"
LIST = "a list of at least one is needed"
CHARACTERS = "NUL and lone surrogates are not allowed"


@pytest.mark.parametrize(
    ("kind", "field", "value", "problem"),
    [
        ("pairs", "anchor", "", f"found ''; {TEXT}"),
        ("pairs", "anchor", " \n\t\u00a0", rf"found ' \n\t\xa0'; {TEXT}"),
        ("pairs", "positive", ["p"], f"found ['p']; {TEXT}"),
        ("pairs", "anchor", "x" * 1_000_001, "found 1,000,001 characters; at most 1,000,000 are allowed"),
        ("pairs", "anchor", "a\x00b", rf"character 2 is '\x00'; {CHARACTERS}"),
        ("pairs", "anchor", "ab\ud800", rf"character 3 is '\ud800'; {CHARACTERS}"),
        ("triplets", "negative", " ", f"found ' '; {TEXT}"),
        ("triplets", "negatives", [], f"found []; {LIST}"),
        ("triplets", "negatives", "n", f"found 'n'; {LIST}"),
        ("triplets", "negatives", ["n", ""], f"item 2: found ''; {TEXT}"),
        ("scored", "score", -1e-9, f"found -1e-09; {SCORE}"),
        ("scored", "score", float("nan"), f"found nan; {SCORE}"),
        ("scored", "score", float("inf"), f"found inf; {SCORE}"),
        ("scored", "score", True, f"found True; {SCORE}"),
        ("scored", "score", "0.5", f"found '0.5'; {SCORE}"),
        ("groups", "label", True, f"found True; {NAME}"),
        ("groups", "label", 1.5, f"found 1.5; {NAME}"),
        ("groups", "label", "x" * 1001, "found 1,001 characters; at most 1,000 are allowed"),
        ("queries", "documents", "d1", f"found 'd1'; {LIST}"),
        ("queries", "documents", ["d1", True], f"item 2: found True; {NAME}"),
        ("queries", "documents", ["d1", None], f"item 2: found None; {NAME}"),
        ("documents", "id", False, f"found False; {NAME}"),
        ("documents", "text", {"a": 1}, f"found {{'a': 1}}; {TEXT}"),
        ("documents", "score", float("nan"), "found nan; a JSON number is finite"),
        ("documents", "score", 2**64, "found an integer beyond 64 bits; give it as a string"),
        ("documents", "raw", b"x", "found b'x'; a JSON value is needed"),
        ("documents", "title", "a\x00", rf"character 2 is '\x00'; {CHARACTERS}"),
        ("documents", "parts", {"a": {1: "x"}}, "found the key 1; a key is a string"),
        ("documents", "k\x00", 1, rf"character 2 is '\x00'; {CHARACTERS}"),
    ],
)
def test_a_value_that_does_not_fit_is_shown_with_what_is_needed(kind: Kind, field: str, value: object, problem: str) -> None:
    base = {key: kept for key, kept in VALID[kind].items() if not (field == "negative" and key == "negatives")}

    error = refusal(kind, {**base, field: value}, line=12)

    assert (error.field, error.problem) == (field, problem)


def test_a_text_of_a_million_characters_is_allowed() -> None:
    text = "é" * 1_000_000

    assert parse_row("pairs", {"anchor": text, "positive": "p"}, 1)["anchor"] == text


@pytest.mark.parametrize("value", ["", " " * 10**6, ["x" * 10**6] * 9, {"k" * 10**6: 1}, b"y" * 10**6])
@pytest.mark.parametrize("name", ["anchor", "k" * 10**6])
def test_an_error_stays_short_however_large_the_value_and_the_name_are(name: str, value: object) -> None:
    assert len(str(refusal("pairs", {**VALID["pairs"], name: value}))) < 160


def test_other_columns_of_a_document_are_collected_with_their_nulls() -> None:
    raw = {"text": "t", "year": 2020, "id": "d", "tags": ["a", None], "split": "train", "author": None}

    row = parse_row("documents", raw, 1)

    metadata = {"year": 2020, "tags": ["a", None], "split": "train", "author": None}
    assert row == {"id": "d", "text": "t", "metadata": metadata}


@pytest.mark.parametrize(
    ("others", "metadata"),
    [
        ({}, {}),
        ({"metadata": None}, {}),
        ({"metadata": {}}, {}),
        ({"metadata": {"a": {"b": [1, 2.5, None, True]}}}, {"a": {"b": [1, 2.5, None, True]}}),
        ({"metadata": "free text"}, {"metadata": "free text"}),
        ({"metadata": {"a": 1}, "lang": "en"}, {"metadata": {"a": 1}, "lang": "en"}),
    ],
)
def test_a_metadata_object_is_kept_only_where_it_stands_alone(others: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert parse_row("documents", {"id": "d", "text": "t", **others}, 1)["metadata"] == metadata


def test_dates_in_metadata_become_iso_strings() -> None:
    moment = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)

    row = parse_row("documents", {"id": "d", "text": "t", "day": moment.date(), "seen": {"at": [moment]}}, 1)

    assert row["metadata"] == {"day": "2024-02-29", "seen": {"at": ["2024-02-29T12:30:00+00:00"]}}


@pytest.mark.parametrize(("levels", "is_allowed"), [(32, True), (33, False), (900, False)])
def test_metadata_may_be_nested_32_levels_deep(levels: int, is_allowed: bool) -> None:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    raw = {"id": "d", "text": "t", "deep": nested}

    if is_allowed:
        assert parse_row("documents", raw, 1)["metadata"] == {"deep": nested}
    else:
        error = refusal("documents", raw)
        assert (error.field, error.problem) == ("deep", "is nested more than 32 levels deep")


def test_missing_columns_names_the_alternatives() -> None:
    assert missing_columns("triplets", ["anchor", "positive"]) == ("negative", "negatives")
    assert missing_columns("triplets", ["anchor", "positive", "negatives"]) == ()
    assert missing_columns("pairs", ["positive", "split"]) == ("anchor",)


def test_texts_are_what_an_encoder_reads_in_the_order_of_the_columns() -> None:
    found = ["".join(texts(kind, VALID[kind])) for kind in KINDS]

    assert found == ["ap", "apn1n2", "s1s2", "t", "q", "t"]


NAMES = sorted({name for kind in KINDS for name in column_names(kind)} | {"other"})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(KINDS), raw=st.data())
def test_whatever_comes_in_a_row_is_refused_or_canonical_and_writable(kind: Kind, raw: st.DataObject) -> None:
    names = raw.draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    changed = {**VALID[kind], **{name: raw.draw(VALUES, label=name) for name in names}}

    outcome: Row | InvalidRow
    try:
        outcome = parse_row(kind, changed, 1)
    except InvalidRow as error:
        outcome = error

    if isinstance(outcome, InvalidRow):
        assert outcome.field in {*changed, "negative"}
        assert str(outcome).encode()
    else:
        assert parse_row(kind, orjson.loads(orjson.dumps(outcome)), 1) == outcome
