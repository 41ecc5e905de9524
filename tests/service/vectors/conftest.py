"""The two engines under the contract tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from service.vectors.edge import EdgeEngine
from service.vectors.engine import VectorEngine
from service.vectors.server import ServerEngine


@pytest.fixture(params=["edge", "server"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorEngine]:
    """Qdrant Edge, and qdrant-client's local mode in the place of a server."""
    made = EdgeEngine(tmp_path) if request.param == "edge" else ServerEngine(QdrantClient(":memory:"))
    yield made
    made.close()
