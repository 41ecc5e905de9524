"""What a worker holds, with queues that only remember and an encoder that is only a row."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.db import Database
from service.resources import Resources, open_resources
from service.settings import Settings
from tests.service.jobs.job_rows import RecordingQueue


@pytest.fixture
def resources(database_url: str, database: Database, tmp_path: Path) -> Iterator[Resources]:
    """Everything that a worker has, on real files, over the same database; and no worker that would run anything."""
    resources = open_resources(Settings(data_dir=tmp_path / "data", database_url=database_url), RecordingQueue())
    yield resources
    resources.close()
