"""What only the server engine promises: which error stands for what the client and the server say."""

import inspect
import json

import httpx
import numpy as np
import pytest
from qdrant_client.common import client_exceptions
from qdrant_client.http import exceptions
from qdrant_client.http.exceptions import UnexpectedResponse

from service.errors import InvalidRequest, NotFound, ServiceError, Unavailable
from service.vectors.engine import Points
from service.vectors.server import ServerEngine
from service.vectors.server_errors import CLIENT_ERRORS, server_errors


def refusal(status: int, content: bytes) -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", content, httpx.Headers())


def test_server_that_cannot_be_reached_is_unavailable_for_every_method() -> None:
    engine = ServerEngine.connect("http://127.0.0.1:9")  # The discard port; nobody listens.
    row = np.ones((1, 4), dtype=np.float32)
    ids = ["00000000-0000-0000-0000-000000000001"]

    for ask in (
        lambda: engine.create_collection("docs", dim=4, indexes={}),
        lambda: engine.drop_collection("docs"),
        lambda: engine.vector_names("docs"),
        lambda: engine.add_vector_name("docs", "v1", dim=4),
        lambda: engine.drop_vector_name("docs", "v1"),
        lambda: engine.upsert("docs", Points(ids, {"base": row}, [{}])),
        lambda: engine.set_vectors("docs", "base", ids, row),
        lambda: engine.payloads("docs", ids),
        lambda: list(engine.scroll("docs", "base")),
        lambda: engine.count("docs"),
        lambda: engine.delete("docs", ids=ids),
        lambda: engine.search("docs", "base", row[0], limit=1),
        engine.ping,
    ):
        with pytest.raises(Unavailable, match="does not answer") as caught:
            ask()
        assert caught.value.__cause__ is not None
    engine.close()


@pytest.mark.parametrize(
    ("status", "sentence", "expected"),
    [
        (404, "Not found: Collection `docs` doesn't exist!", NotFound),
        (400, "Wrong input: Not existing vector name error: v9", NotFound),
        (400, "Wrong input: Vector dimension error: expected dim: 4, got 3", InvalidRequest),
        (422, "Format error in JSON body", InvalidRequest),
        (401, "Must provide an API key", Unavailable),
        (403, "Forbidden", Unavailable),
        (429, "Too many requests", Unavailable),
        (500, "Service internal error: disk", Unavailable),
        (503, "Service unavailable", Unavailable),
    ],
)
def test_answer_of_the_server_becomes_the_error_of_its_kind(status: int, sentence: str, expected: type[ServiceError]) -> None:
    answer = refusal(status, json.dumps({"status": {"error": sentence}}).encode())

    with pytest.raises(expected) as caught, server_errors("docs"):
        raise answer

    assert type(caught.value) is expected
    assert sentence in caught.value.message


def test_answer_that_is_not_qdrants_is_kept_readable() -> None:
    with pytest.raises(Unavailable, match="Bad Gateway"), server_errors("docs"):
        raise refusal(502, b"<html>Bad Gateway</html>")


def test_limit_of_requests_tells_when_to_come_back() -> None:
    with pytest.raises(Unavailable) as caught, server_errors("docs"):
        raise client_exceptions.ResourceExhaustedResponse("slow down", 17)

    assert caught.value.retry_after_seconds == 17


def test_every_error_of_the_client_is_mapped() -> None:
    declared = [kind for module in (exceptions, client_exceptions) for _, kind in inspect.getmembers(module, inspect.isclass)]
    errors = [kind for kind in declared if issubclass(kind, Exception)]

    assert len(errors) >= 4
    assert [kind for kind in errors if not issubclass(kind, CLIENT_ERRORS)] == []


def test_mistake_of_our_own_is_not_dressed_up() -> None:
    with pytest.raises(KeyError), server_errors("docs"):
        raise KeyError("bug")
