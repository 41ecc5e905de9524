"""Files in a bucket on S3, or on a server that speaks its language (MinIO, Ceph, Garage, R2).

Scratch folders, workspaces and downloaded folders are in a local folder of this machine; workspaces are copied to the bucket
when they are saved. An upload that was killed leaves parts that S3 lists nowhere: give the bucket a lifecycle rule that
removes incomplete multipart uploads.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from service.artifacts.bucket_objects import BucketObjects
from service.artifacts.bucket_work import BucketWorkspace, download_work
from service.artifacts.folder import FolderArtifacts
from service.artifacts.store import SCRATCH, WORK, Unit, attempt_of, unit_of, work_key
from service.errors import NotFound, ServiceError, Unavailable


class BucketArtifacts:
    """`Artifacts` in a bucket."""

    def __init__(self, url: str, local: Path) -> None:
        """url: s3://bucket/prefix. local: a folder of this machine, made if it is missing. Does not ask the bucket yet."""
        self._objects = BucketObjects(url)
        self._local = FolderArtifacts(local)

    def scratch(self, owner: str | None = None) -> AbstractContextManager[Path]:
        """See `Artifacts`."""
        return self._local.scratch(owner)

    def store(self, key: str, file: Path) -> None:
        """See `Artifacts`."""
        self._objects.upload(key, file)
        file.unlink()

    def write(self, folder_key: str, files: Mapping[str, bytes]) -> None:
        """See `Artifacts`."""
        with self._whole(folder_key):
            for name, content in files.items():
                self._objects.put(f"{folder_key}/{name}", content)

    def store_folder(self, key: str, folder: Path) -> None:
        """See `Artifacts`. This machine keeps it too, as if it had downloaded it."""
        with self._whole(key):
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    self._objects.upload(f"{key}/{path.relative_to(folder).as_posix()}", path)
        self._local.store_folder(key, folder)

    def read(self, key: str) -> bytes:
        """See `Artifacts`."""
        return self._objects.get(key)

    @contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        """See `Artifacts`. It is downloaded for the block."""
        with self.scratch() as scratch:
            file = scratch / Path(key).name
            self._objects.download(key, file)
            yield file

    def local_folder(self, key: str) -> Path:
        """See `Artifacts`. It is downloaded once and kept; it appears whole."""
        with suppress(NotFound):
            return self._local.local_folder(key)
        with self.scratch() as scratch:
            made = scratch / "folder"
            for found in self._objects.list(key):
                self._objects.download(found.key, made / Path(found.key).relative_to(key))
            if not made.exists():
                raise NotFound(f"the folder '{key}' is missing from {self._objects.url}", code="file_missing")
            self._local.store_folder(key, made)
        return self._local.local_folder(key)

    def delete(self, key: str) -> None:
        """See `Artifacts`. What other machines have downloaded stays there until they delete it too."""
        self._objects.delete([key, *(found.key for found in self._objects.list(key))])
        self._local.delete(key)

    def workspace(self, job_id: str, attempt: int) -> BucketWorkspace:
        """See `Artifacts`. What earlier attempts have on this machine is removed, so that what still runs there stops."""
        key = work_key(job_id, attempt)
        folder = self._local.path(key)
        if not folder.exists():
            with self.scratch(f"{job_id}-{attempt}.") as scratch:
                download_work(self._objects, job_id, attempt, scratch / "work")
                self._local.store_folder(key, scratch / "work")
            for unit in self._local.units(f"{WORK}/{job_id}"):
                if attempt_of(unit.key) < attempt:
                    self._local.delete(unit.key)
        return BucketWorkspace(self._objects, job_id, attempt, folder)

    def units(self, below: str = "") -> Iterator[Unit]:
        """See `Artifacts`."""
        now = time.time()
        ages = {unit.key: unit.age_seconds for unit in self._local.units(below)}
        for found in self._objects.list(below):
            key, age = unit_of(found.key), max(0.0, now - found.changed)
            ages[key] = min(age, ages.get(key, age))
        yield from (Unit(key, age) for key, age in ages.items())

    def ping(self) -> None:
        """See `Artifacts`."""
        self._local.ping()
        key = f"{SCRATCH}/ping-{uuid4().hex}"
        try:
            self._objects.put(key, b"ping")
            self._objects.get(key)
            self._objects.delete([key])
        except Unavailable:
            raise
        except ServiceError as error:
            raise Unavailable(error.message) from error

    @contextmanager
    def _whole(self, key: str) -> Iterator[None]:
        """What the block stores below the key is removed when it fails; where that fails too, it is left over without a row."""
        try:
            yield
        except Exception:
            with suppress(ServiceError):
                self.delete(key)
            raise
