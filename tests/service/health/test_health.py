"""Liveness, readiness and metrics, over a real database and outside systems that can be told to fail."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.db import Database, make_engine
from service.errors import Unavailable
from service.health import endpoints
from service.http.error_answers import install_error_answers
from service.http.middleware import install_middlewares
from service.resources import Resources
from service.settings import Settings


@dataclass
class System:
    """An outside system as far as its health goes."""

    error: Exception | None = None
    stuck: threading.Event | None = None

    def ping(self) -> None:
        if self.stuck is not None:
            self.stuck.wait(10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def systems() -> dict[str, System]:
    return {name: System() for name in ("broker", "vectors", "files")}


@pytest.fixture
def vectors(systems: dict[str, System]) -> System:
    return systems["vectors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the database's file lies."""
    return tmp_path / "data"


@pytest.fixture
def client(systems: dict[str, System], folder: Path) -> Iterator[TestClient]:
    folder.mkdir()
    database = Database(make_engine(f"sqlite:///{folder / 'zerogate.db'}"))
    app = FastAPI()
    unused = cast("Any", None)
    app.state.resources = Resources(
        settings=Settings(),
        database=database,
        queue=cast("Any", systems["broker"]),
        vectors=cast("Any", systems["vectors"]),
        artifacts=cast("Any", systems["files"]),
        models=unused,
        known_versions=unused,
    )
    install_error_answers(app)
    install_middlewares(app, max_upload_bytes=1)
    app.include_router(endpoints.router)
    yield TestClient(app)
    database.close()


def break_database(folder: Path) -> None:
    """Put a folder where the database's file should be."""
    (folder / "zerogate.db").mkdir()


def test_all_well(client: TestClient) -> None:
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {"database": "ok", "broker": "ok", "vectors": "ok", "files": "ok"}}


@pytest.mark.parametrize("name", ["broker", "vectors", "files"])
def test_a_system_that_is_down_is_named(client: TestClient, systems: dict[str, System], name: str) -> None:
    systems[name].error = Unavailable("no answer from 10.0.0.7")

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json() == {
        "error": {
            "message": f"not ready: {name}: no answer from 10.0.0.7",
            "type": "api_error",
            "param": None,
            "code": "not_ready",
        },
        "checks": {"database": "ok", "broker": "ok", "vectors": "ok", "files": "ok"} | {name: "no answer from 10.0.0.7"},
    }


def test_a_database_that_is_down_is_named(client: TestClient, folder: Path) -> None:
    break_database(folder)

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["vectors"] == "ok"
    assert answer.json()["error"]["message"].startswith("not ready: database: the database does not answer")


def test_a_strange_failure_shows_its_kind_only(client: TestClient, vectors: System) -> None:
    vectors.error = ZeroDivisionError("the password is hunter2")

    assert client.get("/readyz").json()["checks"]["vectors"] == "failed with ZeroDivisionError"


def test_an_engine_that_hangs_is_not_waited_for(client: TestClient, vectors: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_PATIENCE_SECONDS", 0.05)
    vectors.stuck = threading.Event()

    answer = client.get("/readyz")
    vectors.stuck.set()

    assert answer.status_code == 503
    assert answer.json()["checks"]["vectors"] == "no answer within 0.05 seconds"


def test_the_process_lives_even_when_nothing_else_does(client: TestClient, vectors: System, folder: Path) -> None:
    vectors.error = Unavailable("down")
    break_database(folder)

    answer = client.get("/livez")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_metrics_are_in_prometheus_format(client: TestClient) -> None:
    client.get("/readyz")

    answer = client.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    assert 'zerogate_http_requests_total{method="GET",route="/readyz",status="200"} 1.0' in answer.text
    assert "process_resident_memory_bytes" in answer.text
