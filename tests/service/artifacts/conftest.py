"""Files in a folder, and in a bucket of a real HTTP server that speaks S3."""

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.artifacts import Artifacts
from service.artifacts.bucket import BucketArtifacts
from service.artifacts.folder import FolderArtifacts


class S3Server:
    """Moto's S3 in a thread. Its objects outlive `stop`; `start` uses the same port again."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = int(self._server.get_host_and_port()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        # Another library than the one under test: it sees what is really there.
        self.boto: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()


class Place:
    """Somewhere to keep files, seen from one machine or from several."""

    def __init__(self, folder: Path, s3: S3Server | None) -> None:
        self.folder = folder
        self._s3 = s3
        self._bucket = f"test-{uuid.uuid4().hex}"
        if s3 is not None:
            s3.boto.create_bucket(Bucket=self._bucket)

    @property
    def url(self) -> str:
        return "folder" if self._s3 is None else f"s3://{self._bucket}/some/prefix"

    @property
    def local(self) -> str:
        """The folder of the machine `one`."""
        return str(self.folder if self._s3 is None else self.folder / "one")

    def open(self, machine: str = "one") -> Artifacts:
        """The files as a machine sees them: a folder is shared by all, a bucket too, but not what was downloaded."""
        if self._s3 is None:
            return FolderArtifacts(self.folder)
        return BucketArtifacts(self.url, self.folder / machine)

    def keys(self) -> set[str]:
        """What is really stored, without scratch folders."""
        if self._s3 is None:
            files = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
            return {key for key in files if not key.startswith("scratch/")}
        pages = self._s3.boto.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        return {found["Key"].removeprefix("some/prefix/") for page in pages for found in page.get("Contents", [])}

    def half_made(self) -> list[Path]:
        """What is in scratch folders on any machine."""
        return [path for scratch in self.folder.rglob("scratch") for path in scratch.iterdir()]


@pytest.fixture(scope="session")
def running_s3() -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, and the environment as an operator sets it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", running_s3.endpoint)
    return running_s3


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Place:
    """An empty bucket."""
    return Place(tmp_path / "files", s3)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, or an empty bucket."""
    return Place(tmp_path / "files", request.getfixturevalue("s3") if request.param == "bucket" else None)


@pytest.fixture
def artifacts(place: Place) -> Artifacts:
    return place.open()


@pytest.fixture
def put(artifacts: Artifacts) -> Callable[[str, bytes], None]:
    """Store a file by its content."""

    def stored(key: str, content: bytes) -> None:
        with artifacts.scratch() as scratch:
            (scratch / "file").write_bytes(content)
            artifacts.store(key, scratch / "file")

    return stored
