"""Files: datasets and heads, by key (`datasets/ds_....jsonl`, `heads/job_.../2/head.safetensors`).

A file appears whole or not at all: it is written under a scratch name, forced to disk, and renamed. Nothing is ever overwritten
with other content, because keys hold identifiers that are given once.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from service.errors import NotFound

_SCRATCH = "scratch"
_WORK = "work"


class Artifacts:
    """Files in a folder. Safe to share between threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / _SCRATCH).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for half-made files, on the same disk; gone after the block."""
        folder = Path(tempfile.mkdtemp(dir=self._root / _SCRATCH))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def store(self, key: str, file: Path) -> None:
        """Take the finished scratch file over under this key."""
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        file.replace(target)
        _sync(target.parent)

    def write(self, folder_key: str, files: Mapping[str, bytes]) -> None:
        """Store several small files below one key."""
        with self.scratch() as scratch:
            for name, content in files.items():
                (scratch / name).write_bytes(content)
                self.store(f"{folder_key}/{name}", scratch / name)

    def store_folder(self, key: str, folder: Path) -> None:
        """Take a finished scratch folder over under this key, with all that is in it; it appears whole."""
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        _sync(target.parent)

    def local_folder(self, key: str) -> Path:
        """A path to read a stored folder's files from. Raises NotFound."""
        path = self._path(key)
        if not path.is_dir():
            raise NotFound(f"the folder '{key}' is missing from the data folder", code="file_missing")
        return path.absolute()

    def work_folder(self, job_id: str) -> Path:
        """A folder for what a job wants to find again when it is started again; another start does not empty it."""
        folder = self._path(f"{_WORK}/{job_id}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget_work(self, job_id: str) -> None:
        """Remove the job's work folder."""
        self.delete(f"{_WORK}/{job_id}")

    def read(self, key: str) -> bytes:
        """The content of a file. Raises NotFound."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"the file '{key}' is missing from the data folder", code="file_missing") from None

    @contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        """A path to read the file from, valid inside the block. Raises NotFound."""
        path = self._path(key)
        if not path.is_file():
            raise NotFound(f"the file '{key}' is missing from the data folder", code="file_missing")
        yield path

    def delete(self, key: str) -> None:
        """Remove a file, or a folder with all that is in it; a missing one is fine."""
        path = self._path(key)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def tidy(self, known: Collection[str], *, working: Collection[str] = ()) -> list[str]:
        """Remove what a killed process left: half-made files, and files under keys that no row knows; gives those keys.

        known: keys of files and of folders. working: ids of the jobs whose work folders are still needed.
        Only for a process that is alone on the folder.
        """
        shutil.rmtree(self._root / _SCRATCH, ignore_errors=True)
        (self._root / _SCRATCH).mkdir(parents=True)
        kept = {*known, *(f"{_WORK}/{job_id}" for job_id in working)}
        orphans = [key for key in self._keys() if kept.isdisjoint((key, *map(str, PurePosixPath(key).parents)))]
        for key in orphans:
            self.delete(key)
        return orphans

    def _keys(self) -> list[str]:
        return [path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file()]

    def _path(self, key: str) -> Path:
        return self._root / key


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
