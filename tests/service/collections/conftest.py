"""A database of either kind, a vector database that remembers, and a model to bind collections to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.db import Database
from service.vectors.edge import EdgeEngine
from tests.service.jobs.job_rows import opened


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the default project: each test runs on SQLite and on PostgreSQL."""
    with opened(database_url) as database:
        yield database


@pytest.fixture
def shared_database(postgres: str) -> Iterator[Database]:
    """PostgreSQL alone: writers really write at once, where SQLite lets one in at a time."""
    with opened(postgres) as database:
        yield database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EdgeEngine]:
    """Qdrant Edge in a folder of this test."""
    engine = EdgeEngine(tmp_path / "vectors")
    yield engine
    engine.close()
