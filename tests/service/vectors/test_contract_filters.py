"""Filters from Qdrant's JSON: both engines give exactly the points that a plain Python condition gives."""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.vectors.engine import FieldType, Points, VectorEngine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]

BERLIN = {"lon": 13.4, "lat": 52.5}
PARIS = {"lon": 2.35, "lat": 48.85}
BOX = {"top_left": {"lon": 0, "lat": 50}, "bottom_right": {"lon": 5, "lat": 40}}
RING = [{"lon": x, "lat": y} for x, y in ((0, 40), (5, 40), (5, 50), (0, 50), (0, 40))]
PAYLOADS: list[dict[str, Any]] = [
    {"lang": "en", "year": 1999, "score": 0.5, "live": True, "when": "2024-01-01T00:00:00Z", "tags": ["a", "b"]},
    {"lang": "de", "year": 2005, "score": -1.5, "live": False, "when": "2024-06-01T12:00:00Z", "tags": ["b"]},
    {"lang": "fr", "year": 2012, "score": 2.0, "when": "2024-06-01T14:00:00+02:00", "tags": []},
    {"lang": "en", "year": 1, "score": 3.25, "live": True, "meta": {"flag": False, "n": 1}, "note": "the quick brown fox"},
    {"lang": "true", "year": 0, "live": None, "meta": {"flag": True, "n": 2}, "note": "a slow brown dog"},
    {"year": -7, "score": 1e300, "live": [True, False], "meta": {"flags": [False, [True]]}, "lang": None},
    {"parts": [{"kind": "a", "final": True, "size": 1}, {"kind": "b", "final": False, "size": 5}], "live": 1},
    {"parts": [{"kind": "a", "final": False, "size": 5}, {"kind": "b", "final": True, "size": 1}], "live": "true"},
    {"parts": [{"kind": "c", "checks": [{"ok": True}, {"ok": False}]}], "lang": ["en", "it"], "live": 0},
    {"parts": [{"kind": "c", "checks": [{"ok": False}]}, {"kind": "a"}], "live": "\x00\x01", "note": "\x00\x01"},
    {"where": BERLIN, "live": False},
    {"where": PARIS},
    {},
]
INDEXES: dict[str, FieldType] = {
    "lang": "keyword", "year": "integer", "score": "float", "live": "bool", "when": "datetime", "note": "text",
    "meta.flag": "bool", "parts[].final": "bool", "parts[].kind": "keyword", "parts[].size": "integer",
}  # fmt: skip


def point_id(number: int) -> str:
    return str(uuid5(UUID(int=0), str(number)))


def parts(payload: dict[str, Any]) -> list[dict[str, Any]]:
    return payload.get("parts", [])


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def is_true(value: Any) -> bool:
    return any(item is True for item in as_list(value))


def is_false(value: Any) -> bool:
    return any(item is False for item in as_list(value))


def match(key: str, **asked: Any) -> dict[str, Any]:
    return {"key": key, "match": asked}


def between(key: str, **bounds: Any) -> dict[str, Any]:
    return {"key": key, "range": bounds}


def nested(key: str, **clauses: Any) -> dict[str, Any]:
    return {"nested": {"key": key, "filter": clauses}}


Condition = Callable[[dict[str, Any]], bool]
CASES: dict[str, tuple[dict[str, Any], Condition]] = {
    "all": ({}, lambda p: True),
    "keyword": ({"must": [match("lang", value="en")]}, lambda p: "en" in as_list(p.get("lang"))),
    "a single condition": ({"must": match("lang", value="en")}, lambda p: "en" in as_list(p.get("lang"))),
    "integer": ({"must": [match("year", value=1)]}, lambda p: p.get("year") == 1),
    "true": ({"must": [match("live", value=True)]}, lambda p: is_true(p.get("live"))),
    "false": ({"must": [match("live", value=False)]}, lambda p: is_false(p.get("live"))),
    "not true": ({"must_not": [match("live", value=True)]}, lambda p: not is_true(p.get("live"))),
    "not false": ({"must_not": [match("live", value=False)]}, lambda p: not is_false(p.get("live"))),
    "either": (
        {"should": [match("live", value=True), match("live", value=False)]},
        lambda p: is_true(p.get("live")) or is_false(p.get("live")),
    ),
    "one is not true": ({"must": [match("live", value=1)]}, lambda p: p.get("live") == 1 and p["live"] is not True),
    "zero is not false": ({"must": [match("live", value=0)]}, lambda p: p.get("live") == 0 and p["live"] is not False),
    "text true is not true": ({"must": [match("live", value="true")]}, lambda p: p.get("live") == "true"),
    "text like a stored boolean": ({"must": [match("live", value="\x00\x01")]}, lambda p: p.get("live") == "\x00\x01"),
    "any text like a stored boolean": ({"must": [match("note", any=["\x00\x01"])]}, lambda p: p.get("note") == "\x00\x01"),
    "boolean in an object": ({"must": [match("meta.flag", value=True)]}, lambda p: is_true(p.get("meta", {}).get("flag"))),
    "false in an object": ({"must": [match("meta.flag", value=False)]}, lambda p: is_false(p.get("meta", {}).get("flag"))),
    "boolean in objects in an array": (
        {"must": [match("parts[].final", value=True)]},
        lambda p: any(part.get("final") is True for part in parts(p)),
    ),
    "no boolean in objects in an array": (
        {"must_not": [match("parts[].final", value=False)]},
        lambda p: not any(part.get("final") is False for part in parts(p)),
    ),
    "boolean in arrays in arrays": (
        {"must": [match("parts[].checks[].ok", value=True)]},
        lambda p: any(check["ok"] is True for part in parts(p) for check in part.get("checks", [])),
    ),
    "boolean and keyword of the same nested object": (
        {"must": [nested("parts", must=[match("kind", value="a"), match("final", value=True)])]},
        lambda p: any(part.get("kind") == "a" and part.get("final") is True for part in parts(p)),
    ),
    "range and boolean of the same nested object": (
        {"must": [nested("parts[]", must=[between("size", gt=2)], must_not=[match("final", value=True)])]},
        lambda p: any(part.get("size", 0) > 2 and part.get("final") is not True for part in parts(p)),
    ),
    "any": ({"must": [match("lang", any=["de", "fr"])]}, lambda p: p.get("lang") in ("de", "fr")),
    "any in an array": ({"must": [match("tags", any=["a", "z"])]}, lambda p: "a" in p.get("tags", [])),
    "any integer": ({"must": [match("year", any=[1999, -7])]}, lambda p: p.get("year") in (1999, -7)),
    "except": (
        {"must": [match("lang", **{"except": ["en", "de"]})]},
        lambda p: any(item is not None and item not in ("en", "de") for item in as_list(p.get("lang"))),
    ),
    "except integer": ({"must": [match("year", **{"except": [1999]})]}, lambda p: p.get("year", 1999) != 1999),
    "text": ({"must": [match("note", text="brown")]}, lambda p: "brown" in p.get("note", "")),
    "integer range": ({"must": [between("year", gte=0, lt=2005)]}, lambda p: 0 <= p.get("year", -1) < 2005),
    "float range": (
        {"must": [between("score", gt=-1.5, lte=2.0)]},
        lambda p: -1.5 < p.get("score", -9) <= 2.0,
    ),
    "float range over all": ({"must": [between("score", gt=3e200)]}, lambda p: p.get("score", 0) > 3e200),
    "datetime": (
        {"must": [between("when", gt="2024-01-01T00:00:00Z", lte="2024-06-01T12:00:00Z")]},
        lambda p: p.get("when", "").startswith("2024-06"),
    ),
    "datetime in another zone": (
        {"must": [between("when", gte="2024-06-01T13:30:00+01:30")]},
        lambda p: p.get("when", "").startswith("2024-06"),
    ),
    "date": (
        {"must": [between("when", lt="2024-06-01")]},
        lambda p: p.get("when", "").startswith("2024-01"),
    ),
    "is empty": ({"must": [{"is_empty": {"key": "lang"}}]}, lambda p: p.get("lang") in (None, [])),
    "is empty array": ({"must": [{"is_empty": {"key": "tags"}}]}, lambda p: p.get("tags", []) == []),
    "is empty boolean": ({"must": [{"is_empty": {"key": "live"}}]}, lambda p: p.get("live") is None),
    "is null": ({"must": [{"is_null": {"key": "lang"}}]}, lambda p: "lang" in p and p["lang"] is None),
    "is null boolean": ({"must": [{"is_null": {"key": "live"}}]}, lambda p: "live" in p and p["live"] is None),
    "has id": ({"must": [{"has_id": [point_id(2), point_id(5), point_id(99)]}]}, lambda p: p["number"] in (2, 5)),
    "has no id": ({"must_not": [{"has_id": [point_id(2)]}]}, lambda p: p["number"] != 2),
    "has vector": ({"must": [{"has_vector": "v1"}]}, lambda p: p["number"] < 4),
    "nested on objects": (
        {"must": [nested("parts", must=[match("kind", value="b"), match("size", value=5)])]},
        lambda p: any(part.get("kind") == "b" and part.get("size") == 5 for part in parts(p)),
    ),
    "values count": ({"must": [{"key": "tags", "values_count": {"gte": 1, "lt": 2}}]}, lambda p: len(p.get("tags", [])) == 1),
    "count of booleans": ({"must": [{"key": "live", "values_count": {"gt": 1}}]}, lambda p: len(as_list(p.get("live"))) > 1),
    "min should": (
        {
            "min_should": {
                "conditions": [match("lang", value="en"), match("live", value=True), between("year", gt=1000)],
                "min_count": 2,
            }
        },
        lambda p: ("en" in as_list(p.get("lang"))) + is_true(p.get("live")) + (p.get("year", 0) > 1000) >= 2,
    ),
    "filter in a filter": (
        {"must": [{"should": [match("lang", value="de"), {"must_not": [{"is_empty": {"key": "parts"}}]}]}]},
        lambda p: p.get("lang") == "de" or bool(parts(p)),
    ),
    "all clauses": (
        {
            "must": [between("year", gte=-100)],
            "should": [match("live", value=True), match("meta.flag", value=True)],
            "must_not": [match("lang", value="true")],
        },
        lambda p: "year" in p and (is_true(p.get("live")) or is_true(p.get("meta", {}).get("flag"))) and p.get("lang") != "true",
    ),
    "circle": (
        {"must": [{"key": "where", "geo_radius": {"center": {"lon": 13.0, "lat": 52.0}, "radius": 100_000}}]},
        lambda p: p.get("where") == BERLIN,
    ),
    "bounding box": ({"must": [{"key": "where", "geo_bounding_box": BOX}]}, lambda p: p.get("where") == PARIS),
    "polygon": (
        {"must": [{"key": "where", "geo_polygon": {"exterior": {"points": RING}}}]},
        lambda p: p.get("where") == PARIS,
    ),
}


@pytest.fixture(params=["indexed", "without indexes"])
def docs(request: pytest.FixtureRequest, engine: VectorEngine) -> VectorEngine:
    """An engine with the payloads in the collection `docs`; the first four points have the vector `v1`."""
    engine.create_collection("docs", dim=2, indexes=INDEXES if request.param == "indexed" else {}, owner="col_1")
    engine.add_vector_name("docs", "v1", dim=2)
    ids = [point_id(number) for number in range(len(PAYLOADS))]
    rows = np.ones((len(PAYLOADS), 2), dtype=np.float32)
    engine.upsert("docs", Points(ids, {"base": rows}, [{**p, "number": n} for n, p in enumerate(PAYLOADS)]))
    engine.set_vectors("docs", "v1", ids[:4], rows[:4])
    return engine


def found_numbers(engine: VectorEngine, where: dict[str, Any]) -> set[int]:
    hits = engine.search("docs", "base", np.ones(2, dtype=np.float32), limit=100, where=where)
    return {hit.payload["number"] for hit in hits}


def test_filters_find_what_plain_python_finds(docs: VectorEngine) -> None:
    # One test for all, because a collection a filter would take a minute.
    wrong = {}
    for name, (where, condition) in CASES.items():
        expected = {n for n, payload in enumerate(PAYLOADS) if condition({**payload, "number": n})}
        found = found_numbers(docs, where)
        if found != expected:
            wrong[name] = (found, expected)

    assert wrong == {}


def test_every_case_tells_points_apart() -> None:
    for name, (_, condition) in CASES.items():
        matching = sum(condition({**payload, "number": n}) for n, payload in enumerate(PAYLOADS))
        assert name == "all" or 0 < matching < len(PAYLOADS), name


def test_bad_filter_is_refused_with_its_place_and_deletes_nothing(docs: VectorEngine) -> None:
    where = {"must": [match("lang", value="en"), {"key": "lang", "equals": "en"}]}

    for ask in (lambda: found_numbers(docs, where), lambda: docs.delete("docs", ids=[point_id(0)], where=where)):
        with pytest.raises(InvalidRequest, match="a field condition has one of match, range") as caught:
            ask()
        assert caught.value.param == "filter.must[1]"

    assert docs.count("docs") == len(PAYLOADS)


def test_field_path_that_is_no_path_is_refused(docs: VectorEngine) -> None:
    with pytest.raises(InvalidRequest, match=re.compile("path", re.IGNORECASE)):
        found_numbers(docs, {"must": [match("a..b", value=1)]})
