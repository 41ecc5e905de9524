"""The objects of a bucket, through obstore: whole or not at all, in little memory, and with an answer within seconds.

FileNotFoundError                          no such object          -> NotFound
anything that says NoSuchBucket            the operator's mistake  -> Unavailable
no room left (507; XMinioStorageFull)                              -> StorageFull
refused, no connection, time-out, 5xx      any other error         -> Unavailable
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.artifacts.disk import disk_errors
from service.errors import NotFound, StorageFull, Unavailable

# The smallest part that S3 takes, two at a time: 10 MiB of memory, and files of up to 48 GiB (10,000 parts).
_PART_BYTES: Final = 5 * 2**20
_PARTS_AT_ONCE: Final = 2
_LONGEST_REASON: Final = 300

_NO_ROOM: Final = ("507 Insufficient Storage", "XMinioStorageFull")


@dataclass(frozen=True)
class Found:
    """An object that is there."""

    key: str
    changed: float  # seconds since 1970


class BucketObjects:
    """Objects below s3://bucket/prefix. Every method raises Unavailable; what writes raises StorageFull."""

    def __init__(self, url: str) -> None:
        """url: s3://bucket/prefix. Credentials, region and endpoint come from the environment: AWS_ACCESS_KEY_ID,
        AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and others of that family.
        """
        self.url = url
        self._store = S3Store.from_url(
            url,
            client_options={
                "allow_http": True,  # for an endpoint that the operator writes with http://; S3 itself is asked with https
                "connect_timeout": "3s",
                "read_timeout": "15s",  # of silence: the time that two parts take to go up is part of it
                "timeout": "6h",  # of a whole answer: a large file may take long as long as something arrives
            },
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=8),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 3},
            },
        )

    def put(self, key: str, content: bytes) -> None:
        """Store a small object."""
        with self._errors(key):
            obstore.put(self._store, key, content, use_multipart=False)

    def upload(self, key: str, file: Path) -> None:
        """Store a file of any size. Raises FileNotFoundError when there is no such file."""
        with self._errors(key), file.open("rb") as stream:
            obstore.put(self._store, key, stream, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def get(self, key: str) -> bytes:
        """The content of a small object. Raises NotFound."""
        with self._errors(key):
            return bytes(obstore.get(self._store, key).bytes())

    def download(self, key: str, target: Path) -> None:
        """Write an object of any size to a new file, and the folders above it. Raises NotFound."""
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream, self._errors(key):
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=_PART_BYTES):
                    stream.write(chunk)

    def list(self, below: str) -> Iterator[Found]:
        """All objects below a folder's key."""
        with self._errors(below):
            for chunk in obstore.list(self._store, below or None):
                yield from (Found(meta["path"], meta["last_modified"].timestamp()) for meta in chunk)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; missing ones are fine."""
        with self._errors(keys[0] if keys else ""):
            obstore.delete(self._store, keys)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Raise the service's errors in place of obstore's."""
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            text = str(error)
            reason = text.partition("\n")[0][:_LONGEST_REASON]
            if any(sign in text for sign in _NO_ROOM):
                raise StorageFull(
                    f"there is no room left in {self.url}: make room there, then try again; nothing of this was kept ({reason})"
                ) from error
            if isinstance(error, BaseError) or "NoSuchBucket" in text:
                raise Unavailable(f"the files in {self.url} are not available: {reason}") from error
            if error.errno is not None:  # of this machine
                raise
            raise NotFound(f"the file '{key}' is missing from {self.url}", code="file_missing") from error
