"""A parsed Qdrant filter as Qdrant Edge's own objects. Edge reads no JSON, and has all of Qdrant's conditions but `slice`.

Texts and booleans to match take the form that `edge_payloads` gives the stored ones.
"""

from datetime import date

import qdrant_edge as edge
from qdrant_client import models

from service.errors import InvalidRequest
from service.vectors.edge_payloads import to_stored


def edge_filter(parsed: models.Filter) -> edge.Filter:
    """Give the filter for Edge. Raises InvalidRequest for a condition that Edge lacks and for a key that is no path."""
    try:
        return _filter(parsed)
    except ValueError as error:
        raise InvalidRequest(f"The filter is wrong: {error}", param="filter") from error


def _filter(parsed: models.Filter) -> edge.Filter:
    few = parsed.min_should
    return edge.Filter(
        must=_conditions(parsed.must),
        should=_conditions(parsed.should),
        must_not=_conditions(parsed.must_not),
        min_should=None if few is None else edge.MinShould(_conditions(few.conditions) or [], few.min_count),
    )


def _conditions(clause: list[models.Condition] | models.Condition | None) -> "list[edge.ConditionType] | None":
    if clause is None:
        return None
    return [_condition(condition) for condition in (clause if isinstance(clause, list) else [clause])]


def _condition(condition: models.Condition) -> "edge.ConditionType":  # noqa: PLR0911 - one return for each kind
    match condition:
        case models.FieldCondition():
            return _field(condition)
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(condition.is_empty.key)
        case models.IsNullCondition():
            return edge.IsNullCondition(condition.is_null.key)
        case models.HasIdCondition():
            return edge.HasIdCondition(set(condition.has_id))
        case models.HasVectorCondition():
            return edge.HasVectorCondition(condition.has_vector)
        case models.NestedCondition():
            return edge.NestedCondition(condition.nested.key, _filter(condition.nested.filter))
        case models.Filter():
            return _filter(condition)
    raise InvalidRequest(
        "The embedded vector engine has no `slice` condition; use key, nested, has_id, has_vector, is_empty, is_null, "
        "or a filter with must, should, must_not, min_should.",
        param="filter",
    )


def _field(field: models.FieldCondition) -> edge.FieldCondition:
    return edge.FieldCondition(
        key=field.key,
        match=None if field.match is None else _match(field.match),
        range=None if field.range is None else _range(field.range),
        geo_bounding_box=None if field.geo_bounding_box is None else _bounding_box(field.geo_bounding_box),
        geo_radius=None if field.geo_radius is None else _circle(field.geo_radius),
        geo_polygon=None if field.geo_polygon is None else _polygon(field.geo_polygon),
        values_count=None if field.values_count is None else edge.ValuesCount(**field.values_count.model_dump()),
        is_empty=field.is_empty,
        is_null=field.is_null,
    )


def _match(asked: models.Match) -> "edge.MatchType":  # noqa: PLR0911 - one return for each kind
    match asked:
        case models.MatchValue():
            return edge.MatchValue(to_stored(asked.value))
        case models.MatchAny():
            return edge.MatchAny(to_stored(asked.any))
        case models.MatchExcept():
            return edge.MatchExcept(to_stored(asked.except_))
        case models.MatchText():
            return edge.MatchText(asked.text)
        case models.MatchTextAny():
            return edge.MatchTextAny(asked.text_any)
        case models.MatchPhrase():
            return edge.MatchPhrase(asked.phrase)
        case models.MatchPrefix():
            return edge.MatchPrefix(to_stored(asked.prefix))
        case models.MatchSubstring():
            return edge.MatchSubstring(asked.substring)


def _range(asked: models.RangeInterface) -> "edge.RangeType":
    if isinstance(asked, models.DatetimeRange):
        return edge.RangeDateTime(
            gte=_timestamp(asked.gte), gt=_timestamp(asked.gt), lte=_timestamp(asked.lte), lt=_timestamp(asked.lt)
        )
    return edge.RangeFloat(gte=asked.gte, gt=asked.gt, lte=asked.lte, lt=asked.lt)


def _timestamp(moment: date | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _bounding_box(box: models.GeoBoundingBox) -> edge.GeoBoundingBox:
    return edge.GeoBoundingBox(_point(box.top_left), _point(box.bottom_right))


def _circle(circle: models.GeoRadius) -> edge.GeoRadius:
    return edge.GeoRadius(_point(circle.center), circle.radius)


def _polygon(polygon: models.GeoPolygon) -> edge.GeoPolygon:
    return edge.GeoPolygon(_ring(polygon.exterior), [_ring(ring) for ring in polygon.interiors or []])


def _ring(line: models.GeoLineString) -> list[edge.GeoPoint]:
    return [_point(point) for point in line.points]


def _point(point: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(point.lon, point.lat)
