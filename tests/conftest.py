"""What most tests need: the real encoder, and the whole service running in this process and spoken to over HTTP."""

import json
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import PostgresServer, ValkeyServer
from cli.migrate import migrate
from cli.serve import serving_in_background
from service.db import Database, make_engine
from service.encoders.operations import ensure_project
from service.resources import DEFAULT_PROJECT
from service.settings import Settings
from zerogate import CachedEncoder, EmbeddingCache, Encoder, builtin_guard, make_guard

Start = Callable[..., AbstractContextManager["Client"]]

# A guard for trainings that are not about guards: the built-in one takes a second or two to judge by.
SMALL_GUARD = [
    {"sentence1": f"{who} sleeps", "sentence2": f"{who} is asleep" if n % 2 else f"we sold {n} boats", "score": n % 2}
    for n, who in enumerate(["the baby", "my dog", "a nurse", "the pilot", "his aunt", "one of us", "a clerk", "the king"])
]


class Client:
    """A plain HTTP client of a running service, with the few steps that tests repeat."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60.0)

    def get(self, path: str, **params: Any) -> Any:
        return self._answer(self.http.get(path, params=params))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._answer(self.http.post(path, json=body or {}))

    def upload(self, rows: Sequence[Mapping[str, Any]], *, kind: str, **params: str) -> Any:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        headers = {"content-type": "application/x-ndjson"}
        return self._answer(self.http.post("/v1/datasets", params={"kind": kind, **params}, content=body, headers=headers))

    def small_guard(self) -> str:
        """The id of the dataset SMALL_GUARD; the same however often it is asked for."""
        found: str = self.upload(SMALL_GUARD, kind="scored")["id"]
        return found

    def wait(self, job_id: str | None, *, seconds: float = 60.0) -> Any:
        """The job when it has ended."""
        assert job_id is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.get(f"/v1/jobs/{job_id}")
            if job["state"] not in ("queued", "running"):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} is still {job['state']} after {seconds} s: {job['progress']}")

    def wait_for_all(self) -> None:
        """Return when no job is queued or running."""
        for state in ("queued", "running"):
            for job in self.get("/v1/jobs", state=state, limit=100)["data"]:
                self.wait(job["id"])

    @staticmethod
    def _answer(response: httpx.Response) -> Any:
        assert response.is_success, f"{response.status_code} {response.text}"
        return response.json()


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The real all-MiniLM-L6-v2, in fp32: its vectors do not depend on the batch."""
    return Encoder("all-MiniLM-L6-v2", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def cached_encoder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CachedEncoder]:
    """The same encoder with a cache of its own."""
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"))
    yield CachedEncoder(encoder, cache)
    cache.close()


@pytest.fixture(scope="session")
def warm(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Put the built-in guard's vectors into the embedding cache of a data folder that has none yet: encoding them takes 8 s."""
    folder = tmp_path_factory.mktemp("guard-cache")
    cache = EmbeddingCache(folder)
    CachedEncoder(encoder, cache).encode(make_guard("scored", builtin_guard()).queries, role="query")
    cache.close()

    def copied(data_dir: Path) -> None:
        target = data_dir / "cache"
        if not target.exists():
            target.mkdir(parents=True)
            shutil.copyfile(folder / "data.mdb", target / "data.mdb")

    return copied


@pytest.fixture(scope="session")
def shared_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding cache folder for services that run one after the other (one process may open it once at a time)."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="session")
def start(warm: Callable[[Path], None]) -> Start:
    """Start a service on a data folder: `with start(tmp_path) as client`. Its encoder runs in fp32."""

    @contextmanager
    def started(data_dir: Path, **settings: Any) -> Iterator[Client]:
        warm(data_dir)
        chosen = Settings(**{"data_dir": data_dir, "port": 0, "encoder_dtype": "float32", **settings})
        with serving_in_background(chosen) as url:
            client = Client(url)
            with client.http:
                yield client

    return started


@pytest.fixture(scope="session")
def client(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One service for all tests that do not mind what others leave in it: use names of your own."""
    with start(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A real PostgreSQL, started when the first test asks for it. Whoever stops it takes one of their own."""
    with PostgresServer(tmp_path_factory.mktemp("servers") / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a database that was migrated once; a copy of it takes 20 ms."""
    engine = make_engine(postgres_server.create_database("migrated"))
    migrate(engine)
    engine.dispose()
    return "migrated"


@pytest.fixture
def postgres(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The URL of a PostgreSQL database with today's tables and nothing in them."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name, template=migrated_template)
    postgres_server.drop_database(name)


@pytest.fixture
def empty_postgres(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a PostgreSQL database without tables."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with today's tables and nothing in them; a test that takes it runs once on either kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres")
        return url
    url = f"sqlite:///{tmp_path / 'zerogate.db'}"
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the default project: each test runs on SQLite and on PostgreSQL."""
    with _opened(database_url) as database:
        yield database


@pytest.fixture
def shared_database(postgres: str) -> Iterator[Database]:
    """PostgreSQL alone: writers really write at once, where SQLite lets one in at a time."""
    with _opened(postgres) as database:
        yield database


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = Database(make_engine(url))
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
    yield database
    database.close()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real Valkey, started when the first test asks for it. Whoever stops it takes one of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ValkeyServer(tmp_path_factory.mktemp("servers") / "valkey", port) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> str:
    """The URL of a Valkey that holds nothing."""
    valkey_server.flush()
    return valkey_server.url
