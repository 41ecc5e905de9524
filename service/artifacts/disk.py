"""What a disk does: it keeps what was forced to it, and it is full some day."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.errors import ServiceError, StorageFull

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Libraries that are written in Rust (safetensors among them) raise errors of their own, which only quote the system's number.
_QUOTED: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Raise StorageFull for whatever says that the disk of this folder has no room left; anything else passes unchanged."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        number = _number_of_full(error)
        if number is None:
            raise
        raise StorageFull(
            f"there is no room left in '{folder.absolute()}' ({os.strerror(number)}): make room on its disk, raise its quota, or "
            "move the folder to a larger disk; nothing of this was kept"
        ) from error


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _number_of_full(error: BaseException | None) -> int | None:
    """The system's error number when this error, or one that led to it, says that there is no room left."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (quoted := _QUOTED.search(str(error))):
            number = int(quoted[1])
        if number in _FULL:
            return number
        error = error.__cause__ or error.__context__
    return None
