"""Workspaces in a bucket: saved as a whole, found again by a later attempt.

    work/<job>/<attempt>/<name>        a file's content; the name changes with it
    work/<job>/<attempt>/saved.json    {path: name}, written last: what it does not name does not count

So a save that is killed in the middle leaves what was saved before, and no checkpoint is ever found with half its files.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from service.artifacts.bucket_objects import BucketObjects
from service.artifacts.store import WORK, attempt_of, is_half_made, work_is_lost, work_key
from service.errors import NotFound, Unavailable

_SAVED: Final = "saved.json"
_TRIES: Final = 3


class BucketWorkspace:
    """`Workspace` of one attempt, copied to the bucket when it is saved."""

    def __init__(self, objects: BucketObjects, job_id: str, attempt: int, folder: Path) -> None:
        self.folder = folder
        self._objects = objects
        self._job_id = job_id
        self._attempt = attempt
        self._key = work_key(job_id, attempt)
        self._stored: set[str] = set()  # names that are in the bucket
        self._saved: dict[str, str] | None = None  # None: nothing yet, not even that there is nothing

    def save(self) -> None:
        """See `Workspace`. Uploads the files that are new or changed."""
        try:
            found = dict(self._files())
            if found == self._saved:
                return
            for path, name in found.items():
                if name not in self._stored:
                    self._objects.upload(f"{self._key}/{name}", self.folder / path)
                    self._stored.add(name)
        except FileNotFoundError as error:
            raise NotFound(work_is_lost(self._key), code="work_lost") from error
        self._objects.put(f"{self._key}/{_SAVED}", json.dumps(found).encode())
        self._saved = found
        self._stored = set(found.values())
        self._sweep(self._stored)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Path and name of every finished file. Raises FileNotFoundError when the folder is gone."""
        self.folder.stat()
        for path in self.folder.rglob("*"):
            relative = path.relative_to(self.folder)
            if not is_half_made(relative) and path.is_file():
                status = path.stat()  # a file that appears by rename is another inode, whatever its size and time
                yield relative.as_posix(), f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"

    def _sweep(self, names: Collection[str]) -> None:
        """Remove what no longer counts: files that are gone, and the earlier attempts."""
        counts = {f"{self._key}/{name}" for name in (_SAVED, *names)}
        below = [found.key for found in self._objects.list(f"{WORK}/{self._job_id}")]
        self._objects.delete([key for key in below if attempt_of(key) <= self._attempt and key not in counts])


def download_work(objects: BucketObjects, job_id: str, attempt: int, target: Path) -> None:
    """Make the folder `target` with what the newest earlier attempt has saved, if any has. Raises Unavailable, StorageFull."""
    for _ in range(_TRIES):
        try:
            return _download_newest(objects, job_id, attempt, target)
        except NotFound:  # that attempt still runs, and has saved again in between
            shutil.rmtree(target)
    raise Unavailable(f"an earlier attempt at '{job_id}' keeps changing what it has saved", code="work_changes")


def _download_newest(objects: BucketObjects, job_id: str, attempt: int, target: Path) -> None:
    target.mkdir()
    saved = [found.key for found in objects.list(f"{WORK}/{job_id}") if found.key.endswith(f"/{_SAVED}")]
    earlier = [key for key in saved if attempt_of(key) < attempt]
    if earlier:
        newest = max(earlier, key=attempt_of)
        for path, name in json.loads(objects.get(newest)).items():
            objects.download(newest.removesuffix(_SAVED) + name, target / path)
