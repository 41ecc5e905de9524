"""Files by key, wherever they are kept: what a folder and a bucket both promise.

    datasets/<file>                a dataset's rows
    heads/<job>/<attempt>/...      what a training made
    encoders/<job>/<attempt>/...   a tuned encoder
    work/<job>/<attempt>/...       what an unfinished job goes on from
    scratch/<name>/...             half-made files

A key holds identifiers that are given once, so nothing is ever overwritten with other content. A file appears whole or not at
all. So does a folder where files are kept in a folder; in a bucket it is whole by the time its row exists, so only keys that
a row knows may be read.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

WORK: Final = "work"
SCRATCH: Final = "scratch"

# How many parts of a key name a unit.
_PARTS: Final = {"datasets": 2, SCRATCH: 2, "heads": 3, "encoders": 3, WORK: 3}


@dataclass(frozen=True)
class Unit:
    """Something stored that one row should know."""

    key: str
    age_seconds: float  # since anything in it changed last


class Workspace(Protocol):
    """What a job wants to find again when it is started again.

    A file in it appears whole, by rename; names that begin with '.' are half-made, in it and in folders below, and are not kept.
    """

    @property
    def folder(self) -> Path:
        """Where the files are, on this machine."""

    def save(self) -> None:
        """Make the files as they are now what the next attempt finds. Not while another thread writes in the folder.

        All or nothing: after a failure the next attempt finds what was saved before. Raises NotFound when a later attempt has
        taken the folder over or the job's work was forgotten, Unavailable, StorageFull.
        """


class Artifacts(Protocol):
    """The files of an installation. Safe to share between threads; several processes and machines may use the same.

    Every method but `units` raises Unavailable when the store does not answer, and what writes raises StorageFull when there is
    no room left; neither leaves a half file under a key.
    """

    def scratch(self, owner: str | None = None) -> AbstractContextManager[Path]:
        """An empty folder for half-made files on this machine; gone after the block.

        owner: what its name begins with, so that what a killed process left can be told apart. A disk that is full inside the
        block raises StorageFull there.
        """

    def store(self, key: str, file: Path) -> None:
        """Take the finished scratch file over under this key."""

    def write(self, folder_key: str, files: Mapping[str, bytes]) -> None:
        """Store several small files, by name, below one key."""

    def store_folder(self, key: str, folder: Path) -> None:
        """Take a finished scratch folder over under this key, with all that is in it."""

    def read(self, key: str) -> bytes:
        """The content of a file. Raises NotFound."""

    def local_file(self, key: str) -> AbstractContextManager[Path]:
        """A path to read the file from, valid inside the block. Raises NotFound."""

    def local_folder(self, key: str) -> Path:
        """An absolute path to read a stored folder's files from, valid until the key is deleted. Raises NotFound."""

    def delete(self, key: str) -> None:
        """Remove a file, or a folder with all that is in it; a missing one is fine."""

    def workspace(self, job_id: str, attempt: int) -> Workspace:
        """The folder of this attempt, with what the newest earlier attempt has saved.

        What an earlier attempt that still runs writes from now on never shows in it. The same attempt may ask again.
        """

    def units(self, below: str = "") -> Iterator[Unit]:
        """Everything stored, in no order: what a row should know, scratch folders, and unknown files by their own keys.

        below: a key's first parts (`heads`, `heads/job_...`); only what is below it. A bucket also tells what this machine alone
        has of it. Raises Unavailable.
        """

    def ping(self) -> None:
        """Return when files can be written and read. Raises Unavailable."""


def unit_of(key: str) -> str:
    """The key of the unit that a file's key belongs to."""
    return "/".join(key.split("/")[: _PARTS.get(key.partition("/")[0])])


def is_unit(key: str) -> bool:
    """Whether a folder under this key is a unit, or in one, even if it is empty."""
    parts = _PARTS.get(key.partition("/")[0])
    return parts is not None and key.count("/") + 1 >= parts


def work_key(job_id: str, attempt: int) -> str:
    """Where the workspace of an attempt is."""
    return f"{WORK}/{job_id}/{attempt}"


def attempt_of(key: str) -> int:
    """The attempt in a key of a workspace, or below one."""
    return int(key.split("/")[2])


def work_is_lost(key: str) -> str:
    """What to say of a workspace that is gone while its attempt still runs."""
    return f"the work folder '{key}' is gone: a later attempt has taken it over, or the job has ended"


def is_half_made(relative: Path) -> bool:
    """Whether this path, relative to a workspace's folder, names something that was never finished."""
    return any(part.startswith(".") for part in relative.parts)
