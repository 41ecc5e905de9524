"""What callers see when something fails, and what they do not see."""

import time
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from fastapi import FastAPI, HTTPException, Query
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text

from service.db import now
from service.errors import Busy, Conflict, InvalidRequest, KeyReused, NotFound, PayloadTooLarge, ServiceError, Unavailable
from service.http.dependencies import ResourcesDep
from service.http.error_answers import error_responses
from service.resources import DEFAULT_PROJECT
from service.tables import Project
from zerogate.errors import EncoderNotFound, InvalidFile, InvalidRow, TooFewExamples

Logs = Callable[[], list[dict[str, Any]]]
Serve = Callable[[FastAPI], str]


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(default=3, ge=1, le=1000)
    loss: Literal["ranking", "cosine"] = "ranking"


class JobRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    recipe: Literal["auto"] | Recipe = "auto"
    input: str | list[str] = ""


def raising(app: FastAPI, error: Exception) -> None:
    """Add GET /fails, which raises this."""

    @app.get("/fails")
    def fails() -> None:
        raise error


def refusal(app: FastAPI, **request: Any) -> dict[str, Any]:
    """The error that POST /jobs answers this request with."""

    @app.post("/jobs")
    def submit(body: JobRequest, limit: int = Query(default=1, le=100)) -> None: ...

    answer = TestClient(app).post("/jobs", **request)
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    return error


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("no", param="name"), 400, "invalid_request_error", "invalid_request"),
        (NotFound("no", code="no_such_model"), 404, "not_found_error", "no_such_model"),
        (PayloadTooLarge("no"), 413, "invalid_request_error", "payload_too_large"),
        (KeyReused("no"), 422, "invalid_request_error", "idempotency_key_reused"),
        (HTTPException(401, "no"), 401, "invalid_request_error", "unauthorized"),
        (HTTPException(404, "no"), 404, "not_found_error", "not_found"),
    ],
)
def test_an_error_becomes_the_envelope(
    app: FastAPI, client: TestClient, error: ServiceError, status: int, kind: str, code: str
) -> None:
    raising(app, error)

    answer = client.get("/fails")

    assert answer.status_code == status
    assert answer.json() == {"error": {"message": "no", "type": kind, "param": getattr(error, "param", None), "code": code}}
    assert "x-should-retry" not in answer.headers
    assert "retry-after" not in answer.headers


def test_a_permanent_conflict_tells_clients_not_to_ask_again(app: FastAPI, client: TestClient) -> None:
    raising(app, Conflict("the job is succeeded; only queued or running jobs can be cancelled"))

    answer = client.get("/fails")

    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("error", "status", "seconds"), [(Busy("wait"), 409, "1"), (Unavailable("wait"), 503, "5")])
def test_a_passing_trouble_tells_when_to_ask_again(
    app: FastAPI, client: TestClient, error: ServiceError, status: int, seconds: str
) -> None:
    raising(app, error)

    answer = client.get("/fails")

    assert (answer.status_code, answer.headers["retry-after"]) == (status, seconds)
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (InvalidRow(7, "anchor", "is empty"), "invalid_row", "anchor"),
        (InvalidRow(7, None, "is no JSON"), "invalid_row", None),
        (InvalidFile("lacks a column", field="positive"), "invalid_file", "positive"),
        (TooFewExamples("pairs", found=3, needed=10), "too_few_examples", None),
        (EncoderNotFound("there is no encoder 'x'"), "encoder_not_found", None),
    ],
)
def test_the_library_s_errors_are_the_caller_s_fault(
    app: FastAPI, client: TestClient, error: Exception, code: str, param: str | None
) -> None:
    raising(app, error)

    answer = client.get("/fails")

    assert answer.status_code == 400
    assert answer.json()["error"] == {"message": str(error), "type": "invalid_request_error", "param": param, "code": code}


def test_a_number_out_of_range_is_named_with_what_is_allowed(app: FastAPI) -> None:
    error = refusal(app, json={"model": "faq", "recipe": {"epochs": 0}})

    assert error["param"] == "recipe.epochs"
    assert error["message"] == "'body.recipe.epochs' is 0; it should be greater than or equal to 1"


def test_a_wrong_choice_is_answered_with_the_choices(app: FastAPI) -> None:
    error = refusal(app, json={"model": "faq", "recipe": {"loss": "magic"}})

    assert error["message"] == "'body.recipe.loss' is 'magic'; it should be 'ranking' or 'cosine'"


def test_what_fits_no_member_of_a_union_is_told_all_of_them(app: FastAPI) -> None:
    error = refusal(app, json={"model": "faq", "input": 5})

    assert error["param"] == "input"
    assert error["message"] == "'body.input' is 5; it should be a valid string, or it should be a valid list"


def test_the_fault_inside_a_list_is_told_by_its_position(app: FastAPI) -> None:
    error = refusal(app, json={"model": "faq", "input": ["a", None]})

    assert error["param"] == "input.1"
    assert error["message"] == "'body.input.1' is null; it should be a valid string"


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({}, "'body.model' is missing", "model"),
        (
            {"model": "faq", "recipe": {"epoch": 3}},
            "'body.recipe.epoch' is no field of this request; /docs lists the fields",
            "recipe.epoch",
        ),
        (None, "the body is missing", None),
    ],
)
def test_missing_and_unknown_fields_are_named(app: FastAPI, body: Any, message: str, param: str | None) -> None:
    error = refusal(app, json=body) if body is not None else refusal(app)

    assert (error["message"], error["param"]) == (message, param)


def test_several_faults_are_counted(app: FastAPI) -> None:
    error = refusal(app, json={"recipe": {"epochs": 0, "loss": "magic"}, "nonsense": 1}, params={"limit": 101})

    assert error["message"] == "'query.limit' is '101'; it should be less than or equal to 100 (4 more faults in this request)"
    assert error["param"] == "limit"


def test_a_broken_body_is_told_where_it_breaks(app: FastAPI) -> None:
    error = refusal(app, content='{"model": "faq",', headers={"content-type": "application/json"})

    assert error["message"].startswith("the body is no JSON: Expecting property name enclosed in double quotes at character 1")
    assert error["param"] is None


def test_a_body_without_content_type_is_told_which_to_send(app: FastAPI) -> None:
    error = refusal(app, content=b'{"model": "faq"}')

    assert "Content-Type: application/json" in error["message"]


def test_a_huge_value_is_not_sent_back(app: FastAPI) -> None:
    error = refusal(app, json={"model": "faq", "recipe": "x" * 100_000})

    assert len(error["message"]) < 300
    assert "100,000 long" in error["message"]


def test_half_a_surrogate_pair_does_not_break_the_answer(app: FastAPI, client: TestClient) -> None:
    raising(app, InvalidRequest("there is no field \ud800", param="\ud800"))

    answer = client.get("/fails")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "\ud800"


def test_an_unknown_route_points_to_the_docs(client: TestClient) -> None:
    answer = client.get("/v1/job")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_route"
    assert answer.json()["error"]["message"] == "there is no route GET '/v1/job'; GET /docs lists the routes"


def test_a_wrong_method_is_answered_with_all_the_right_ones(app: FastAPI, client: TestClient) -> None:
    @app.get("/jobs/{job_id}")
    def show(job_id: str) -> None: ...

    @app.delete("/jobs/{job_id}")
    def remove(job_id: str) -> None: ...

    answer = client.put("/jobs/job_1")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, DELETE"
    assert answer.json()["error"]["message"] == "PUT is not allowed on '/jobs/job_1'; allowed: GET, DELETE"
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_an_unforeseen_error_shows_nothing_of_the_inside(app: FastAPI, client: TestClient, logs: Logs) -> None:
    raising(app, ZeroDivisionError("the password is hunter2\n[parameters: a text of a user]"))

    answer = client.get("/fails", headers={"x-request-id": "abc-1"})

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.json()["error"] == {
        "message": "something went wrong inside the service; its log tells what, under request id abc-1",
        "type": "api_error",
        "param": None,
        "code": "internal_error",
    }
    failed = next(line for line in logs() if line["event"] == "request.failed")
    assert (failed["request_id"], failed["error"], failed["level"]) == ("abc-1", "ZeroDivisionError", "error")
    assert "in fails" in failed["exception"]
    assert "hunter2" in failed["exception"]
    assert "a text of a user" not in failed["exception"]


def test_an_outage_is_logged_with_its_cause(app: FastAPI, client: TestClient, logs: Logs) -> None:
    @app.get("/fails")
    def fails() -> None:
        raise Unavailable("Qdrant does not answer") from ConnectionRefusedError("port 6333")

    assert client.get("/fails").status_code == 503

    failed = next(line for line in logs() if line["event"] == "request.unavailable")
    assert "ConnectionRefusedError: port 6333" in failed["exception"]


def test_who_makes_the_same_thing_at_the_same_moment_may_ask_again(app: FastAPI, client: TestClient) -> None:
    @app.post("/projects")
    def create(resources: ResourcesDep) -> dict[str, bool]:
        with resources.database.write() as session:
            session.add(Project(id=DEFAULT_PROJECT, name="a secret name", created_at=now()))
        return {"created": True}

    answer = client.post("/projects")

    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    assert "x-should-retry" not in answer.headers
    assert "a secret name" not in answer.text


def test_an_error_of_the_commit_is_answered_too(app: FastAPI, client: TestClient, logs: Logs) -> None:
    values = {"secret": "a secret {}".format("name")}  # in pieces: a traceback shows lines of code

    @app.post("/projects")
    def create(resources: ResourcesDep) -> dict[str, bool]:
        with resources.database.write() as session:
            session.execute(text("INSERT INTO projects VALUES (:secret)"), values)
        return {"created": True}

    answer = client.post("/projects")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    exception = next(line for line in logs() if line["event"] == "request.failed")["exception"]
    assert "table projects has 3 columns" in exception
    assert "a secret name" not in exception


def test_the_docs_show_the_envelope_and_not_fastapi_s_own_422(app: FastAPI) -> None:
    @app.get("/jobs/{job_id}", responses=error_responses(404, 503))
    def show(job_id: int) -> None: ...

    schema = app.openapi()

    responses = schema["paths"]["/jobs/{job_id}"]["get"]["responses"]
    assert set(responses) == {"200", "404", "503", "default"}
    assert responses["404"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert "HTTPValidationError" not in schema["components"]["schemas"]


@pytest.fixture
def sent() -> list[float]:
    """When each request reached the endpoint."""
    return []


@pytest.fixture
def ask_openai(app: FastAPI, serve: Serve, sent: list[float]) -> Callable[[Exception], Any]:
    """What OpenAI's own client makes of an error of POST /v1/embeddings."""

    def ask(error: Exception) -> Any:
        @app.post("/v1/embeddings")
        def embed() -> None:
            sent.append(time.monotonic())
            raise error

        with (
            openai.OpenAI(base_url=serve(app) + "/v1", api_key="any", max_retries=1) as client,
            pytest.raises(openai.APIStatusError) as caught,
        ):
            client.embeddings.create(model="faq", input="hello")
        return caught.value

    return ask


def test_openai_s_client_shows_our_message(ask_openai: Callable[[Exception], Any], sent: list[float]) -> None:
    error = ask_openai(NotFound("there is no model 'faq'; POST /v1/jobs makes one", param="model", code="no_such_model"))

    assert isinstance(error, openai.NotFoundError)
    assert "there is no model 'faq'; POST /v1/jobs makes one" in str(error)
    assert (error.code, error.param, error.type) == ("no_such_model", "model", "not_found_error")
    assert str(error.request_id).startswith("req_")
    assert len(sent) == 1


def test_openai_s_client_sends_a_permanent_conflict_once(ask_openai: Callable[[Exception], Any], sent: list[float]) -> None:
    error = ask_openai(Conflict("version 3 is not better than version 2"))

    assert isinstance(error, openai.ConflictError)
    assert "version 3 is not better than version 2" in str(error)
    assert len(sent) == 1


def test_openai_s_client_waits_as_long_as_it_is_told(ask_openai: Callable[[Exception], Any], sent: list[float]) -> None:
    error = ask_openai(Busy("still running"))

    assert isinstance(error, openai.ConflictError)
    assert len(sent) == 2
    assert sent[1] - sent[0] >= 0.9
