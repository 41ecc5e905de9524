"""A vector database that remembers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.vectors.edge import EdgeEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EdgeEngine]:
    """Qdrant Edge in a folder of this test."""
    engine = EdgeEngine(tmp_path / "vectors")
    yield engine
    engine.close()
