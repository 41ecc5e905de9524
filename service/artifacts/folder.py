"""Files in a folder, which several machines may share.

A file or folder is written under a scratch name, forced to disk, and renamed.
"""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from service.artifacts.disk import disk_errors, sync
from service.artifacts.store import SCRATCH, Unit, is_half_made, is_unit, unit_of, work_is_lost, work_key
from service.errors import NotFound, StorageFull, Unavailable


@dataclass(frozen=True)
class FolderWorkspace:
    """`Workspace` where files are kept in a folder: what is in it is saved."""

    folder: Path
    key: str

    def save(self) -> None:
        """See `Workspace`."""
        if not self.folder.is_dir():
            raise NotFound(work_is_lost(self.key), code="work_lost")


class FolderArtifacts:
    """`Artifacts` in a folder."""

    def __init__(self, root: Path) -> None:
        """root: made if it is missing."""
        self._root = root.absolute()
        with disk_errors(root):
            (root / SCRATCH).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def scratch(self, owner: str | None = None) -> Iterator[Path]:
        """See `Artifacts`. The folder is on the same disk as the files."""
        with disk_errors(self._root):
            try:
                folder = Path(tempfile.mkdtemp(prefix=owner, dir=self._root / SCRATCH))
            except FileNotFoundError as error:  # it was there when this process started
                raise Unavailable(f"the folder '{self._root}' is gone; is its file system mounted?") from error
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def store(self, key: str, file: Path) -> None:
        """See `Artifacts`."""
        with disk_errors(self._root):
            sync(file)
            self._take(file, key)

    def write(self, folder_key: str, files: Mapping[str, bytes]) -> None:
        """See `Artifacts`. The folder appears whole."""
        with self.scratch() as scratch:
            made = scratch / "folder"
            made.mkdir()
            for name, content in files.items():
                (made / name).write_bytes(content)
            self.store_folder(folder_key, made)

    def store_folder(self, key: str, folder: Path) -> None:
        """See `Artifacts`. It appears whole."""
        with disk_errors(self._root):
            for path in (*folder.rglob("*"), folder):
                sync(path)
            self._take(folder, key)

    def read(self, key: str) -> bytes:
        """See `Artifacts`."""
        try:
            with disk_errors(self._root):
                return self.path(key).read_bytes()
        except FileNotFoundError:
            raise _missing("file", key) from None

    @contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        """See `Artifacts`."""
        path = self.path(key)
        if not path.is_file():
            raise _missing("file", key)
        yield path

    def local_folder(self, key: str) -> Path:
        """See `Artifacts`."""
        path = self.path(key)
        if not path.is_dir():
            raise _missing("folder", key)
        return path

    def delete(self, key: str) -> None:
        """See `Artifacts`. A folder disappears whole; one above that is empty then goes too (`heads/<job>`)."""
        path = self.path(key)
        if path.is_dir():
            gone = self.path(f"{SCRATCH}/deleted-{uuid4().hex}")
            with suppress(OSError):  # somebody else deletes it too, or the disk is so full that not even a name fits
                path.rename(gone)
            for one in (gone, path):
                shutil.rmtree(one, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        for above in path.relative_to(self._root).parents[:-2]:  # `heads` itself stays
            with suppress(OSError):
                (self._root / above).rmdir()

    def workspace(self, job_id: str, attempt: int) -> FolderWorkspace:
        """See `Artifacts`. An earlier attempt's folder is renamed, so its path is gone for what still runs there."""
        key = work_key(job_id, attempt)
        folder = self.path(key)
        with disk_errors(self._root):
            while not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another attempt was faster, or the job's work was forgotten: look again
                    self._take_over(folder, attempt)
        return FolderWorkspace(folder, key)

    def units(self, below: str = "") -> Iterator[Unit]:
        """See `Artifacts`."""
        changed: dict[str, float] = {}
        for parent, _, files in os.walk(self.path(below)):
            folder = Path(parent)
            for path in (folder, *(folder / name for name in files)):
                key = path.relative_to(self._root).as_posix()
                with suppress(FileNotFoundError):  # deleted since it was listed
                    status = path.lstat()
                    if not stat.S_ISDIR(status.st_mode) or is_unit(key):
                        changed[unit_of(key)] = max(changed.get(unit_of(key), 0.0), status.st_mtime)
        now = time.time()
        yield from (Unit(key, max(0.0, now - last)) for key, last in changed.items())

    def path(self, key: str) -> Path:
        """Where the file or folder of this key is, or would be."""
        return self._root / key

    def ping(self) -> None:
        """See `Artifacts`."""
        try:
            with self.scratch() as scratch:
                (scratch / "ping").write_bytes(b"ping")
                (scratch / "ping").read_bytes()
        except (OSError, StorageFull) as error:
            raise Unavailable(f"the data folder '{self._root}' can not be written and read: {error}") from error

    def _take(self, made: Path, key: str) -> None:
        """Rename a finished file or folder; its age counts from now. A folder that is there already has the same content."""
        target = self.path(key)
        os.utime(made)
        while True:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.replace(target)
                break
            except FileNotFoundError:  # the folder above was empty, and `delete` has just removed it
                if not made.exists():
                    raise
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                break
        for above in target.relative_to(self._root).parents:
            sync(self._root / above)

    def _take_over(self, folder: Path, attempt: int) -> None:
        """Make the workspace out of the newest earlier one, or an empty one. Raises FileNotFoundError where others interfere."""
        names = [path.name for path in folder.parent.iterdir()]
        earlier = [int(name) for name in names if name.isdecimal() and int(name) < attempt]
        if not earlier:
            folder.mkdir(exist_ok=True)
            return
        (folder.parent / str(max(earlier))).rename(folder)
        os.utime(folder)
        for path in list(folder.rglob("*")):
            if is_half_made(path.relative_to(folder)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _missing(what: str, key: str) -> NotFound:
    return NotFound(f"the {what} '{key}' is missing from the data folder", code="file_missing")
