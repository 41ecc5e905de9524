"""A whole installation of the production profile: real processes on real PostgreSQL and Valkey, and the stand-in for Qdrant."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos_processes import Installation, running
from tests.conftest import Client


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Started once. A test that stops a part of it starts it again."""
    # Not tmp_path: a socket lies in it, whose path must be short.
    with tempfile.TemporaryDirectory(prefix="zg-") as folder, running(Path(folder)) as started:
        started.start()
        yield started


@pytest.fixture(scope="session")
def api(installation: Installation) -> Iterator[Client]:
    """The installation's API."""
    client = Client(str(installation.http.base_url))
    with client.http:
        yield client
