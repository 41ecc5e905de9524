"""What a disk does: it keeps what was forced to it, and it is full some day."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.errors import ServiceError, StorageFull, Unavailable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A disk or a network share that is gone, broken, or no longer ours.
_AWAY: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOTDIR, errno.EROFS, errno.ETIMEDOUT, errno.EHOSTDOWN})
# Libraries that are written in Rust (safetensors among them) raise errors of their own, which only quote the system's number.
_QUOTED: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise StorageFull where the disk of this folder has no room left, Unavailable where it is gone; others pass unchanged."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        number = _number_of(error)
        if number in _AWAY:
            raise Unavailable(f"the folder '{folder.absolute()}' cannot be used: {os.strerror(number)}") from error
        if number not in _FULL:
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


def _number_of(error: BaseException | None) -> int:
    """The system's error number when this error, or one that led to it, tells something of the disk; else 0."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (quoted := _QUOTED.search(str(error))):
            number = int(quoted[1])
        if number is not None and number in _FULL | _AWAY:
            return number
        error = error.__cause__ or error.__context__
    return 0
