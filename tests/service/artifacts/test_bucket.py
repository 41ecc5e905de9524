"""What only a bucket does: it is away at times, refuses, fills up, and takes files in parts."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from service.artifacts import Artifacts, open_artifacts
from service.artifacts.bucket import BucketArtifacts
from service.artifacts.folder import FolderArtifacts
from service.errors import StorageFull, Unavailable
from service.settings import Settings

LARGE = random.Random(1).randbytes(12 * 2**20)  # three parts

SECONDS = 15.0  # a job or a health check may wait that long, not the minutes that obstore waits unless told


@contextmanager
def outage(s3: Any) -> Iterator[None]:
    s3.stop()
    try:
        yield
    finally:
        s3.start()


def every_method(artifacts: Artifacts, folder: Path) -> Iterator[Any]:
    """Each way to ask the bucket, as a function without arguments."""

    def store() -> None:
        with artifacts.scratch() as scratch:
            (scratch / "file").write_bytes(LARGE)
            artifacts.store("datasets/b", scratch / "file")

    def store_folder() -> None:
        with artifacts.scratch() as scratch:
            (scratch / "made").mkdir()
            (scratch / "made" / "model").write_bytes(b"1")
            artifacts.store_folder("encoders/job_1/1", scratch / "made")

    def local_file() -> None:
        with artifacts.local_file("datasets/a"):
            pass

    yield from (store, store_folder, local_file, artifacts.ping)
    yield lambda: artifacts.read("datasets/a")
    yield lambda: artifacts.write("heads/job_1/1", {"head": b"1"})
    yield lambda: artifacts.local_folder("heads/job_0/1")
    yield lambda: artifacts.workspace("job_0", 2).save()
    yield lambda: list(artifacts.units())
    yield lambda: artifacts.delete("datasets/a")


def test_an_outage_is_told_within_seconds_and_everything_works_again_afterwards(bucket, s3) -> None:
    artifacts = bucket.open()
    artifacts.write("datasets", {"a": b"1"})
    artifacts.write("heads/job_0/1", {"head": b"1"})
    work = artifacts.workspace("job_0", 1)
    (work.folder / "trial").write_bytes(b"1")
    with outage(s3):
        for ask in (*every_method(artifacts, bucket.folder), work.save):
            started = time.monotonic()
            with pytest.raises(Unavailable, match=bucket.url):
                ask()
            assert time.monotonic() - started < SECONDS
        assert bucket.half_made() == []
    work.save()
    for ask in every_method(artifacts, bucket.folder):
        ask()
    assert (artifacts.workspace("job_0", 2).folder / "trial").read_bytes() == b"1"
    assert bucket.half_made() == []


def test_a_service_starts_while_the_bucket_is_away(bucket, s3) -> None:
    with outage(s3):
        artifacts = bucket.open()
        with pytest.raises(Unavailable):
            artifacts.ping()
    artifacts.ping()


def test_an_outage_in_the_middle_of_a_save_keeps_what_was_saved_before(bucket, s3) -> None:
    first = bucket.open().workspace("job_1", 1)
    for name in ("weights", "progress"):
        (first.folder / name).write_bytes(b"1")
    first.save()
    (first.folder / "weights").unlink()
    (first.folder / "weights-2").write_bytes(b"2")
    uploaded = first._objects.upload

    def upload(key: str, file: Path) -> None:
        uploaded(key, file)
        s3.stop()

    first._objects.upload = upload  # type: ignore[method-assign]
    try:
        with pytest.raises(Unavailable):
            first.save()
    finally:
        s3.start()
        first._objects.upload = uploaded  # type: ignore[method-assign]
    found = bucket.open("another").workspace("job_1", 2).folder
    assert {path.name for path in found.iterdir()} == {"weights", "progress"}
    first.save()
    found = bucket.open("third").workspace("job_1", 2).folder
    assert {path.name for path in found.iterdir()} == {"weights-2", "progress"}


def test_only_what_changed_is_uploaded_again(bucket) -> None:
    work = bucket.open().workspace("job_1", 1)
    uploaded = []
    upload = work._objects.upload
    work._objects.upload = lambda key, file: (uploaded.append(file.name), upload(key, file))  # type: ignore[method-assign]
    (work.folder / "a").write_bytes(b"1")
    (work.folder / "b").write_bytes(b"1")
    work.save()
    (work.folder / ".b").write_bytes(b"2")
    (work.folder / ".b").rename(work.folder / "b")
    (work.folder / "c").write_bytes(b"1")
    work.save()
    work.save()
    assert sorted(uploaded[:2]) == ["a", "b"]
    assert sorted(uploaded[2:]) == ["b", "c"]


def test_a_bucket_that_does_not_exist_is_no_missing_file(bucket, tmp_path: Path) -> None:
    artifacts = BucketArtifacts("s3://no-such-bucket/x", tmp_path)
    for ask in every_method(artifacts, tmp_path):
        with pytest.raises(Unavailable, match="no-such-bucket"):
            ask()


def test_files_below_one_prefix_are_not_seen_below_another(bucket, tmp_path: Path) -> None:
    bucket.open().write("heads/job_1/1", {"head": b"1"})
    other = BucketArtifacts(f"{bucket.url}-2/", tmp_path / "other")
    assert list(other.units()) == []
    other.write("heads/job_1/1", {"head": b"2"})
    other.delete("heads/job_1/1")
    assert bucket.keys() == {"heads/job_1/1/head"}


def test_the_settings_choose_the_place(bucket, tmp_path: Path) -> None:
    in_bucket = open_artifacts(Settings(data_dir=tmp_path, files_url=bucket.url))
    in_bucket.write("heads/job_1/1", {"head": b"1"})
    assert bucket.keys() == {"heads/job_1/1/head"}
    in_folder = open_artifacts(Settings(data_dir=tmp_path))
    assert isinstance(in_folder, FolderArtifacts)
    in_folder.write("heads/job_1/1", {"head": b"2"})
    assert (tmp_path / "files" / "heads" / "job_1" / "1" / "head").read_bytes() == b"2"


@pytest.mark.parametrize("url", ["/some/folder", "file:///some/folder", "s3://", "gs://bucket/x", ""])
def test_a_place_that_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="files_url"):
        Settings(files_url=url)


class _Answering(BaseHTTPRequestHandler):
    """Answers every request in one way."""

    status: ClassVar = 200
    body: ClassVar = b""
    length: ClassVar[int | None] = None

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body) if self.length is None else self.length))
        self.send_header("last-modified", "Sat, 21 Nov 2026 06:00:00 GMT")
        self.send_header("etag", '"1"')
        self.end_headers()
        self.wfile.write(self.body)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def answering(**answer: Any) -> Iterator[str]:
    handler = type("Handler", (_Answering,), answer)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", Unavailable),
        (401, "Unauthorized", Unavailable),
        (503, "SlowDown", Unavailable),
        (500, "InternalError", Unavailable),
        (507, "XMinioStorageFull", StorageFull),
    ],
)
def test_what_the_server_answers_decides_the_error(
    s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str, error: type[Exception]
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with answering(status=status, body=body) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        artifacts = BucketArtifacts("s3://some-bucket/x", tmp_path)
        started = time.monotonic()
        with pytest.raises(error, match="s3://some-bucket/x"):
            artifacts.write("heads/job_1/1", {"head": b"1"})
        assert time.monotonic() - started < 2 * SECONDS


def test_a_download_that_breaks_off_is_an_outage_and_leaves_nothing(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with answering(body=b"only the beginning", length=10**6) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        artifacts = BucketArtifacts("s3://some-bucket/x", tmp_path)
        with pytest.raises(Unavailable), artifacts.local_file("datasets/a"):
            pass
    assert list((tmp_path / "scratch").iterdir()) == []


def test_missing_credentials_are_told_and_not_waited_for(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with answering(status=404) as nowhere:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", nowhere)  # where machines in a cloud get theirs
        with pytest.raises(Unavailable):
            BucketArtifacts("s3://some-bucket/x", tmp_path).ping()
