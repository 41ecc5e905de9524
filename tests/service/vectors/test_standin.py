"""The stand-in for the Qdrant server: what it does not know it says loudly, and its two kinds agree on what both know."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.qdrant_standin import Recorded, Standin, standin
from service.errors import Conflict, InvalidRequest, NotFound, Unavailable
from service.vectors.engine import Matrix, Points, VectorEngine
from service.vectors.server import ServerEngine

DIM = 4
ROOT = Path(__file__).parents[3]


def ids(first: int, count: int) -> list[str]:
    return [f"00000000-0000-0000-0000-{number:012}" for number in range(first, first + count)]


def rows(count: int) -> Matrix:
    return np.random.default_rng(count).normal(size=(count, DIM)).astype(np.float32)


@contextmanager
def process(*options: str) -> Iterator[str]:
    """A stand-in in a process of its own; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.qdrant_standin", "--port", str(port), *options]
    with subprocess.Popen(command, cwd=ROOT) as running:
        try:
            engine = ServerEngine.connect(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 30
            while True:
                try:
                    engine.ping()
                    break
                except Unavailable:
                    assert running.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            engine.close()
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/collections", None),
        ("POST", "/collections/docs/points/search", {}),
        ("GET", "/collections/docs/points", None),
        ("PUT", "/collections/docs/points", {"batch": {"ids": [1], "vectors": {"base": [[1, 1, 1, 1]]}}}),  # does not wait
        ("PUT", "/collections/docs/points?wait=true", {"points": [{"id": 1, "vector": {}}]}),
        ("POST", "/collections/docs/points/query", {"query": [1, 1, 1, 1], "score_threshold": 0.5}),
        ("PATCH", "/collections/docs", {"metadata": {"a": 1}}),
    ],
)
def test_request_that_our_engine_does_not_make_is_not_implemented(method: str, path: str, body: object) -> None:
    with standin() as made:
        answer = httpx.request(method, made.url + path, json=body)

    assert answer.status_code == 501
    assert "stand-in" in answer.json()["status"]["error"]


def test_requests_are_recorded_as_they_came(server: Standin) -> None:
    body = b'{"batch": {"ids": [], "vectors": {}}}'

    httpx.put(f"{server.url}/collections/a%20b/points?wait=true", content=body)

    assert server.requests == [Recorded("PUT", "/collections/a b/points", {"wait": "true"}, body)]


def test_everything_in_a_folder_is_there_after_a_restart(tmp_path: Path) -> None:
    with standin(tmp_path) as made:
        first = ServerEngine.connect(made.url)
        first.create_collection("docs", dim=DIM, indexes={"lang": "keyword"}, owner="col_1")
        first.add_vector_name("docs", "v1", dim=DIM)
        first.upsert("docs", Points(ids(0, 3), {"base": rows(3), "v1": rows(3)}, [{"lang": "en"}] * 3))
        loading = first.bulk_load("docs")
        loading.__enter__()
        first.close()
    with standin(tmp_path) as made:
        again = ServerEngine.connect(made.url)
        info = httpx.get(f"{made.url}/collections/docs").json()["result"]

        assert (again.count("docs", having="v1"), again.vector_names("docs")) == (3, {"base", "v1"})
        assert info["config"]["optimizer_config"]["indexing_threshold"] == 0
        assert info["payload_schema"] == {"lang": {"data_type": "keyword", "points": 0}}
        with pytest.raises(Conflict):
            again.create_collection("docs", dim=DIM, indexes={}, owner="col_2")
        again.close()


def story(engine: VectorEngine) -> list[object]:
    """The same writes to any engine, and what is there after each."""
    told: list[object] = []

    def tell() -> None:
        told.append([engine.count("docs"), *(engine.count("docs", having=name) for name in ("base", "v1", "v2"))])
        told.append(sorted(engine.vector_names("docs")))

    engine.create_collection("docs", dim=DIM, indexes={"lang": "keyword"}, owner="col_1")
    tell()
    with engine.bulk_load("docs"):
        engine.upsert("docs", Points(ids(0, 300), {"base": rows(300)}, [{"n": n} for n in range(300)]))
    tell()
    engine.add_vector_name("docs", "v1", dim=DIM)
    engine.set_vectors("docs", "v1", ids(200, 200), rows(200))
    tell()
    engine.upsert("docs", Points(ids(290, 20), {"base": rows(20)}, [{}] * 20))
    tell()
    engine.delete("docs", ids=ids(0, 50))
    tell()
    engine.add_vector_name("docs", "v2", dim=DIM)
    engine.set_vectors("docs", "v2", ids(60, 7), rows(7))
    engine.drop_vector_name("docs", "v1")
    tell()
    engine.add_vector_name("docs", "v1", dim=DIM)
    tell()
    told.append(sorted(engine.payloads("docs", ids(40, 20))))
    for owner in ("col_2", "col_1"):
        try:
            engine.create_collection("docs", dim=DIM, indexes={"lang": "keyword", "n": "integer"}, owner=owner)
        except Conflict as error:
            told.append(error.code)
    for name, dim in (("v9", DIM), ("base", DIM + 1)):
        try:
            engine.set_vectors("docs", name, ids(60, 1), np.ones((1, dim), dtype=np.float32))
        except (InvalidRequest, NotFound) as error:
            told.append(error.message)
    engine.drop_collection("docs", owner="col_1")
    try:
        engine.count("docs")
    except NotFound as error:
        told.append(error.message)
    engine.close()
    return told


def test_the_kind_that_counts_tells_the_same_story_as_the_one_that_stores(server: Standin) -> None:
    with process("--counting") as url:
        counted = story(ServerEngine.connect(url))

    stored = story(ServerEngine.connect(server.url))
    assert counted == stored
    assert stored[4] == [300, 300, 100, 0]


def test_the_kind_that_counts_keeps_no_payload_and_refuses_to_search() -> None:
    with process("--counting") as url:
        engine = ServerEngine.connect(url)
        engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
        engine.upsert("docs", Points(ids(0, 2), {"base": rows(2)}, [{"lang": "en"}] * 2))

        assert engine.payloads("docs", ids(0, 3)) == {point: {} for point in ids(0, 2)}
        with pytest.raises(Unavailable, match="NOT QDRANT"):
            engine.search("docs", "base", rows(1)[0], limit=1)
        with pytest.raises(Unavailable, match="NOT QDRANT"):
            next(engine.scroll("docs", "base"))
        engine.close()
