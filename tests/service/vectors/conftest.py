"""The engines under the contract tests, and a stand-in for the Qdrant server whose every request is checked."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient

from benchmarks.qdrant_standin import Standin, standin
from service.vectors.edge import EdgeEngine
from service.vectors.engine import VectorEngine
from service.vectors.refusals import COLLECTION_NAME
from service.vectors.server import ServerEngine
from tests.service.vectors.qdrant_rules import complaints, known_rules

REAL_SERVER = os.environ.get("ZEROGATE_TEST_QDRANT_URL")
ENGINES = ["edge", "stand-in", *(["server"] if REAL_SERVER else [])]


class Renamed:
    """An engine on a server that others use too: collections get random names, and are dropped in the end."""

    def __init__(self, url: str) -> None:
        self._engine = ServerEngine.connect(url)
        self._client = QdrantClient(url=url, check_compatibility=False)
        self._prefix = f"zerogate-test-{uuid4().hex}-"

    def __getattr__(self, method: str) -> Callable[..., Any]:
        plain = getattr(self._engine, method)

        def renamed(collection: str, *args: Any, **kwargs: Any) -> Any:
            name = self._prefix + collection if COLLECTION_NAME.fullmatch(collection) else collection
            return plain(name, *args, **kwargs)

        return plain if method == "ping" else renamed

    def close(self) -> None:
        for collection in self._client.get_collections().collections:
            if collection.name.startswith(self._prefix):
                self._client.delete_collection(collection.name)
        self._client.close()
        self._engine.close()


@pytest.fixture
def server() -> Iterator[Standin]:
    """A stand-in for the Qdrant server. In the end every request that it got is held against what Qdrant takes."""
    with standin() as made:
        yield made
    rules = known_rules()[0]
    assert [found for request in made.requests for found in complaints(rules, request)] == []


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorEngine]:
    """Qdrant Edge; and the server engine over the stand-in, and over a real server where one is named."""
    made: Any
    match request.param:
        case "edge":
            made = EdgeEngine(tmp_path)
        case "stand-in":
            made = ServerEngine.connect(request.getfixturevalue("server").url)
        case _:
            assert REAL_SERVER
            made = Renamed(REAL_SERVER)
    yield made
    made.close()
