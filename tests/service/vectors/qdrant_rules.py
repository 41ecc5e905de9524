"""Whether Qdrant would take a request: by its OpenAPI document, and by the request models of its client.

The document is not part of this repository; where it is not there, the models alone judge. Both are read more strictly than
a server does: a field that they do not name is an error, because a server passes some of those over in silence.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models

from benchmarks.qdrant_standin import Recorded

DOCUMENT = Path(__file__).parents[4] / "shared" / "reference" / "qdrant-openapi.json"
_POINTS = "/collections/{collection_name}/points"
# Method and path -> the model of the body, and the query parameters beside it.
_MODELS: dict[tuple[str, str], tuple[Any, set[str]]] = {
    ("GET", "/collections/{collection_name}/exists"): (None, set()),
    ("GET", "/collections/{collection_name}"): (None, set()),
    ("PUT", "/collections/{collection_name}"): (models.CreateCollection, set()),
    ("PATCH", "/collections/{collection_name}"): (models.UpdateCollection, set()),
    ("DELETE", "/collections/{collection_name}"): (None, set()),
    ("PUT", "/collections/{collection_name}/index"): (models.CreateFieldIndex, {"wait"}),
    ("PUT", "/collections/{collection_name}/vectors/{vector_name}"): (models.VectorNameConfig, {"wait"}),
    ("DELETE", "/collections/{collection_name}/vectors/{vector_name}"): (None, {"wait"}),
    ("PUT", _POINTS): (models.PointInsertOperations, {"wait"}),
    ("POST", _POINTS): (models.PointRequest, set()),
    ("PUT", f"{_POINTS}/vectors"): (models.UpdateVectors, {"wait"}),
    ("POST", f"{_POINTS}/delete"): (models.PointsSelector, {"wait"}),
    ("POST", f"{_POINTS}/scroll"): (models.ScrollRequest, set()),
    ("POST", f"{_POINTS}/count"): (models.CountRequest, set()),
    ("POST", f"{_POINTS}/query"): (models.QueryRequest, set()),
}


class Rules(ABC):
    """What is known of the requests that Qdrant takes."""

    @abstractmethod
    def paths(self, method: str) -> list[str]:
        """The templates of the paths that know this method."""

    @abstractmethod
    def of_query(self, method: str, path: str, query: Mapping[str, str]) -> list[str]:
        """What is wrong with the query parameters. path: one of `paths(method)`."""

    @abstractmethod
    def of_body(self, method: str, path: str, body: bytes) -> list[str]:
        """What is wrong with the body."""


@cache
def known_rules() -> list[Rules]:
    """All that are known here, the most telling first."""
    from_document: list[Rules] = [DocumentRules(json.loads(DOCUMENT.read_bytes()))] if DOCUMENT.exists() else []
    return [*from_document, ModelRules()]


def complaints(rules: Rules, request: Recorded) -> list[str]:
    """What is wrong with the request; nothing if Qdrant takes it."""
    fitting = [path for path in rules.paths(request.method) if _fits(path, request.path)]
    if not fitting:
        return [f"Qdrant has no {request.method} {request.path}"]
    path = min(fitting, key=lambda template: template.count("{"))
    found = rules.of_query(request.method, path, request.query) + rules.of_body(request.method, path, request.body)
    return [f"{request.method} {request.path}: {complaint}" for complaint in found]


def _fits(template: str, path: str) -> bool:
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        one == other or (one.startswith("{") and other) for one, other in zip(wanted, given, strict=True)
    )


class DocumentRules(Rules):
    """By Qdrant's OpenAPI document (3.0)."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._paths = document["paths"]
        self._schemas = {name: closed(schema) for name, schema in document["components"]["schemas"].items()}

    def paths(self, method: str) -> list[str]:
        return [path for path, methods in self._paths.items() if method.lower() in methods]

    def of_query(self, method: str, path: str, query: Mapping[str, str]) -> list[str]:
        known = {one["name"]: one for one in self._paths[path][method.lower()]["parameters"] if one["in"] == "query"}
        found = [f"it has no query parameter {name}" for name in query.keys() - known.keys()]
        found += [f"it lacks {name}" for name, one in known.items() if one.get("required") and name not in query]
        for name in query.keys() & known.keys():
            schema = closed(known[name]["schema"])
            typed = query[name] if "$ref" in schema or schema["type"] == "string" else _json_or_text(query[name])
            found += self._errors(schema, typed)
        return found

    def of_body(self, method: str, path: str, body: bytes) -> list[str]:
        wanted = self._paths[path][method.lower()].get("requestBody")
        if wanted is None or not body:
            return ["it takes no body"] if body else ["it takes a body"] if wanted is not None else []
        return self._errors(closed(wanted["content"]["application/json"]["schema"]), json.loads(body))

    def _errors(self, schema: Mapping[str, Any], value: Any) -> list[str]:
        validator = Draft202012Validator({**schema, "components": {"schemas": self._schemas}})
        return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of OpenAPI 3.0 as JSON Schema: `nullable` as a type of its own, and objects without fields they do not name."""
    made = {key: value for key, value in schema.items() if key not in {"nullable", "description", "example"}}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in made:
            made[key] = [closed(one) for one in made[key]]
    if "items" in made:
        made["items"] = closed(made["items"])
    if "properties" in made:
        made["properties"] = {name: closed(one) for name, one in made["properties"].items()}
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(made["additionalProperties"])
    if not schema.get("nullable"):
        return made
    # `{"nullable": true}` alone stands in Qdrant's document for null, but to JSON Schema it would be anything at all.
    return {"anyOf": [made, {"type": "null"}]} if made.keys() - {"default"} else {"type": "null"}


class ModelRules(Rules):
    """By the request models of qdrant-client, for the requests that our engine makes."""

    def paths(self, method: str) -> list[str]:
        return [path for known, path in _MODELS if known == method]

    def of_query(self, method: str, path: str, query: Mapping[str, str]) -> list[str]:
        known = _MODELS[method, path][1]
        found = [f"it has no query parameter {name}" for name in query.keys() - known]
        return found + [f"{name} is true or false" for name in query.keys() & known if query[name] not in {"true", "false"}]

    def of_body(self, method: str, path: str, body: bytes) -> list[str]:
        model = _MODELS[method, path][0]
        if model is None or not body:
            return ["it takes no body"] if body else ["it takes a body"] if model is not None else []
        try:
            TypeAdapter(model).validate_json(body, strict=True)
        except ValidationError as error:
            return [str(error)]
        return []
