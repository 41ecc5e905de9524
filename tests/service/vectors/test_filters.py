"""A wrong filter is refused with its place and with what is allowed there."""

from typing import Any

import pytest

from service.errors import InvalidRequest
from service.vectors.filters import parse_filter

BAD: dict[str, tuple[Any, str, str]] = {
    "unknown clause": ({"musst": []}, "filter", r"must, should, must_not, min_should; found the keys musst"),
    "clause of a wrong form": ({"must": 3}, "filter.must", r"no condition: 3"),
    "unknown condition": ({"must": [{"is_there": 1}]}, "filter.must[0]", r"one of nested, key, has_id"),
    "field without a question": (
        {"should": [{"key": "a"}]},
        "filter.should[0]",
        r"asks nothing of field 'a'.*one of match, range",
    ),
    "unknown question": ({"must": [{"key": "a", "equals": 1}]}, "filter.must[0]", r"asks equals of field 'a'.*one of match"),
    "match with a fraction": ({"must": [{"key": "a", "match": {"value": 1.5}}]}, "filter.must[0]", r"match takes one of value"),
    "match without a value": ({"must": [{"key": "a", "match": {}}]}, "filter.must[0]", r"match takes one of value"),
    "any with booleans": (
        {"must": [{"key": "a", "match": {"any": [True]}}]},
        "filter.must[0]",
        r"a list of texts or of integers",
    ),
    "range with text": ({"must": [{"key": "a", "range": {"gt": "7"}}]}, "filter.must[0]", r"range takes gt, gte, lt, lte"),
    "range with a bare year": ({"must": [{"key": "a", "range": {"gt": "2024"}}]}, "filter.must[0]", r"RFC 3339"),
    "range with no date": ({"must": [{"key": "a", "range": {"gt": "2024-13-01"}}]}, "filter.must[0]", r"RFC 3339"),
    "range of a number and a date": (
        {"must": [{"key": "a", "range": {"gt": 5, "lt": "2024-01-01"}}]},
        "filter.must[0]",
        r"range takes gt, gte, lt, lte",
    ),
    "range with booleans": ({"must": [{"key": "a", "range": {"gt": True}}]}, "filter.must[0]", r"range takes"),
    "range of a wrong form": ({"must": [{"key": "a", "range": 3}]}, "filter.must[0]", r"range takes"),
    "place in a deeper filter": (
        {"must": [{"should": [{"key": "a", "match": {"value": 1}}, {"key": "a", "match": 3}]}]},
        "filter.must[0].should[1]",
        r"match takes one of value",
    ),
    "nested without a filter": ({"must": [{"nested": {"key": "a"}}]}, "filter.must[0]", r"nested is an object with key"),
    "nested with a bad filter": (
        {"must": [{"nested": {"key": "a", "filter": {"x": 1}}}]},
        "filter.must[0].nested.filter",
        r"found the keys x",
    ),
    "min_should without a count": ({"min_should": {"conditions": []}}, "filter.min_should", r"conditions .* and min_count"),
    "has_id with a name": ({"must": [{"has_id": ["abc"]}]}, "filter.must[0]", r"'abc', which is not a UUID"),
    "huge integer": ({"must": [{"key": "a", "match": {"value": 2**63}}]}, "filter.must[0]", r"from -2\^63 to 2\^63-1"),
    "NaN": ({"must": [{"key": "a", "range": {"gt": float("nan")}}]}, "filter", r"not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_filter_is_refused_with_its_place_and_what_is_allowed(name: str) -> None:
    where, place, message = BAD[name]

    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_filter(where)

    assert caught.value.param == place


def test_filter_that_is_nested_too_deep_is_refused() -> None:
    where: dict[str, Any] = {}
    for _ in range(30):
        where = {"must": [where]}

    with pytest.raises(InvalidRequest, match="deeper than 20"):
        parse_filter(where)


def test_filter_that_python_cannot_even_walk_is_refused() -> None:
    where: dict[str, Any] = {}
    for _ in range(100_000):
        where = {"must": [where]}

    with pytest.raises(InvalidRequest, match="not JSON"):
        parse_filter(where)
