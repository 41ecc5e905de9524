"""Which error of ours stands for what the client and the server say, and how soon a server that is away is noticed."""

import inspect
import json
import socket
import time

import httpx
import numpy as np
import pytest
from qdrant_client.common import client_exceptions
from qdrant_client.http import exceptions
from qdrant_client.http.exceptions import UnexpectedResponse

from benchmarks.qdrant_standin import Standin
from benchmarks.qdrant_standin_answers import Refusal
from service.errors import InvalidRequest, NotFound, ServiceError, Unavailable
from service.vectors import server as server_module
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
        lambda: engine.create_collection("docs", dim=4, indexes={}, owner="col_1"),
        lambda: engine.drop_collection("docs", owner="col_1"),
        lambda: engine.bulk_load("docs").__enter__(),
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


def test_connection_that_nobody_takes_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECT_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listening,
        # Linux takes one connection more than the backlog, and leaves the next ones without an answer.
        socket.create_connection(listening.getsockname()),
    ):
        engine = ServerEngine.connect(f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(Unavailable, match="ConnectTimeout"):
            engine.count("docs")
        assert time.monotonic() - started < 2
        engine.close()


def test_ping_gives_up_sooner_than_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PING_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = ServerEngine.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(Unavailable, match="ReadTimeout"):
            engine.ping()
        assert time.monotonic() - started < 3
        engine.close()


def test_time_outs_are_what_the_service_promises() -> None:
    assert (server_module.CONNECT_SECONDS, server_module.PING_SECONDS, server_module.TIMEOUT_SECONDS) == (3, 3, 60)


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


def test_server_that_limits_its_requests_is_asked_again_when_it_says(server: Standin) -> None:
    engine = ServerEngine.connect(server.url)
    server.refusals.append(Refusal(429, "Rate limiting exceeded: Write rate limit exceeded", retry_after=9))

    with pytest.raises(Unavailable, match="Write rate limit exceeded") as caught:
        engine.create_collection("docs", dim=4, indexes={}, owner="col_1")

    assert caught.value.retry_after_seconds == 9
    engine.create_collection("docs", dim=4, indexes={}, owner="col_1")
    assert engine.count("docs") == 0
    engine.close()


def test_every_error_of_the_client_is_mapped() -> None:
    declared = [kind for module in (exceptions, client_exceptions) for _, kind in inspect.getmembers(module, inspect.isclass)]
    errors = [kind for kind in declared if issubclass(kind, Exception)]

    assert len(errors) >= 4
    assert [kind for kind in errors if not issubclass(kind, CLIENT_ERRORS)] == []


def test_mistake_of_our_own_is_not_dressed_up() -> None:
    with pytest.raises(KeyError), server_errors("docs"):
        raise KeyError("bug")
