"""The check of recorded requests lets the right ones through and catches each kind of wrong one."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.qdrant_standin import Recorded
from tests.service.vectors.qdrant_rules import Rules, closed, complaints, known_rules

RULES = known_rules()
DOCS = "/collections/docs"
POINT = "00000000-0000-0000-0000-000000000001"
BATCH = {"ids": [POINT], "vectors": {"base": [[0.5, 1.0]]}, "payloads": [{"any": {"thing": None}}]}
WAIT = {"wait": "true"}


def request(method: str, path: str, body: Any = None, query: dict[str, str] | None = None) -> Recorded:
    return Recorded(method, path, query or {}, b"" if body is None else json.dumps(body).encode())


@pytest.fixture(params=RULES, ids=lambda rules: type(rules).__name__)
def rules(request: pytest.FixtureRequest) -> Rules:
    found: Rules = request.param
    return found


@pytest.mark.parametrize(
    "right",
    [
        request("GET", DOCS),
        request("DELETE", DOCS),
        request("PUT", DOCS, {"vectors": {"base": {"size": 4, "distance": "Dot"}}, "metadata": {"mine": "yes"}}),
        request("PUT", DOCS, {"quantization_config": {"turbo": {"bits": "bits4"}}, "hnsw_config": {}}),
        request("PATCH", DOCS, {"optimizers_config": {"indexing_threshold": 0}}),
        request("PUT", f"{DOCS}/vectors/v1", {"dense": {"size": 4, "distance": "Dot"}}, WAIT),
        request("PUT", f"{DOCS}/points", {"batch": BATCH}, WAIT),
        request("POST", f"{DOCS}/points/count", {"filter": {"must": [{"has_vector": "v1"}]}, "exact": True}),
        request("POST", f"{DOCS}/points/count", {"filter": None}),
    ],
    ids=str,
)
def test_right_request_passes(rules: Rules, right: Recorded) -> None:
    assert complaints(rules, right) == []


@pytest.mark.parametrize(
    "wrong",
    [
        request("GET", "/collection/docs"),
        request("PUT", f"{DOCS}/point", {"batch": BATCH}),
        request("POST", f"{DOCS}/aliases/x"),
        request("PATCH", f"{DOCS}/points", {"batch": BATCH}),
        request("GET", "/collections//exists"),
        request("GET", DOCS, query={"wait": "true"}),
        request("PUT", f"{DOCS}/points", {"batch": BATCH}, {"wait": "yes"}),
        request("PUT", f"{DOCS}/points", {"batch": BATCH}, {"wait": "true", "fast": "true"}),
        request("PUT", f"{DOCS}/points"),
        request("DELETE", f"{DOCS}/vectors/v1", {}, WAIT),
        request("PUT", f"{DOCS}/points", {"batch": BATCH, "more": 1}, WAIT),
        request("PUT", f"{DOCS}/points", {"batch": {**BATCH, "names": ["base"]}}, WAIT),
        request("PUT", f"{DOCS}/points", {"batch": {**BATCH, "vectors": {"base": [["0.5", 1.0]]}}}, WAIT),
        request("PUT", f"{DOCS}/points", {"batch": {"ids": [POINT]}}, WAIT),
        request("PUT", DOCS, {"vectors": {"base": {"size": 4, "distance": "Dots"}}}),
        request("PUT", DOCS, {"vectors": {"base": {"size": 4, "distance": "Dot", "dim": 4}}}),
        request("PUT", DOCS, {"quantization_config": {"turbo": {"bits": "bits5"}}}),
        request("PUT", DOCS, {"quantization_config": {"turbo": {"bits": "bits4", "rescore": True}}}),
        request("PUT", DOCS, {"hnsw_config": {"ef": 100}}),
        request("PATCH", DOCS, {"optimizers_config": {"indexing_threshold": "0"}}),
        request("PATCH", DOCS, {"optimizers_config": {"index_threshold": 0}}),
        request("POST", f"{DOCS}/points/count", {"filter": {"must": [{"has_vectors": "v1"}]}}),
        request("POST", f"{DOCS}/points/count", {"filter": {"all": []}}),
        request("POST", f"{DOCS}/points/query", {"query": [0.5], "params": {"quantization": {"oversample": 2.0}}}),
    ],
    ids=str,
)
def test_wrong_request_is_caught(rules: Rules, wrong: Recorded) -> None:
    assert complaints(rules, wrong)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"nullable": True}, [None], [1, "x", {}]),
        ({"type": "integer", "nullable": True, "default": None}, [None, 3], ["3"]),
        ({"type": "object", "properties": {"a": {"type": "string", "nullable": True}}}, [{}, {"a": None}], [{"b": 1}, {"a": 1}]),
        ({"type": "object", "additionalProperties": True}, [{"b": 1}], [1]),
        ({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"nullable": True}]}, [None, [1]], [["1"], 1]),
    ],
)
def test_schemas_of_openapi_are_read_as_what_they_mean(schema: dict[str, Any], right: list[Any], wrong: list[Any]) -> None:
    validator = Draft202012Validator(closed(schema))

    assert all(validator.is_valid(value) for value in right)
    assert not any(validator.is_valid(value) for value in wrong)
