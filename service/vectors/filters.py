"""Qdrant's JSON filter, read into `qdrant_client.models.Filter`. An error says where it is and what is allowed there.

The walk names the kind of every condition by its keys before pydantic sees it: pydantic alone answers a wrong condition with
the complaints of all the kinds that it could have been. What an engine makes of the filter lives in the engines.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from qdrant_client import models

from service.errors import InvalidRequest
from service.vectors.engine import Filter
from service.vectors.refusals import is_uuid

MAX_DEPTH = 20  # Nobody writes deeper by hand, and recursion must end before Python's limit.

ConditionT = TypeVar("ConditionT", bound=BaseModel)

DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
CLAUSES = ("must", "should", "must_not", "min_should")
CONDITIONS: dict[str, type[models.Condition]] = {
    "key": models.FieldCondition,
    "has_id": models.HasIdCondition,
    "has_vector": models.HasVectorCondition,
    "is_empty": models.IsEmptyCondition,
    "is_null": models.IsNullCondition,
    "slice": models.SliceCondition,
}
PREDICATES = {
    "match": (
        "one of value (text, integer or boolean), any or except (a list of texts or of integers), "
        "text, text_any, phrase, prefix, substring"
    ),
    "range": "gt, gte, lt, lte with numbers, or with RFC 3339 dates and times",
    "geo_bounding_box": "top_left and bottom_right, each with lon and lat",
    "geo_radius": "center with lon and lat, and radius in metres",
    "geo_polygon": "exterior and perhaps interiors",
    "values_count": "gt, gte, lt, lte with integers",
    "is_empty": "true or false",
    "is_null": "true or false",
}


def parse_filter(where: Filter) -> models.Filter:
    """Give the filter as qdrant-client's object. Raises InvalidRequest with `param` at the place that is wrong."""
    try:
        plain = json.loads(json.dumps(dict(where), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The filter is not JSON: {error}", param="filter") from error
    return _parse_clauses(plain, at="filter", depth=0)


def _parse_clauses(plain: Any, *, at: str, depth: int) -> models.Filter:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"The filter is nested deeper than {MAX_DEPTH} levels.", param=at)
    if not isinstance(plain, dict) or not plain.keys() <= set(CLAUSES):
        found = f"the keys {', '.join(plain)}" if isinstance(plain, dict) else f"{plain!r}"
        raise InvalidRequest(f"{at} is an object with any of {', '.join(CLAUSES)}; found {found}.", param=at)
    clauses: dict[str, Any] = {}
    for clause, value in plain.items():
        if clause == "min_should":
            clauses[clause] = _parse_min_should(value, at=f"{at}.{clause}", depth=depth)
        elif value is not None:
            clauses[clause] = _parse_conditions(value, at=f"{at}.{clause}", depth=depth)
    return models.Filter(**clauses)


def _parse_min_should(plain: Any, *, at: str, depth: int) -> models.MinShould | None:
    match plain:
        case None:
            return None
        case {"conditions": list(conditions), "min_count": int(min_count)} if len(plain) == 2 and min_count >= 0:
            return models.MinShould(conditions=_parse_conditions(conditions, at=at, depth=depth), min_count=min_count)
    raise InvalidRequest(f"{at} is an object with conditions (a list) and min_count (an integer >= 0).", param=at)


def _parse_conditions(plain: Any, *, at: str, depth: int) -> list[models.Condition]:
    if not isinstance(plain, list):
        return [_parse_condition(plain, at=at, depth=depth)]
    return [_parse_condition(item, at=f"{at}[{place}]", depth=depth) for place, item in enumerate(plain)]


def _parse_condition(plain: Any, *, at: str, depth: int) -> models.Condition:
    match plain:
        case {"nested": {"key": str(key), "filter": inner, **others}} if len(plain) == 1 and not others:
            clauses = _parse_clauses(inner, at=f"{at}.nested.filter", depth=depth + 1)
            return models.NestedCondition(nested=models.Nested(key=key, filter=clauses))
        case {"nested": _}:
            raise InvalidRequest(f"{at}.nested is an object with key (text) and filter (a filter).", param=at)
        case {"key": str()}:
            return _parse_field(plain, at=at)
        case dict() if plain.keys() <= set(CLAUSES):
            return _parse_clauses(plain, at=at, depth=depth + 1)
        case dict():
            for tell_tale, kind in CONDITIONS.items():
                if tell_tale in plain:
                    return _validate(kind, plain, at=at, allowed="")
    raise InvalidRequest(
        f"{at} is no condition: {plain!r}. A condition is an object with one of nested, {', '.join(CONDITIONS)}, "
        f"or a filter with {', '.join(CLAUSES)}.",
        param=at,
    )


def _parse_field(plain: Mapping[str, Any], *, at: str) -> models.FieldCondition:
    asked = plain.keys() - {"key"}
    if not asked or not asked <= PREDICATES.keys():
        raise InvalidRequest(
            f"{at} asks {', '.join(sorted(asked)) or 'nothing'} of field {plain['key']!r}; "
            f"a field condition has one of {', '.join(PREDICATES)}.",
            param=at,
        )
    allowed = " ".join(f"{predicate} takes {PREDICATES[predicate]}." for predicate in sorted(asked))
    if not _are_bounds(plain.get("range")):
        raise InvalidRequest(f"{at} is wrong: found range {plain['range']!r}. {allowed}", param=at)
    return _validate(models.FieldCondition, plain, at=at, allowed=allowed)


def _are_bounds(plain: Any) -> bool:
    """Whether pydantic may read this range: left alone it takes the text "7", and a number beside a date, for a timestamp."""
    bounds = [bound for bound in plain.values() if bound is not None] if isinstance(plain, dict) else []
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds)
    return numbers or all(isinstance(bound, str) and DATE.match(bound) for bound in bounds)


def _validate(kind: type[ConditionT], plain: Mapping[str, Any], *, at: str, allowed: str) -> ConditionT:
    """Give the condition. JSON strictness: a number in quotes is text, as it is to a Qdrant server."""
    try:
        condition = kind.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise InvalidRequest(f"{at} is wrong: {_complaints(error)}. {allowed}".rstrip(), param=at) from error
    _check_values(plain, at=at)
    return condition


def _complaints(error: ValidationError) -> str:
    """Give at most three different complaints, those about values before those about keys of kinds that were not meant."""
    found = error.errors(include_url=False)
    about_values = [item for item in found if item["type"] not in ("missing", "extra_forbidden")] or found
    return "; ".join(list(dict.fromkeys(item["msg"] for item in about_values))[:3])


def _check_values(plain: Any, *, at: str) -> None:
    """Raise InvalidRequest for an integer or a point id that pydantic passes and an engine cannot hold."""
    if isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        raise InvalidRequest(f"{at} holds {plain}; integers go from -2^63 to 2^63-1.", param=at)
    if isinstance(plain, dict):
        for point_id in plain.get("has_id", []):
            if isinstance(point_id, str) and not is_uuid(point_id):
                raise InvalidRequest(f"{at}.has_id holds {point_id!r}, which is not a UUID in small letters.", param=at)
        for item in plain.values():
            _check_values(item, at=at)
    if isinstance(plain, list):
        for item in plain:
            _check_values(item, at=at)
