"""An app with everything of `service/http` around it, on a real SQLite file; in process or behind a real server."""

import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.db import Database, make_engine, now
from service.http.error_answers import install_error_answers
from service.http.middleware import install_middlewares
from service.logging import configure_logging
from service.resources import DEFAULT_PROJECT, Resources
from service.settings import Settings
from service.tables import Project, Table

UPLOAD_LIMIT = 40 * 2**20

Logs = Callable[[], list[dict[str, Any]]]
Serve = Callable[[FastAPI], str]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(make_engine(f"sqlite:///{tmp_path / 'zerogate.db'}"))
    Table.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(Project(id=DEFAULT_PROJECT, name="default", created_at=now()))
    yield database
    database.close()


@pytest.fixture
def app(database: Database) -> FastAPI:
    """The app without routes; a test adds its own."""
    app = FastAPI()
    unused = cast("Any", None)
    app.state.resources = Resources(
        settings=Settings(),
        database=database,
        queue=unused,
        vectors=unused,
        artifacts=unused,
        models=unused,
        known_versions=unused,
    )
    install_error_answers(app)
    install_middlewares(app, max_upload_bytes=UPLOAD_LIMIT)
    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Run an app behind uvicorn on a free port; gives the base URL."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(_served(app))


@contextmanager
def _served(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logs]:
    """All lines logged since the test began, as JSON; the process logs as before when it ends."""
    stream = io.StringIO()
    root = logging.getLogger()
    level = root.level
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging(json=True)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
