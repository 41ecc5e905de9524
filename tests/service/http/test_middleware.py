"""Request ids, the access log, the counts and the limit of bodies."""

import http.client
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import StreamingResponse

from service.http.middleware import install_middlewares
from service.logging import configure_logging

Logs = Callable[[], list[dict[str, Any]]]
Serve = Callable[[FastAPI], str]

MIB = 2**20


@pytest.fixture(autouse=True)
def routes(app: FastAPI) -> None:
    jobs = APIRouter(prefix="/jobs")

    @jobs.get("/{job_id}")
    def show(job_id: str) -> dict[str, str]:
        structlog.get_logger("test").info("job.shown")
        return {"id": job_id}

    @app.get("/livez")
    def livez() -> None: ...

    @app.get("/fails")
    def fails() -> None:
        raise ZeroDivisionError

    @app.post("/v1/datasets")
    @app.post("/v1/jobs")
    async def measure(request: Request) -> int:
        return len(await request.body())

    app.include_router(jobs, prefix="/v1")


def requests_counted(app: FastAPI) -> dict[tuple[str, str, str], float]:
    """(method, route, status) -> how many."""
    return {
        (labels["method"], labels["route"], labels["status"]): value
        for family in text_string_to_metric_families(app.state.metrics.text().decode())
        for name, labels, value, *_ in family.samples
        if name == "zerogate_http_requests_total"
    }


def chunks(size: int) -> Iterator[bytes]:
    """A body without Content-Length."""
    for start in range(0, size, MIB):
        yield b"x" * min(MIB, size - start)


def test_every_answer_has_a_request_id_of_its_own(client: TestClient) -> None:
    answers = [
        client.get("/v1/jobs/a"),
        client.get("/nowhere"),
        client.get("/fails"),
        client.post("/v1/jobs", content=chunks(33 * MIB)),
    ]

    assert [answer.status_code for answer in answers] == [200, 404, 500, 413]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 4
    assert all(request_id.startswith("req_") for request_id in ids)


def test_the_caller_s_request_id_is_kept(client: TestClient) -> None:
    answer = client.get("/v1/jobs/a", headers={"X-Request-ID": "trace-1.2_3"})

    assert answer.headers.get_list("x-request-id") == ["trace-1.2_3"]


@pytest.mark.parametrize("theirs", ["", "a b", "x" * 101, "a\tb", "é"])
def test_a_strange_request_id_is_replaced(client: TestClient, theirs: str) -> None:
    answer = client.get("/v1/jobs/a", headers={b"X-Request-ID": theirs.encode()})

    assert answer.headers["x-request-id"].startswith("req_")


def test_lines_logged_by_an_endpoint_carry_the_request_id(client: TestClient, logs: Logs) -> None:
    client.get("/v1/jobs/a", headers={"X-Request-ID": "one"})
    client.get("/v1/jobs/a", headers={"X-Request-ID": "two"})
    structlog.get_logger("test").info("outside.now")

    assert [line["request_id"] for line in logs() if line["event"] == "job.shown"] == ["one", "two"]
    assert "request_id" not in logs()[-1]


def test_the_access_log_tells_the_request_without_its_query(client: TestClient, logs: Logs) -> None:
    client.get("/v1/jobs/a%0Afake", params={"input": "a secret text"})

    (line,) = [line for line in logs() if line["event"] == "http.request"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/jobs/a%0Afake", 200)
    assert 0 < line["milliseconds"] < 5000
    assert "secret" not in str(logs())


def test_the_access_log_tells_a_failure_with_its_status(client: TestClient, logs: Logs) -> None:
    client.get("/fails")

    assert [line["status"] for line in logs() if line["event"] == "http.request"] == [500]


def test_all_libraries_log_through_ours(app: FastAPI, serve: Serve, logs: Logs) -> None:
    httpx.get(serve(app) + "/v1/jobs/a", params={"input": "a secret text"})  # httpx would log its URL, uvicorn its access
    logging.getLogger("httpx").warning("a pool is %s", "full")
    logging.getLogger("celery.worker").info("ready")

    names = [line["logger"] for line in logs()]
    assert "uvicorn.error" in names
    assert "uvicorn.access" not in names
    assert "secret" not in str(logs())
    assert [line["event"] for line in logs() if line["logger"] in {"httpx", "celery.worker"}] == ["a pool is full", "ready"]


def test_at_a_terminal_tracebacks_show_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=False)

    def refuse(text: str) -> None:
        raise ValueError(f"it was refused\ninput_value={text}") from KeyError("cause")

    try:
        refuse(text="a secret" + " text")
    except ValueError:
        structlog.get_logger("test").error("job.failed", job_id="job_1", exc_info=True)

    shown = capsys.readouterr().err
    assert "job.failed" in shown
    assert "job_id=job_1" in shown
    assert "KeyError: 'cause'" in shown
    assert "ValueError: it was refused" in shown
    assert "test_middleware.py" in shown
    assert "a secret text" not in shown


def test_health_routes_are_counted_and_not_logged(app: FastAPI, client: TestClient, logs: Logs) -> None:
    client.get("/livez")

    assert logs() == []
    assert requests_counted(app) == {("GET", "/livez", "200"): 1}


def test_requests_are_counted_by_the_template_of_their_route(app: FastAPI, client: TestClient) -> None:
    for path in ("/v1/jobs/a", "/v1/jobs/b", "/v1/jobs/jobs", "/nowhere", "/v1/elsewhere", "/fails", "/openapi.json"):
        client.get(path)
    client.request("BREW", "/v1/jobs/a")

    assert requests_counted(app) == {
        ("GET", "/v1/jobs/{job_id}", "200"): 3,
        ("GET", "unknown", "404"): 2,
        ("GET", "/fails", "500"): 1,
        ("GET", "/openapi.json", "200"): 1,
        ("other", "/v1/jobs/{job_id}", "405"): 1,
    }


def test_times_are_measured(app: FastAPI, client: TestClient) -> None:
    client.get("/v1/jobs/a")

    label = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "200"}
    assert app.state.metrics.registry.get_sample_value("zerogate_http_request_seconds_count", label) == 1
    assert 0 < app.state.metrics.registry.get_sample_value("zerogate_http_request_seconds_sum", label) < 5


def test_two_apps_count_apart(client: TestClient) -> None:
    other = FastAPI()
    install_middlewares(other, max_upload_bytes=1)

    client.get("/livez")

    assert requests_counted(other) == {}


@pytest.mark.parametrize(("path", "limit"), [("/v1/jobs", 32 * MIB), ("/v1/datasets", 40 * MIB)])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_of_its_route_is_refused(client: TestClient, path: str, limit: int, declared: bool) -> None:
    def post(size: int) -> Any:
        return client.post(path, content=b"x" * size if declared else chunks(size))

    assert post(limit).json() == limit

    answer = post(limit + 1)
    assert answer.status_code == 413
    assert answer.json()["error"] == {
        "message": f"the body is larger than {limit:,} bytes, the limit of this route",
        "type": "invalid_request_error",
        "param": None,
        "code": "payload_too_large",
    }


def test_a_body_declared_too_large_is_not_read(app: FastAPI, serve: Serve) -> None:
    with closing(http.client.HTTPConnection(urlsplit(serve(app)).netloc, timeout=5)) as connection:
        connection.putrequest("POST", "/v1/jobs")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()

        assert connection.getresponse().status == 413


def test_a_client_that_sends_too_much_still_reads_why(app: FastAPI, serve: Serve) -> None:
    for content in (b"x" * 50 * MIB, chunks(50 * MIB)):
        answer = httpx.post(serve(app) + "/v1/jobs", content=content)

        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"


def test_an_error_in_the_middle_of_an_answer_breaks_it_off(app: FastAPI, serve: Serve, logs: Logs) -> None:
    @app.get("/half")
    def half() -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            yield b"half"
            raise ZeroDivisionError("the other half")

        return StreamingResponse(parts())

    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(serve(app) + "/half")

    (failed,) = [line for line in logs() if line["event"] == "request.failed"]
    assert "ZeroDivisionError: the other half" in failed["exception"]
